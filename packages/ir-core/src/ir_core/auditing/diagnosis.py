# SPDX-License-Identifier: Apache-2.0
"""Experiments with one call: the same for a part, beside other rows, again? And from how many rows on not?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ir_core.auditing.calls import Call, Step
from ir_core.auditing.differences import NONE, Difference, difference, same_bits
from ir_core.auditing.part import CannotTellError, Part, cut
from ir_core.auditing.placement import Rows

Verdict = Literal["varies", "mixes", "unrepeatable"]


@dataclass(frozen=True)
class Diagnosis:
    """What experiments with a call showed.

    Args:
        verdict: ``varies``: the bits of a row depend on the number of rows, and on nothing else that was tried;
            ``mixes``: they depend on what the other rows hold, at the same shapes; ``unrepeatable``: they are other
            bits when the same call is made again.
        alone: the smaller number of rows of the comparison.
        begins: the smallest number of rows at which the bits are no longer those of ``alone`` rows; ``None`` where
            that could not be tried.
    """

    verdict: Verdict
    alone: int
    begins: int | None


class Experiment:
    """One call of the whole batch and its result.

    Args:
        inputs: where the rows are in each of its leaves.
        before: by position among the leaves, what the call has overwritten.
    """

    def __init__(
        self,
        call: Call,
        result: Any,
        inputs: list[Rows | None],
        batch: int,
        steps: Mapping[int, Step],
        before: Mapping[int, Tensor],
    ) -> None:
        self.inputs, self.batch, self.steps, self.written = inputs, batch, steps, frozenset(before)
        self.outputs = call.effects(result)
        leaves = [before.get(i, leaf) for i, leaf in enumerate(call.leaves)]
        self.call = call.rebuilt(leaves) if before else call
        self.chosen: dict[int, Rows] = {}
        self.compared = set(range(len(self.outputs)))
        if call.may_be_random and any(out.dtype.is_floating_point for out in self.outputs):
            # Attention also returns the state of its random numbers, whether it takes any or not.
            self.compared = {k for k, out in enumerate(self.outputs) if out.dtype.is_floating_point}

    def is_random(self) -> bool:
        """Whether the call gives other bits when it is repeated; the stream of random numbers stays where it is."""
        devices = {out.device for out in self.outputs if out.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            return not self._repeats()

    def compare(self, part: Part, step: Step, placed: list[list[Rows]]) -> Difference:
        """Run the call for ``part`` and say how its result differs from these rows of the whole call's.

        Raises:
            CannotTellError: the call for the part is not known, or where the rows are in the result.
        """
        call = cut(self.call, self.inputs, part, step, self.batch, step)
        try:
            outs = _effects(call)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise CannotTellError(f"it refuses the part: {type(error).__name__}, {reason}") from error
        if len(outs) != len(self.outputs):
            raise CannotTellError("it returns another number of tensors for the part")
        total = NONE
        for k, (whole, out) in enumerate(zip(self.outputs, outs, strict=True)):
            if k not in self.compared:
                continue
            mine, rows = self._of_part(k, whole, out, part, placed[k])
            total += Difference(0, mine.numel(), 0.0, 0) if same_bits(mine, out) else difference(mine, out)
            if rows is not None and placed[k] and rows != placed[k][0]:
                self.chosen[k] = rows
        return total

    def _of_part(
        self, k: int, whole: Tensor, out: Tensor, part: Part, candidates: list[Rows]
    ) -> tuple[Tensor, Rows | None]:
        """The part's rows of a result. Where several places are possible, the one that fits the part's values."""
        if not candidates:
            if whole.shape != out.shape:
                raise CannotTellError(f"where the rows are in a result of shape {tuple(whole.shape)}")
            return whole, None
        if k in self.chosen:
            candidates = [self.chosen[k]]
        elif any(rows is not None and rows.ids == candidates[0].ids for rows in self.inputs):
            candidates = candidates[:1]  # it is as in an input
        takes = [(rows.take(whole, part.start, part.stop), rows) for rows in candidates]
        fitting = [(mine, rows) for mine, rows in takes if mine.shape == out.shape]
        if not fitting:
            raise CannotTellError(f"where the rows are in a result of shape {tuple(whole.shape)}")
        if len(fitting) == 1:
            return fitting[0]
        for mine, rows in fitting:
            if same_bits(mine, out):
                return mine, rows
        shares = [float((mine == out).float().mean()) for mine, _ in fitting]
        best = max(range(len(fitting)), key=shares.__getitem__)
        if shares[best] < 0.5 or shares.count(shares[best]) > 1:
            raise CannotTellError(f"in which of {len(fitting)} ways the rows are in {tuple(whole.shape)}")
        return fitting[best]

    def diagnose(self, part: Part, placed: list[list[Rows]]) -> Diagnosis:
        """Why this part differs, and from how many rows on."""
        if not self._repeats():
            return Diagnosis("unrepeatable", part.rows, None)
        if not self._same_beside_others(part, placed):
            return Diagnosis("mixes", part.rows, None)
        return Diagnosis("varies", part.rows, self._begins(part, placed))

    def _again(self, call: Call) -> list[Tensor]:
        leaves = [leaf.clone() if i in self.written else leaf for i, leaf in enumerate(call.leaves)]
        return _effects(call.rebuilt(leaves))

    def _repeats(self) -> bool:
        outs = self._again(self.call)
        return all(same_bits(self.outputs[k], outs[k]) for k in self.compared)

    def _same_beside_others(self, part: Part, placed: list[list[Rows]]) -> bool:
        """Whether these rows keep their bits when the others are replaced by copies of them, at the same shapes."""
        leaves = list(self.call.leaves)
        for i, rows in enumerate(self.inputs):
            if rows is not None:
                leaves[i] = _crowded(leaves[i], rows, part)
        outs = self._again(self.call.rebuilt(leaves))
        for k, (whole, out) in enumerate(zip(self.outputs, outs, strict=True)):
            rows = self.chosen.get(k) or (placed[k][0] if placed[k] else None)
            one, other = (whole, out) if rows is None else (_rows(t, rows, part) for t in (whole, out))
            if k in self.compared and not same_bits(one, other):
                return False
        return True

    def _begins(self, part: Part, placed: list[list[Rows]]) -> int | None:
        """Bisect for the smallest number of rows, from the part's start, with other bits than the part alone."""
        alike = self.steps[part.rows]
        room = self.batch - part.start
        try:
            alone = _effects(self._at(part, alike))

            def differs(count: int) -> bool:
                more = Part(part.start, part.start + count)
                outs = _effects(self._at(more, alike))
                for k, (few, many) in enumerate(zip(alone, outs, strict=True)):
                    if k not in self.compared:
                        continue
                    rows = self.chosen.get(k) or (placed[k][0] if placed[k] else None)
                    if rows is not None:
                        among = [r for r in rows.ids if more.start <= r < more.stop]
                        many = _pick(many, rows.dim, [i for i, r in enumerate(among) if r < part.stop])
                    if not same_bits(few, many):
                        return True
                return False

            low, high = part.rows, room
            if not differs(high):
                return self.batch if part.start else None
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if differs(middle) else (middle, high)
            return high
        except (CannotTellError, RuntimeError, IndexError, ValueError, TypeError):
            return None  # an operation may refuse shapes that no run has had

    def _at(self, part: Part, alike: Step) -> Call:
        step = self.steps.get(part.rows)
        return cut(self.call, self.inputs, part, step, self.batch, alike)


def _effects(call: Call) -> list[Tensor]:
    return call.effects(call.run())


def _rows(tensor: Tensor, rows: Rows, part: Part) -> Tensor:
    return rows.take(tensor, part.start, part.stop)


def _pick(tensor: Tensor, dim: int, positions: list[int]) -> Tensor:
    return tensor.index_select(dim, torch.tensor(positions, device=tensor.device))


def _crowded(tensor: Tensor, rows: Rows, part: Part) -> Tensor:
    """The tensor with every row outside ``part`` replaced by one of the part's, and the same strides."""
    mine = rows.positions(part.start, part.stop)
    if not mine:
        return tensor
    turn = iter(range(len(rows.ids)))
    source = [
        i if part.start <= row < part.stop else mine[next(turn) % len(mine)] for i, row in enumerate(rows.ids)
    ]
    chosen = tensor.index_select(rows.dim, torch.tensor(source, device=tensor.device))
    dense = torch.empty_like(tensor, memory_format=torch.preserve_format)
    return dense.copy_(chosen) if dense.stride() == tensor.stride() else chosen
