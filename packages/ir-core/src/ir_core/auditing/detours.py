# SPDX-License-Identifier: Apache-2.0
"""Where the program itself does something else for fewer rows: its steps are run again on the whole run's values.

Another way is no fault if it leads to the same bits. So the shorter run's steps of a detour are replayed, from what
went into them in the whole run, and compared with what the whole run made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ir_core.auditing.alignment import Detour
from ir_core.auditing.calls import Call, Meta, Step
from ir_core.auditing.differences import NONE, Difference, difference
from ir_core.auditing.part import CannotTellError, Part, cut_tensor
from ir_core.auditing.placement import Rows

At = tuple[int, int]
"""A step, and the place among its outputs; the model's inputs are those of step -1."""


@dataclass
class Replay:
    """A detour of a run of ``part.rows`` rows.

    Args:
        wanted: outputs of the whole run that go into it, or that its results are compared with.
        pairs: an output of the whole run, and the one of the detour that stands in its place.
        due: the step of the whole run after which all of them are there.
    """

    detour: Detour
    part: Part
    steps: Sequence[Step]
    externals: Mapping[At, Tensor]
    aligned_back: Mapping[int, int]
    pairs: list[tuple[At, At]]
    wanted: set[At] = field(default_factory=set)
    values: dict[At, tuple[Tensor, Rows | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        start, stop = self.detour.part
        for step in self.steps[start:stop]:
            for source in step.sources.values():
                if not start <= source[0] < stop and (at := self._whole(source)) is not None:
                    self.wanted.add(at)
        for whole, mine in self.pairs:
            self.wanted.add(whole)
            if not start <= mine[0] < stop and (at := self._whole(mine)) is not None:
                self.wanted.add(at)
        self.due = max([self.detour.whole[1] - 1, *(at[0] for at in self.wanted), 0])

    def _whole(self, source: At) -> At | None:
        step = -1 if source[0] < 0 else self.aligned_back.get(source[0])
        return None if step is None else (step, source[1])

    def run(self) -> Difference:
        """How what the detour makes differs from what the whole run made.

        Raises:
            CannotTellError: something that went into it is not known.
        """
        start, stop = self.detour.part
        made: dict[At, Tensor] = {}
        for at in range(start, stop):
            step = self.steps[at]
            leaves = [self._leaf(at, i, leaf, made) for i, leaf in enumerate(step.leaves)]
            call = Call.of(step, leaves)
            for k, out in enumerate(call.effects(call.run())):
                made[at, k] = out
        if not self.pairs:
            raise CannotTellError("what comes out of it is not found again")
        total = NONE
        for whole, mine in self.pairs:
            if whole not in self.values:
                raise CannotTellError("what comes out of it is not found again")
            out = made[mine] if mine in made else self._given(mine, self._meta(mine))
            total += difference(cut_tensor(*self.values[whole], self.part, Meta.of(out)), out)
        return total

    def _meta(self, at: At) -> Meta:
        """Of what an earlier step of the shorter run made."""
        if at[0] < 0:
            raise CannotTellError("it passes an input of the model on")
        return self.steps[at[0]].outputs[at[1]]

    def _given(self, source: At, meta: Meta) -> Tensor:
        """The part's rows of a value of the whole run; a copy, since the detour may overwrite it."""
        whole = self._whole(source)
        if whole is None or whole not in self.values:
            raise CannotTellError("what goes into it comes from another place that differs")
        return cut_tensor(*self.values[whole], self.part, meta, overwritten=True)

    def _leaf(self, at: int, i: int, leaf: Any, made: Mapping[At, Tensor]) -> Any:
        if not isinstance(leaf, Meta):
            return leaf
        source = self.steps[at].sources.get(i)
        if source is None:
            return self.externals[at, i]
        return made[source] if source in made else self._given(source, leaf)


def replays(
    part: Part,
    detours: Sequence[Detour],
    whole: Sequence[Step],
    short: Sequence[Step],
    aligned: Sequence[int | None],
    externals: Mapping[At, Tensor],
    results: tuple[Sequence[At | None], Sequence[At | None]],
) -> list[Replay]:
    """A replay for each detour.

    Args:
        results: where the model's outputs come from, in the whole run and in the shorter one.
    """
    back = {j: i for i, j in enumerate(aligned) if j is not None}
    meetings = [
        (whole[i].sources.get(k), source) for j, i in back.items() for k, source in short[j].sources.items()
    ]
    meetings += [(theirs, mine) for theirs, mine in zip(*results, strict=False) if mine is not None]
    found = []
    for detour in detours:
        pairs = [
            (theirs, mine)
            for theirs, mine in meetings
            if theirs is not None and (theirs[0] in range(*detour.whole) or mine[0] in range(*detour.part))
        ]
        found.append(Replay(detour, part, short, externals, back, list(dict.fromkeys(pairs))))
    return found
