# SPDX-License-Identifier: Apache-2.0
"""``IR_LOCK``: run exactly the implementations that a lock file names, or not at all.

The file is JSON, written by ``ir-core freeze``: op -> provider, distribution, version and digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir_core import env
from ir_core.errors import LockError

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl

LOCK_FORMAT = 1
_UNREAD: Any = object()
_lock: Any = _UNREAD


def describe(impl: IrOpImpl) -> dict[str, str]:
    """What a lock file says of an implementation."""
    return {
        "provider": impl.provider,
        "distribution": impl.distribution,
        "version": impl.version,
        "digest": impl.uuid(),
    }


def _read() -> dict[str, Any] | None:
    name = env.text(env.IR_LOCK)
    if not name:
        return None
    try:
        data = json.loads(Path(name).read_text("utf-8"))
        if data["format"] != LOCK_FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this ir-core reads {LOCK_FORMAT}")
        return dict(data["ops"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LockError(
            f"{env.IR_LOCK}={name} cannot be read: {error}.",
            fix="Write it with `ir-core freeze`, or unset it.",
        ) from error


def refresh() -> None:
    """Forget the lock file."""
    global _lock
    _lock = _UNREAD


def check(impl: IrOpImpl) -> None:
    """Raise :class:`LockError` if a lock file is in force and names something else than ``impl`` for its op."""
    global _lock
    if _lock is _UNREAD:
        _lock = _read()
    if _lock is None:
        return
    wanted, found = _lock.get(impl.op.name), describe(impl)
    if wanted is None:
        raise LockError(
            f"Op '{impl.op.name}' is not in the lock file.",
            why=f"It would run {impl.label}.",
            fix="Write the file again with `ir-core freeze`.",
        )
    different = [key for key in found if wanted.get(key) != found[key]]
    if different:
        raise LockError(
            f"Op '{impl.op.name}' differs from the lock file.",
            why="; ".join(f"{key}: locked {wanted.get(key)!r}, here {found[key]!r}" for key in different),
            fix="Install what was locked, or write the file again with `ir-core freeze`.",
        )
