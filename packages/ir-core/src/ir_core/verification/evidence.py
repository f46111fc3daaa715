# SPDX-License-Identifier: Apache-2.0
"""What earlier verifications found out, as selection asks for it.

The folder of certificates is read once, on the first question, and again after :func:`refresh`. A certificate
counts for exactly the sources, software and device that it was made with.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ir_core import sources
from ir_core.locks import fork_safe_rlock

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.selection import Evidence
    from ir_core.target import Target
    from ir_core.verification.certificate import Certificate

logger = logging.getLogger("ir_core")
_lock = fork_safe_rlock()  # a child may be forked while another thread reads the certificates
_known: dict[tuple[str, str], list[Certificate]] | None = None


def _certificates() -> dict[tuple[str, str], list[Certificate]]:
    global _known
    found = _known
    if found is None:
        with _lock:
            if _known is None:
                made: dict[tuple[str, str], list[Certificate]] = {}
                try:
                    from ir_core.verification import store

                    if store.folder().is_dir():
                        for certificate in store.load_all():
                            made.setdefault((certificate.op, certificate.provider), []).append(certificate)
                except Exception as error:  # a broken cache must not stop a call
                    logger.warning("Certificates cannot be read and do not count: %s", error)
                _known = made
            found = _known
    return found


def certificate_for(impl: IrOpImpl, target: Target) -> Certificate | None:
    """The certificate that counts for ``impl`` on ``target``: same sources, software and device."""
    if not _certificates().get((impl.op.name, impl.provider)):
        return None  # before its digest is made, which reads files
    return certificate_of(impl.op.name, impl.provider, impl.uuid(), target)


def certificate_of(op: str, provider: str, uuid: str, target: Target) -> Certificate | None:
    """The certificate that counts for code with the digest ``uuid`` on ``target``.

    Args:
        op, provider: as in the certificate. They need not be an op and an implementation of ir-core: a host may keep
            certificates of its own parts, under names with a dot (``vllm.attention``).
        uuid: digest of the code and of everything else that decides its bits beside the device.
        target: the device.
    """
    candidates = _certificates().get((op, provider))
    if not candidates:
        return None
    from ir_core.verification import identity

    here = identity.device(target)
    mine = [c for c in candidates if c.device == here and c.uuid == uuid]
    return max(mine, key=lambda c: c.created, default=None)


def evidence_for(impl: IrOpImpl, target: Target) -> Evidence | None:
    """The evidence about ``impl`` on ``target``, or ``None`` when it was not verified there. Never raises."""
    if not _certificates():
        return None
    from ir_core.selection import Evidence

    try:
        certificate = certificate_for(impl, target)
    except Exception as error:
        logger.warning("The certificate of %s cannot be used: %s", impl.label, error)
        return None
    if certificate is None:
        return None
    detail = f"{certificate.summary()} (verified {certificate.created})"
    return Evidence(certificate.verdict, detail, certificate.order or None)


def refresh() -> None:
    """Forget what was read, of sources too: a certificate is compared with the files as they are now."""
    global _known
    sources.refresh()
    with _lock:
        _known = None
