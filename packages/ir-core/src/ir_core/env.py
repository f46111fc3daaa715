# SPDX-License-Identifier: Apache-2.0
"""Every environment variable the project reads: one constant each, strictly parsed.

A variable is read when the process-wide default policy or the target is first needed, and again by
``ir_core.refresh()``; never at import.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ir_core.errors import EnvError, IrWarning

VLLM_BATCH_INVARIANT: Final = "VLLM_BATCH_INVARIANT"
"""``1``: only batch-invariant implementations are selected (the switch that vLLM users already set)."""
IR_PRIORITY: Final = "IR_PRIORITY"
"""Priorities: ``a,b`` for every op that has them, ``op=a,b;other=c`` per op; ``op=only:a``, ``op=deny:a``."""
IR_PACKS: Final = "IR_PACKS"
"""Allow-list of distributions whose kernel packs may be loaded, comma separated; unset allows all, empty none."""
IR_TARGET: Final = "IR_TARGET"
"""Pretend to be this target (``sm90``, ``9.0``, ``cpu``): cross-compilation and work without a GPU."""
IR_STRICT: Final = "IR_STRICT"
"""``1``: nothing is compromised on silently. Any fallback raises, as do an op that compiling could not lower and a
contradiction between variables; in batch-invariant mode only certified implementations are selected. In vLLM a start
ends where the adapter fails, or where a provider or a fusion was asked for that does not meet the requirement."""
IR_DISABLE: Final = "IR_DISABLE"
"""``1``: ``native`` everywhere, whatever else is set. Beside ``VLLM_BATCH_INVARIANT=1`` it is a contradiction: a
warning, and an error with ``IR_STRICT=1``."""
IR_LOCK: Final = "IR_LOCK"
"""Path of a lock file made by ``ir-core freeze``; any difference from it is an error."""
IR_CACHE_DIR: Final = "IR_CACHE_DIR"
"""Folder of the certificates; default ``$XDG_CACHE_HOME/ir_core``."""
IR_BATCH_INVARIANT_MIN_SM: Final = "IR_BATCH_INVARIANT_MIN_SM"
"""Lowest SM on which batch-invariant kernels count as supported (read by ir-platform; default 9.0)."""

ALL: Final = (
    VLLM_BATCH_INVARIANT,
    IR_PRIORITY,
    IR_PACKS,
    IR_TARGET,
    IR_STRICT,
    IR_DISABLE,
    IR_LOCK,
    IR_CACHE_DIR,
    IR_BATCH_INVARIANT_MIN_SM,
)

_TRITON_TRUE: Final = frozenset({"1", "true", "yes", "on", "y"})

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


def flag(name: str) -> bool:
    """Value of the boolean variable ``name``; unset and empty are false.

    Raises:
        EnvError: the value is neither a yes nor a no.
    """
    raw = os.environ.get(name, "").strip().lower()
    if raw in _TRUE:
        return True
    if raw in _FALSE:
        return False
    raise EnvError(
        f"{name}={os.environ[name]!r} is not a switch.",
        why="It takes 1/true/yes/on or 0/false/no/off.",
        fix=f"Set {name}=1 or {name}=0, or unset it.",
    )


def text(name: str) -> str | None:
    """Value of the variable ``name``, stripped; ``None`` when it is unset."""
    raw = os.environ.get(name)
    return None if raw is None else raw.strip()


def names(name: str) -> frozenset[str] | None:
    """Comma-separated names in the variable; ``None`` when it is unset, the empty set when it is empty."""
    raw = text(name)
    return None if raw is None else frozenset(part.strip() for part in raw.split(",") if part.strip())


def snapshot() -> dict[str, str]:
    """The project's variables that are set, for ``doctor`` and for cache keys."""
    return {name: os.environ[name] for name in ALL if name in os.environ}


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter: what ``TRITON_INTERPRET`` says, read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRITON_TRUE


def cache_home() -> Path:
    """``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def contradiction(required: str, disabling: str, strict: bool) -> None:
    """Say that ``required`` cannot be met because ``disabling`` is set: a warning, in strict mode an error.

    Raises:
        EnvError: ``strict``.
    """
    what = f"{required}=1 and {disabling}=1 contradict each other."
    why = "Disabled, every op runs its native implementation, which nothing holds to be batch-invariant."
    fix = f"Unset {disabling} to keep the requirement, or unset {required} to give it up."
    if strict:
        raise EnvError(what, why=why, fix=fix)
    warnings.warn(f"{what} {why} {fix}", IrWarning, stacklevel=2)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name among ``known`` that ``name`` was probably meant to be, or ``None``; prefixes are not compared."""
    bare = {other.partition("_")[2] or other: other for other in known}
    found = difflib.get_close_matches(name.partition("_")[2] or name, bare, n=1, cutoff=0.75)
    return bare[found[0]] if found else None


def misspelt() -> dict[str, str]:
    """The variables ``IR_...`` that are set and that nothing here reads, with the one that was probably meant."""
    strange = (name for name in os.environ if name.startswith("IR_") and name not in ALL)
    return {name: meant for name in sorted(strange) if (meant := nearest(name, ALL)) is not None}


def warn_misspelt() -> None:
    """Warn of each variable in :func:`misspelt`."""
    for name, meant in misspelt().items():
        warnings.warn(
            f"The environment variable {name} is set, and nothing reads it. Did you mean {meant}?",
            IrWarning,
            stacklevel=2,
        )
