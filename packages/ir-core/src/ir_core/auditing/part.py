# SPDX-License-Identifier: Apache-2.0
"""A call as it would be for some rows alone: the whole call's own values, at the part's shapes and strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.auditing.calls import Call, CompiledGraph, Meta, Step
from ir_core.auditing.placement import Rows

_ALIGNMENT: Final = 64
"""Bytes. torch's CPU allocator aligns to 64 and CUDA's to 512; kernels look at 16, so a view off 64 is copied."""


class CannotTellError(Exception):
    """The audit does not know how this call would be for fewer rows; the message says why."""


@dataclass(frozen=True)
class Part:
    """Rows ``start`` up to ``stop``, without it, of a batch."""

    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


def cut(call: Call, rows: list[Rows | None], part: Part, step: Step | None, batch: int, alike: Step) -> Call:
    """The call for ``part``.

    Args:
        call: the call for the whole batch.
        rows: where the rows are in each of its leaves.
        step: the same call as a run of ``part.rows`` rows made it. Without one, shapes follow from the rows, and plain
            numbers are taken to grow evenly between ``alike`` and the whole batch.
        batch: rows of the whole batch.
        alike: the same call in a run of fewer rows.

    Raises:
        CannotTellError: shapes or arguments do not fit together.
    """
    told = step or alike
    if told.spec != call.spec:
        raise CannotTellError("its arguments have another structure")
    written = call.written()
    leaves: list[Any] = []
    for i, leaf in enumerate(call.leaves):
        expected = told.leaves[i]
        if not isinstance(leaf, Tensor):
            leaves.append(
                expected if step is not None else _between(leaf, expected, alike, rows, call, part, batch)
            )
            continue
        if not isinstance(expected, Meta):
            raise CannotTellError("a tensor of the whole batch is none in the part")
        meta = expected if step is not None else None
        leaves.append(cut_tensor(leaf, rows[i], part, meta, overwritten=i in written))
    return call.rebuilt(leaves, told.func if step is not None else _function(call, told))


def _function(call: Call, told: Step) -> Any:
    if isinstance(call.func, CompiledGraph):
        raise CannotTellError("a compiled graph is made for the numbers of rows that were run")
    return call.func


def cut_tensor(
    tensor: Tensor, rows: Rows | None, part: Part, meta: Meta | None, *, overwritten: bool = False
) -> Tensor:
    """The part's rows of a tensor, laid out as ``meta`` says; a copy of its own where it will be overwritten.

    Raises:
        CannotTellError: the rows that were followed do not give that shape.
    """
    if tensor.layout != torch.strided:
        raise CannotTellError(f"a {str(tensor.layout).removeprefix('torch.')} tensor")
    taken = tensor if rows is None else rows.take(tensor, part.start, part.stop)
    if meta is None:
        return torch.empty_like(taken).copy_(taken) if rows is not None or overwritten else taken
    if taken.shape != meta.shape:
        taken = _shrunk(taken, meta)
    stands = taken.stride() == meta.stride and taken.data_ptr() % _ALIGNMENT == 0
    return taken if (stands or taken is tensor) and not overwritten else _laid_out(taken, meta.stride)


def _shrunk(tensor: Tensor, meta: Meta) -> Tensor:
    """One value, expanded over the batch, is the same value expanded over fewer rows."""
    if tensor.dim() == len(meta.shape):
        for dim, (have, want) in enumerate(zip(tensor.shape, meta.shape, strict=True)):
            if want < have and tensor.stride(dim) == 0:
                tensor = tensor.narrow(dim, 0, want)
    if tensor.shape != meta.shape:
        raise CannotTellError("an input has another shape in the part than the rows that were followed give")
    return tensor


def _laid_out(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A copy with these strides."""
    once = tensor
    for dim, step in enumerate(stride):
        if step == 0 and tensor.shape[dim] > 1:
            once = once.narrow(dim, 0, 1)
    copy = torch.empty_strided(once.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(once).expand(tensor.shape)


def _between(
    whole: Any, part: Any, alike: Step, rows: list[Rows | None], call: Call, wanted: Part, batch: int
) -> Any:
    """A plain argument for a number of rows that was not run."""
    if whole == part or type(whole) is not int or type(part) is not int:
        return part
    counts = [
        (leaf.shape[r.dim], alike.leaves[i].shape[r.dim], r)
        for i, leaf in enumerate(call.leaves)
        if (r := rows[i]) is not None and isinstance(alike.leaves[i], Meta)
    ]
    for many, few, placed in counts:
        if many != few and (whole - part) % (many - few) == 0:
            return part + (whole - part) // (many - few) * (placed.count(wanted.start, wanted.stop) - few)
    raise CannotTellError("a number among its arguments changes with the rows")
