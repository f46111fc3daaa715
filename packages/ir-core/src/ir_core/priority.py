# SPDX-License-Identifier: Apache-2.0
"""The grammar of ``IR_PRIORITY``.

::

    IR_PRIORITY = rule { ";" rule }
    rule        = [ op "=" ] [ "only:" | "deny:" | "prefer:" ] provider { "," provider }

A rule without an op is a list for every op that has those providers; it may only prefer. Whether ops and
providers exist is checked when the op is first selected for, since a pack may bring them.
"""

from __future__ import annotations

from typing import Any

from ir_core.env import IR_PRIORITY
from ir_core.errors import EnvError, PolicyError
from ir_core.policy import OpPolicy

_EXAMPLE = "For example IR_PRIORITY='rms_norm=triton,native;fused_add_rms_norm=only:portable'."


def parse_priority(text: str) -> tuple[tuple[str, ...], dict[str, OpPolicy]]:
    """Parse the value of ``IR_PRIORITY`` into (list for every op, policy of each op named).

    Raises:
        EnvError: a rule is malformed, repeated, or contradicts another.
    """
    everywhere: tuple[str, ...] | None = None
    fields: dict[str, dict[str, Any]] = {}
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        op, equals, value = rule.rpartition("=")
        mode, colon, names = value.strip().rpartition(":")
        mode = mode.strip() if colon else "prefer"
        providers = tuple(name.strip() for name in names.split(",") if name.strip())
        op = op.strip()
        if mode not in ("prefer", "only", "deny") or (equals and not op):
            raise EnvError(f"{IR_PRIORITY} has the rule {rule!r}, which cannot be read.", fix=_EXAMPLE)
        if not providers:
            raise EnvError(f"{IR_PRIORITY} has the rule {rule!r}, which names no provider.", fix=_EXAMPLE)
        if not equals:
            if mode != "prefer" or everywhere is not None:
                raise EnvError(
                    f"{IR_PRIORITY} has the rule {rule!r} for every op.",
                    why="There may be one list for every op, and it may only prefer.",
                    fix=_EXAMPLE,
                )
            everywhere = providers
            continue
        own = fields.setdefault(op, {})
        if mode in own:
            raise EnvError(f"{IR_PRIORITY} has two '{mode}' rules for {op}.", fix="Join them into one list.")
        own[mode] = providers
    try:
        return everywhere or (), {op: OpPolicy(**own) for op, own in fields.items()}
    except PolicyError as error:
        raise EnvError(f"{IR_PRIORITY}={text!r}: {error.what}", why=error.why, fix=error.fix) from None
