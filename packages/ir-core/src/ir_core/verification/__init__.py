# SPDX-License-Identifier: Apache-2.0
"""Verify: refute batch invariance by bits, or certify it; dispatch acts on the certificates.

:func:`verify` runs the probes, :class:`Certificate` is what they found, ``evidence.py`` is how selection asks.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ir_core.verification.calls import Call, Case
    from ir_core.verification.certificate import Certificate, Finding
    from ir_core.verification.evidence import certificate_for, evidence_for, refresh
    from ir_core.verification.session import Report, implementations, reproduce, verify
    from ir_core.verification.variants import register_cases

__all__ = [
    "Call",
    "Case",
    "Certificate",
    "Finding",
    "Report",
    "certificate_for",
    "evidence_for",
    "implementations",
    "refresh",
    "register_cases",
    "reproduce",
    "verify",
]

_HOMES = {
    "calls": ("Call", "Case"),
    "certificate": ("Certificate", "Finding"),
    "evidence": ("certificate_for", "evidence_for", "refresh"),
    "variants": ("register_cases",),
    "session": ("Report", "implementations", "reproduce", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import on demand: selection needs ``evidence`` only."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"ir_core.verification.{module}"), name)
    raise AttributeError(f"module 'ir_core.verification' has no attribute '{name}'")
