# SPDX-License-Identifier: Apache-2.0
"""``audit``: a batch against parts of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ir_core.auditing import compiled, conclusions
from ir_core.auditing.alignment import Detour, align
from ir_core.auditing.calls import Step
from ir_core.auditing.detours import Replay, replays
from ir_core.auditing.differences import Difference, difference
from ir_core.auditing.inputs import Inputs
from ir_core.auditing.part import Part
from ir_core.auditing.reference import Reference
from ir_core.auditing.report import Report
from ir_core.auditing.running import SEED, Progress, isolated, quiet, result_tensors
from ir_core.auditing.trace import Trace
from ir_core.errors import AuditError


def audit(
    model: Callable[..., Any],
    inputs: Any,
    *,
    rows: Sequence[int] = (1, 2, 8),
    batch_dim: int | Sequence[int | None] | None = 0,
    mode: Literal["batch", "compiled"] = "batch",
    progress: Progress | None = None,
) -> Report:
    """Find every torch operation whose bits depend on how many rows are in the batch.

    The model runs on the whole batch, and on parts of it; each operation is then compared with itself on the parts'
    rows of the same inputs, so a difference in one is none in the next. Without gradients.

    Args:
        model: any callable on tensors, on any device. It is called several times, on copies of the inputs.
        inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        rows: sizes of the parts; each is taken from the first rows and from the last.
        batch_dim: the dimension of the batch, of all tensors or of each in order; ``None`` for a shared tensor.
        mode: ``batch`` (alone against batch), or ``compiled``: the model as Inductor compiles it against the model
            itself, both on the whole batch.
        progress: called with the share that is done and the module that runs.

    Returns:
        A :class:`Report`: its ``first`` is where it begins, and its ``explain()`` is the text.

    Raises:
        AuditError: the inputs do not say how many rows there are, or there are too few of them.
    """
    given = Inputs(inputs, batch_dim)
    if mode == "compiled":
        return compiled.audit_compiled(model, given, progress or quiet)
    if mode != "batch":
        raise AuditError(f"There is no mode {mode!r}.", fix="The modes are 'batch' and 'compiled'.")
    sizes = tuple(sorted({int(n) for n in rows if 0 < n < given.batch}))
    if not sizes:
        raise AuditError(
            f"No part of {given.batch} rows can be taken with rows={tuple(rows)}.",
            fix="Give inputs of more rows than the parts have: 16 or 32 show most.",
        )
    with isolated(given.tensors):
        return _audit(model, given, sizes, progress or quiet)


def _audit(model: Callable[..., Any], given: Inputs, sizes: tuple[int, ...], progress: Progress) -> Report:
    begun = time.perf_counter()
    parts = [part for n in sizes for part in dict.fromkeys((Part(0, n), Part(given.batch - n, given.batch)))]
    own = sum(sizes) / given.batch
    share = _Shares(progress, (1.0, own, 1.0 + 2 * own))
    whole, plain, seconds = traced(model, given, Part(0, given.batch))
    share.next(sum(sizes) / given.batch * len(whole.steps))
    shorter: dict[int, list[Step | None]] = {}
    detours: list[Replay] = []
    by_contents: dict[int, list[Detour]] = {}
    outputs: dict[int, list[Tensor]] = {}
    for n in sizes:
        part, (short, outputs[n], _) = Part(0, n), traced(model, given, Part(0, n))
        aligned, apart = align(whole.steps, short.steps)
        shorter[n] = [None if at is None else short.steps[at] for at in aligned]
        results = whole.result_sources(plain), short.result_sources(outputs[n])
        by_contents[n] = [detour for detour in apart if detour.by_contents]
        apart = [detour for detour in apart if not detour.by_contents]
        detours += replays(part, apart, whole.steps, short.steps, aligned, short.externals, results)
        share.done(len(whole.steps) * n / given.batch, "")
    share.next(len(whole.steps))
    copies, args, kwargs = given.of(Part(0, given.batch))
    reference = Reference(
        model,
        batch=given.batch,
        parts=parts,
        steps=whole.steps,
        shorter=shorter,
        replays=detours,
        advance=lambda doing: share.done(1, doing),
    )
    reference.begin(copies, given.rows())
    torch.manual_seed(SEED)
    with reference.running():
        again = result_tensors(model(*args, **kwargs))
    found = _outputs(reference, again, outputs)
    return conclusions.report(
        reference,
        sizes=sizes,
        ways=lambda n: _detours_at(model, given, whole, n),
        by_contents=by_contents,
        outputs=found,
        changed_again=_differ(plain, again),
        device=given.tensors[0].device,
        seconds=(time.perf_counter() - begun, seconds),
    )


def traced(model: Callable[..., Any], given: Inputs, part: Part) -> tuple[Trace, list[Tensor], float]:
    """What was written down, results and seconds of a run of these rows."""
    copies, args, kwargs = given.of(part)
    trace = Trace(model, copies)
    torch.manual_seed(SEED)
    begun = time.perf_counter()
    with trace.running():
        result = result_tensors(model(*args, **kwargs))
    if copies[0].device.type == "cuda":
        torch.cuda.synchronize(copies[0].device)
    return trace, result, time.perf_counter() - begun


def _detours_at(model: Callable[..., Any], given: Inputs, whole: Trace, rows: int) -> list[Detour]:
    short, _, _ = traced(model, given, Part(0, rows))
    return align(whole.steps, short.steps)[1]


def _outputs(
    reference: Reference, whole: list[Tensor], shorter: Mapping[int, list[Tensor]]
) -> dict[int, Difference]:
    """For each number of rows: how the model's own outputs differ from the first rows of the batch's."""
    found = {}
    for n, outs in shorter.items():
        total = Difference(0, 0, 0.0, 0)
        for many, few in zip(whole, outs, strict=False):
            rows = reference.storages.rows(many)
            mine = many if rows is None else rows.take(many, 0, n)
            if mine.shape == few.shape and mine.dtype == few.dtype:
                total += difference(mine, few)
        found[n] = total
    return found


def _differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(
        a.shape != b.shape or a.dtype != b.dtype or difference(a, b).elements > 0
        for a, b in zip(one, other, strict=False)
    )


class _Shares:
    """Turns operations done into a share of the whole, over phases of known weight."""

    def __init__(self, progress: Progress, weights: tuple[float, ...]) -> None:
        self._progress, self._weights, self._phase, self._at, self._of = progress, weights, 0, 0.0, 1.0

    def next(self, operations: float) -> None:
        """The next phase begins, and has so many operations."""
        self._phase, self._at, self._of = self._phase + 1, 0.0, max(operations, 1.0)

    def done(self, operations: float, doing: str) -> None:
        """So many more are done."""
        self._at += operations
        before = sum(self._weights[: self._phase])
        here = self._weights[self._phase] * min(self._at / self._of, 1.0)
        self._progress((before + here) / sum(self._weights), doing)
