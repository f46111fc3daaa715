# SPDX-License-Identifier: Apache-2.0
"""The environment variables that this package reads, each in one way.

``ir_core.env`` documents them for users. This package reads those that concern devices itself, since it is below
ir-core; a test at the root of the repository holds the two readings to one grammar.
"""

from __future__ import annotations

import os
from typing import Final

IR_TARGET: Final = "IR_TARGET"
IR_BATCH_INVARIANT_MIN_SM: Final = "IR_BATCH_INVARIANT_MIN_SM"

_TRITON_TRUE: Final = frozenset({"1", "true", "yes", "on", "y"})


def text(name: str) -> str | None:
    """Value of the variable ``name``, stripped; ``None`` when it is unset."""
    raw = os.environ.get(name)
    return None if raw is None else raw.strip()


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter: what ``TRITON_INTERPRET`` says, read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRITON_TRUE
