# SPDX-License-Identifier: Apache-2.0
"""What earlier verifications found out, as selection asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.selection import Evidence
    from ir_core.target import Target


def evidence_for(impl: IrOpImpl, target: Target) -> Evidence | None:
    """The evidence about ``impl`` on ``target``, or ``None`` when nobody verified it there."""
    return None


def refresh() -> None:
    """Forget what was read."""
