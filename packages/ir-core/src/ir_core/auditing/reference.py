# SPDX-License-Identifier: Apache-2.0
"""The run of the whole batch, in which each operation is also run for parts of the batch and compared.

The parts get the whole run's own values, so a difference never reaches the next operation, and nothing has to be kept:
what a part needs is in the arguments at that moment. How the operation would be called for fewer rows (shapes, strides,
plain arguments, and which operation at all) is known from a run of so many rows that was written down before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.auditing.calls import Call, Meta, Step
from ir_core.auditing.detours import Replay
from ir_core.auditing.diagnosis import Diagnosis, Experiment
from ir_core.auditing.differences import Difference
from ir_core.auditing.part import CannotTellError, Part
from ir_core.auditing.place import Place
from ir_core.auditing.placement import Ids, Rows, factors
from ir_core.auditing.storages import Storages
from ir_core.auditing.watch import Watch

_EMPTY: Final = (
    "aten.empty",
    "aten.new_empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty_strided",
)
"""What is in their results is left over from before."""


_PICKS: Final = ("aten.index", "aten.index_select", "aten.nonzero")
"""They pick positions, so their results belong to the rows of those."""
_MOVES: Final = ("aten.index", "aten.index_select", "aten.gather", "aten.take")
"""They compute nothing, so where their indices count rows there is nothing to judge."""


@dataclass(frozen=True)
class Event:
    """One call whose bits are not those of the parts.

    Args:
        parts: for each part that differs, by how much.
        shapes: shapes of the tensors among its arguments, in the whole call.
        whole: whether all its results are whole numbers.
    """

    name: str
    func: str
    place: Place
    step: int
    parts: Mapping[Part, Difference]
    shapes: tuple[tuple[int, ...], ...]
    diagnosis: Diagnosis
    whole: bool


class Reference(Watch):
    """Judges each operation of one run.

    Args:
        batch: rows of the whole batch.
        parts: which rows are also run alone.
        steps: the steps of the run of the whole batch, as it was written down.
        shorter: by number of rows, the steps of such a run, aligned: ``None`` where it did something else.
        replays: where these do something else.
        advance: called after each operation.
    """

    def __init__(
        self,
        model: object,
        *,
        batch: int,
        parts: Sequence[Part],
        steps: Sequence[Step],
        shorter: Mapping[int, Sequence[Step | None]],
        replays: Sequence[Replay],
        advance: Callable[[str], None],
    ) -> None:
        super().__init__(model)
        self.batch, self.parts, self.steps, self.shorter = batch, parts, steps, shorter
        self.storages = Storages()
        self.at = 0
        self.events: list[Event] = []
        self.random: list[tuple[str, Place]] = []
        self.drifting: list[tuple[str, Place]] = []
        self.state: list[tuple[str, Place]] = []
        self.untold: list[tuple[str, Place, str]] = []
        self.judged = 0
        self.strayed: Place | None = None
        self.detours: list[tuple[Replay, Difference]] = []
        self._replays = [*replays]
        self._advance = advance
        self._diagnoses: dict[Any, Diagnosis] = {}

    def see(self, call: Call) -> Any:
        at, self.at = self.at, self.at + 1
        known = at < len(self.steps) and self.steps[at].name == call.name
        if not known and self.strayed is None:
            self.strayed = call.place
        steps = {
            rows: step
            for rows, aligned in self.shorter.items()
            if known and self.strayed is None and (step := aligned[at]) is not None
        }
        drifts = known and _drifts(call, self.steps[at])
        if drifts:
            self.drifting.append((call.name, call.place))
        inputs = [self._rows(leaf) for leaf in call.leaves]
        before = {i: call.leaves[i].clone() for i in call.written()}
        owners = {leaf.untyped_storage()._cdata for leaf in call.leaves if _plain(leaf)}
        for i in before:
            if _plain(call.leaves[i]) and not self.storages.made_here(call.leaves[i]):
                self.state.append((call.name, call.place))
        result = call.run()
        outputs = call.effects(result)
        fresh = [not _plain(out) or out.untyped_storage()._cdata not in owners for out in outputs]
        picked = self._picked(call, inputs, outputs)
        placed = [self._follow(out, k, steps, inputs, fresh[k], picked) for k, out in enumerate(outputs)]
        self._mark(call, outputs, placed, inputs)
        # A view computes nothing.
        computes = bool(before) or any(fresh)
        if computes and not drifts and call.name not in _EMPTY and any(_plain(leaf) for leaf in call.leaves):
            self._judge(Experiment(call, result, inputs, self.batch, steps, before), placed, at)
        self._keep(at, outputs)
        self._advance(call.place.module)
        return result

    def begin(self, inputs: Sequence[Tensor], placed: Sequence[Rows | None]) -> None:
        """Learn where the rows are in the model's inputs."""
        for tensor, rows in zip(inputs, placed, strict=True):
            self.storages.meet(tensor, rows, made=True)
        self._keep(-1, inputs)

    def _keep(self, at: int, outputs: Sequence[Tensor]) -> None:
        """Keep what a detour needs, and judge the detours that have all of it."""
        for replay in [*self._replays]:
            for k, out in enumerate(outputs):
                if (at, k) in replay.wanted:
                    # A copy: a later operation may overwrite it, and a result that is held as it is gets detached
                    # by autograd, which would be one operation more than in the run without an audit.
                    replay.values[at, k] = out.clone(), self._rows(out)
            if replay.due == at:
                self._replays.remove(replay)
                step = self.steps[min(replay.detour.whole[0], len(self.steps) - 1)]
                try:
                    self.detours.append((replay, replay.run()))
                except (CannotTellError, RuntimeError) as error:
                    text = f"a run of {replay.part.rows} rows does something else, {error}"
                    self.untold.append((step.name, step.place, text))
                replay.values.clear()

    # Where the rows are.

    def _rows(self, leaf: Any) -> Rows | None:
        return self.storages.rows(leaf) if _plain(leaf) else None

    def _follow(
        self,
        out: Tensor,
        k: int,
        steps: Mapping[int, Step],
        inputs: list[Rows | None],
        fresh: bool,
        picked: Rows | None,
    ) -> list[Rows]:
        """Where the rows are in a result: the likeliest first, nothing if it does not grow with the batch."""
        if not _plain(out):
            return []
        metas = {rows: step.outputs[k] for rows, step in steps.items() if k < len(step.outputs)}
        told = self._rows(out)
        if told is not None and all(_fits(told, meta, rows) for rows, meta in metas.items()):
            return [told]
        candidates = [picked] if picked else self._grown(out, metas.values(), inputs)
        self.storages.meet(out, candidates[0] if candidates else None, made=fresh)
        return candidates

    def _picked(self, call: Call, inputs: list[Rows | None], outputs: list[Tensor]) -> Rows | None:
        """Where the rows are after positions along them were picked, as a router picks the tokens of an expert."""
        if call.name not in _PICKS or inputs[0] is None:
            return None
        rows = inputs[0]
        if call.name == "aten.nonzero":
            return Rows(0, Ids(rows.ids[i] for i in outputs[0][:, rows.dim].tolist()))
        if call.name == "aten.index_select":
            at, index = call.leaves[1] % call.leaves[0].dim(), call.leaves[2]
        else:
            given = [(i, index) for i, index in enumerate(call.args[1]) if index is not None]
            if len(given) != 1:
                return None
            at, index = given[0]
        if at != rows.dim or index.dim() != 1 or not _whole(index):
            return None
        return Rows(at, Ids(rows.ids[i] for i in index.tolist()))

    def _grown(self, out: Tensor, metas: Iterable[Meta], inputs: list[Rows | None]) -> list[Rows]:
        dims = {
            dim
            for meta in metas
            if len(meta.shape) == out.dim()
            for dim in range(out.dim())
            if meta.shape[dim] != out.shape[dim]
        }
        if len(dims) != 1:
            return []
        dim = dims.pop()
        size = out.shape[dim]
        same = [rows for rows in inputs if rows is not None and len(rows.ids) == size]
        same.sort(
            key=lambda rows: rows.dim != dim
        )  # an input with the rows in this very dimension tells most
        found = dict.fromkeys([rows.ids for rows in same] + list(factors(size, self.batch)))
        return [Rows(dim, ids) for ids in found]

    def _mark(
        self, call: Call, outputs: list[Tensor], placed: list[list[Rows]], inputs: list[Rows | None]
    ) -> None:
        """Remember which results speak of the batch as a whole: sums over it, and numbers that count its rows."""
        of_batch = any(_plain(leaf) and self.storages.of_batch(leaf) for leaf in call.leaves)
        counting = any(self._counts(leaf) for leaf in call.leaves)
        positions = call.name == "aten.arange"
        for out, rows in zip(outputs, placed, strict=True):
            over = (not rows or call.name == "aten.nonzero") and (of_batch or any(inputs))
            if _plain(out) and (over or (_whole(out) and rows and (counting or positions))):
                self.storages.mark(out)

    def _counts(self, leaf: Any) -> bool:
        """Whether these are whole numbers that count rows of the batch: for fewer rows they would be others."""
        return _plain(leaf) and _whole(leaf) and self.storages.of_batch(leaf)

    # Is it the same for a part?

    def _judge(self, experiment: Experiment, placed: list[list[Rows]], at: int) -> None:
        call = experiment.call
        if call.may_be_random and experiment.is_random():
            self.random.append((call.name, call.place))
            return
        if not any(experiment.inputs) and not any(placed):
            if any(_grows(call, step) for step in experiment.steps.values()):
                self.untold.append((call.name, call.place, "where the rows are in its arguments"))
            return
        counting = [self._counts(leaf) for leaf in call.leaves]
        others = any(rows and not counts for rows, counts in zip(experiment.inputs, counting, strict=True))
        if call.name == "aten.nonzero":
            return  # it computes nothing, and its positions are those of the whole batch
        if any(counting) and others and not _pointwise(call):
            if call.name not in _MOVES:
                reason = "whole numbers among its arguments count rows of the whole batch"
                self.untold.append((call.name, call.place, reason))
            return
        found: dict[Part, Difference] = {}
        reason, compared = "", False
        for part in self.parts:
            if (step := experiment.steps.get(part.rows)) is not None:
                try:
                    by = experiment.compare(part, step, placed)
                except CannotTellError as error:
                    reason = str(error)
                    continue
                compared = True
                if by.elements:
                    found[part] = by
        # The last rows may be another number of tokens for an expert than the first, whose run was written down.
        if reason and not compared:
            self.untold.append((call.name, call.place, reason))
        self.judged += compared
        for k, rows in experiment.chosen.items():
            self.storages.meet(experiment.outputs[k], rows, made=True)
        if found:
            shapes = tuple(tuple(leaf.shape) for leaf in call.leaves if isinstance(leaf, Tensor))
            plain = tuple(leaf for leaf in call.leaves if isinstance(leaf, int | float | str | bool))
            key = (str(call.func), shapes, plain, tuple(found))
            if key not in self._diagnoses:
                smallest = min(found, key=lambda part: (part.rows, part.start))
                self._diagnoses[key] = experiment.diagnose(smallest, placed)
            diagnosis = self._diagnoses[key]
            for out in experiment.outputs:
                if diagnosis.verdict == "mixes" and _whole(out):
                    self.storages.mark(out)
            whole = all(_whole(out) for out in experiment.outputs)
            self.events.append(
                Event(call.name, str(call.func), call.place, at, found, shapes, diagnosis, whole)
            )


def _drifts(call: Call, before: Step) -> bool:
    """Whether its plain arguments are others than the last time the same batch was run."""
    return any(
        leaf is not told and leaf != told and leaf == leaf  # NaN is unequal to itself
        for leaf, told in zip(call.leaves, before.leaves, strict=False)
        if not isinstance(leaf, Tensor) and not isinstance(told, Meta)
    )


def _grows(call: Call, step: Step) -> bool:
    """Whether an argument has another shape in a run of fewer rows."""
    return any(
        isinstance(leaf, Tensor) and isinstance(meta, Meta) and tuple(leaf.shape) != meta.shape
        for leaf, meta in zip(call.leaves, step.leaves, strict=False)
    )


def _pointwise(call: Call) -> bool:
    return torch.Tag.pointwise in getattr(call.func, "tags", ())


def _whole(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, which may count or point at rows."""
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool)


def _plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def _fits(rows: Rows, meta: Meta, few: int) -> bool:
    return len(meta.shape) > rows.dim and rows.count(0, few) == meta.shape[rows.dim]
