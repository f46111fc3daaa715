# SPDX-License-Identifier: Apache-2.0
"""Which step of a run of fewer rows is which step of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from ir_core.auditing.calls import Step

_LOOKS: Final = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten._unique2")
"""Operations whose results a program can decide by."""


@dataclass(frozen=True)
class Detour:
    """Steps in which two runs of one program did different things.

    Args:
        whole: from which step, and up to which without it, of the whole run.
        part: the same of the shorter run.
        by_contents: whether the program looks at values there, and so goes by what the batch holds.
    """

    whole: tuple[int, int]
    part: tuple[int, int]
    by_contents: bool = False


def align(whole: Sequence[Step], part: Sequence[Step]) -> tuple[list[int | None], list[Detour]]:
    """For each step of the whole run the index of its counterpart, and where there are none.

    Two steps are the same when operation, module, source line, and numbers that are not whole are.
    """
    left, right = [step.key for step in whole], [step.key for step in part]
    if left == right:
        return list(range(len(whole))), []
    found: list[int | None] = [None] * len(whole)
    detours: list[Detour] = []
    lines: set[tuple[str, int]] = set()
    for tag, i, stop, j, until in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            found[i:stop] = range(j, until)
        else:
            around = [*whole[max(i - 1, 0) : stop], *part[max(j - 1, 0) : until]]
            detours.append(Detour((i, stop), (j, until), any(step.name in _LOOKS for step in around)))
            if detours[-1].by_contents:
                lines |= {(step.place.module, step.place.line) for step in around}
    # A loop over what a router chose, say: the same lines run for other experts, and nothing tells which is which.
    for i, step in enumerate(whole):
        if (step.place.module, step.place.line) in lines:
            found[i] = None
    return found, detours
