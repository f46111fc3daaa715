# SPDX-License-Identifier: Apache-2.0
"""``IR_LOCK``: run exactly what a lock file names, or not at all.

The file is JSON, written by ``ir-core freeze``: op -> provider, distribution, version and digest, and the order if the
implementation has one. An order is exact arithmetic, so an entry with an order holds for every implementation of that
order, whatever kernel it is; unless the entry says ``"locked": "provider"``, and then as one without an order does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ir_core import env
from ir_core.errors import LockError
from ir_core.impl import IrOpImpl

LOCK_FORMAT = 1
_UNREAD: Any = object()
_lock: Any = _UNREAD


def describe(impl: IrOpImpl, *, provider: bool = False) -> dict[str, str]:
    """What a lock file says of an implementation.

    Args:
        provider: lock the provider, also where it has an order.
    """
    found = {
        "provider": impl.provider,
        "distribution": impl.distribution,
        "version": impl.version,
        "digest": impl.uuid(),
    }
    if impl.order is not None:
        found["order"] = impl.order
        if provider:
            found["locked"] = "provider"
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """The keys in which what runs is not what is locked: none where both are of one order, unless it is locked."""
    if "order" in wanted and wanted.get("locked") != "provider" and wanted["order"] == found.get("order"):
        return []
    keys = [key for key in dict.fromkeys((*found, *wanted)) if key != "locked"]
    return [key for key in keys if wanted.get(key) != found.get(key)]


def read(path: str | Path) -> dict[str, dict[str, str]]:
    """The ops of a lock file, each with what is locked.

    Raises:
        LockError: it is no lock file of this format.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(data, dict) or data.get("format") != LOCK_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"its format is {found!r}, this ir-core reads {LOCK_FORMAT}")
        ops = data.get("ops")
        if not isinstance(ops, dict) or not all(isinstance(entry, dict) for entry in ops.values()):
            raise ValueError("it does not say what runs for which op")
        return ops
    except (OSError, ValueError) as error:
        raise LockError(
            f"The lock file {path} cannot be read.",
            why=f"{error}.",
            fix=f"Write it with `ir-core freeze`; if {env.IR_LOCK} names it, correct that or unset it.",
        ) from error


def refresh() -> None:
    """Forget the lock file."""
    global _lock
    _lock = _UNREAD


def check(impl: IrOpImpl) -> None:
    """Raise :class:`LockError` if a lock file is in force and names something else than ``impl`` for its op."""
    global _lock
    if _lock is _UNREAD:
        name = env.text(env.IR_LOCK)
        _lock = read(name) if name else None
    if _lock is None:
        return
    wanted, found = _lock.get(impl.op.name), describe(impl)
    if wanted is None:
        raise LockError(
            f"Op '{impl.op.name}' is not in the lock file.",
            why=f"It would run {impl.label}.",
            fix="Write the file again with `ir-core freeze`.",
        )
    if different := differences(wanted, found):
        raise LockError(
            f"Op '{impl.op.name}' differs from the lock file.",
            why="; ".join(f"{key}: locked {wanted.get(key)!r}, here {found.get(key)!r}" for key in different),
            fix="Install what was locked, or write the file again with `ir-core freeze`.",
        )
