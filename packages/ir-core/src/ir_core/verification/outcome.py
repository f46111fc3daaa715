# SPDX-License-Identifier: Apache-2.0
"""What a probe answers: it passed, it failed (with what differs), or it was skipped (with the reason)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ir_core.verification.subject import Difference


@dataclass(frozen=True)
class Passed:
    """The question was asked and nothing is wrong."""


@dataclass(frozen=True)
class Failed:
    """A counterexample.

    Args:
        said: what is wrong, as a clause.
        difference: the first differing element, where two calls were compared.
    """

    said: str
    difference: Difference | None = None


@dataclass(frozen=True)
class Skipped:
    """The question was not asked.

    Args:
        reason: why not.
    """

    reason: str


Outcome: TypeAlias = Passed | Failed | Skipped
PASSED = Passed()
