# SPDX-License-Identifier: Apache-2.0
"""Certificates on disk: one JSON file each, in the user's cache directory.

A file is written beside its place and moved there, so that a reader in another process sees the old one or the
new one and never half of either; the last writer wins.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ir_core import env
from ir_core.errors import CertificateError
from ir_core.verification.certificate import FORMAT, Certificate

logger = logging.getLogger("ir_core")
BUNDLE: Final = "ir_core certificates"
STALE: Final = 3600.0
"""Seconds after which a half-written file is a killed writer's: writing one takes milliseconds."""


def folder() -> Path:
    """Where certificates are: ``$IR_CACHE_DIR/certificates``, by default under ``$XDG_CACHE_HOME/ir_core``."""
    own = env.text(env.IR_CACHE_DIR)
    if own:
        return Path(own).expanduser() / "certificates"
    return env.cache_home() / "ir_core" / "certificates"


def path_of(op: str, provider: str, key: str) -> Path:
    return folder() / op / f"{provider}-{key}.json"


def save(certificate: Certificate, key: str) -> Path:
    """Write a certificate; safe beside other processes.

    Raises:
        CertificateError: the folder cannot be written.
    """
    path = path_of(certificate.op, certificate.provider, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, ".*.json.*.tmp")
        write_atomically(path, json.dumps(certificate.to_dict(), indent=1) + "\n")
    except OSError as error:
        raise CertificateError(
            f"The certificate of {certificate.label} cannot be written to {path}: {error}.",
            fix=f"Set {env.IR_CACHE_DIR} to a folder that can be written.",
        ) from error
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this text, all or nothing; what killed writers left of it before is removed."""
    _sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sweep(folder: Path, pattern: str) -> None:
    """Remove files of writers that were killed; a younger one may still be written."""
    for left in folder.glob(pattern):
        try:
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)
        except OSError:  # another process was faster, or the file is not ours: nothing is lost by leaving it
            continue


def load(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        CertificateError: the file cannot be read or is no certificate.
    """
    try:
        return Certificate.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, CertificateError):
            raise CertificateError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error
        raise CertificateError(
            f"{path} is no certificate: {error}.", fix="Delete it and verify again."
        ) from error


_reported: set[str] = set()


def load_all() -> Iterator[Certificate]:
    """Every certificate that can be read; a broken file is reported once a process and passed over."""
    try:
        paths = sorted(folder().glob("*/*.json"))
    except OSError as error:
        _report(f"The certificates in {folder()} cannot be read: {error}.")
        return
    for path in paths:
        try:
            yield load(path)
        except CertificateError as error:
            _report(f"{error.what} It does not count; delete it, or verify again.")


def _report(text: str) -> None:
    if text not in _reported:
        _reported.add(text)
        logger.warning("%s", text)


def export(path: Path, certificates: Iterable[Certificate]) -> int:
    """Write certificates into one file, to carry them to another machine; how many there are."""
    found = [certificate.to_dict() for certificate in certificates]
    write_atomically(
        path.absolute(), json.dumps({"what": BUNDLE, "format": FORMAT, "certificates": found}, indent=1)
    )
    return len(found)


def read_bundle(path: Path) -> list[Certificate]:
    """Read what :func:`export` wrote.

    Raises:
        CertificateError: it is no such file, or one of the certificates is malformed.
    """
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        if data["what"] != BUNDLE:
            raise ValueError(f"it says {data['what']!r}")
        return [Certificate.from_dict(item) for item in data["certificates"]]
    except CertificateError as error:
        raise CertificateError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CertificateError(
            f"{path} is no export of certificates: {error}.",
            fix="Write one with ir-core verify --export FILE.",
        ) from error
