# SPDX-License-Identifier: Apache-2.0
"""Which step of a run of fewer rows is which step of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from ir_core.auditing.calls import Step


@dataclass(frozen=True)
class Detour:
    """Steps in which two runs of one program did different things.

    Args:
        whole: from which step, and up to which without it, of the whole run.
        part: the same of the shorter run.
    """

    whole: tuple[int, int]
    part: tuple[int, int]


def align(whole: Sequence[Step], part: Sequence[Step]) -> tuple[list[int | None], list[Detour]]:
    """For each step of the whole run the index of its counterpart, and where there are none.

    Two steps are the same when operation, module, source line, and numbers that are not whole are.
    """
    left, right = [step.key for step in whole], [step.key for step in part]
    if left == right:
        return list(range(len(whole))), []
    found: list[int | None] = [None] * len(whole)
    detours = []
    for tag, i, stop, j, until in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            found[i:stop] = range(j, until)
        else:
            detours.append(Detour((i, stop), (j, until)))
    return found, detours
