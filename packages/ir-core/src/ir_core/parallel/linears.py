# SPDX-License-Identifier: Apache-2.0
"""Linear layers that are split over ranks, as functions: bits that do not depend on the number of ranks.

The backward runs under the policy of the forward, like that of an op (``autograd.py``). It is not recorded itself:
second derivatives through a sum over ranks are refused by torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ir_core import ops, policy
from ir_core.errors import ArgumentError
from ir_core.ops.chunks import CHUNKS, STEP
from ir_core.parallel.summing import ordered_sum, ranks_of


def row_parallel_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """``x @ weight.T + bias`` where each rank has a part of K; the whole result on every rank.

    The bits are those of ``linear`` in the order ``chain16x8`` on the whole matrices, for 1, 2, 4 and 8 ranks alike.
    So are the gradients': that of ``x`` is this rank's columns of ``linear(grad, weight.T)``, that of the weight this
    rank's columns of ``linear(grad.T, x.T)``.

    Args:
        x: fp16, bf16, fp32 or fp64 ``[..., K / ranks]``: the columns of this rank.
        weight: of x's dtype, ``[N, K / ranks]``.
        bias: of x's dtype, ``[N]``, the same on all ranks, or ``None``. It is added once.
        group: the ranks; by default all.

    Returns:
        ``[..., N]``, of x's dtype.

    Raises:
        ArgumentError: another number of ranks than 1, 2, 4 or 8, or a K that has no whole chunks on each.
    """
    chunks = _chunks(x.shape[-1], group, "the columns of 'x'")
    part = ops.linear_partial(x, weight, chunks)
    result: Tensor = _Sum.apply(part, bias, x.dtype, group)  # type: ignore[no-untyped-call]
    return result


def column_parallel_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """``x @ weight.T + bias`` where each rank has some of the N outputs, and returns those.

    Each output is a ``linear`` of whole rows, in whatever order the policy gives it, so nothing needs to be summed. The
    gradient of ``x`` is a sum over the outputs, and so over ranks: it has the order ``chain16x8``, also on one rank.

    Args:
        x: fp16, bf16, fp32 or fp64 ``[..., K]``, the same on all ranks.
        weight: of x's dtype, ``[N / ranks, K]``: the outputs of this rank.
        bias: of x's dtype, ``[N / ranks]``, or ``None``.
        group: the ranks; by default all.

    Returns:
        ``[..., N / ranks]``, of x's dtype.

    Raises:
        ArgumentError: another number of ranks than 1, 2, 4 or 8; where a gradient of ``x`` is recorded also an N that
            has no whole chunks on each rank.
    """
    ranks_of(group)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))):
        return ops.linear(x, weight, bias)  # type: ignore[no-any-return]
    if x.requires_grad:
        _chunks(weight.shape[0], group, "the rows of 'weight'")
    result: Tensor = _ColumnLinear.apply(x, weight, bias, group)  # type: ignore[no-untyped-call]
    return result


def _chunks(length: int, group: dist.ProcessGroup | None, what: str) -> int:
    """How many of the 8 chunks a rank has, of a sum of which it holds ``length`` terms."""
    ranks = ranks_of(group)
    chunks = CHUNKS // ranks
    if ranks > 1 and length % (chunks * STEP):
        raise ArgumentError(
            f"{what[0].upper()}{what[1:]} are {length} on each of {ranks} ranks, which is no multiple of "
            f"{chunks * STEP}.",
            why=f"The sum over {ranks * length} terms has 8 chunks of a multiple of 16, and a rank needs whole ones.",
            fix="Pad them with zeros so that all ranks together have a multiple of 128.",
        )
    return chunks


def _of_rows(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x`` over all rows: the gradient of a weight, as that of ``linear``."""
    rows = math.prod(x.shape[:-1])
    columns = grad.reshape(rows, grad.shape[-1]).T
    found: Tensor = ops.linear(columns, x.reshape(rows, x.shape[-1]).T)
    return found


def _of_bias(grad: Tensor) -> Tensor:
    return _of_rows(grad, grad.new_ones((*grad.shape[:-1], 1))).squeeze(1)


class _Sum(torch.autograd.Function):
    """The end of a row-parallel layer. Every rank has the whole result, and so the whole gradient of its part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, bias: Tensor | None, dtype: torch.dtype, group: Any) -> Tensor:
        ctx.policy, ctx.dtype = policy.current(), part.dtype
        return ordered_sum(part, bias=bias, dtype=dtype, group=group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with policy.scope(ctx.policy):
            of_bias = _of_bias(grad) if ctx.needs_input_grad[1] else None
        return grad.to(ctx.dtype), of_bias, None, None


class _ColumnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
        ctx.policy, ctx.group = policy.current(), group
        ctx.save_for_backward(x, weight)
        return ops.linear(x, weight, bias)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        with policy.scope(ctx.policy):
            if ctx.needs_input_grad[0]:
                part = ops.linear_partial(grad, weight.T, CHUNKS // ranks_of(ctx.group))
                of_x = ordered_sum(part, dtype=x.dtype, group=ctx.group)
            if ctx.needs_input_grad[1]:
                of_weight = _of_rows(grad, x)
            if ctx.needs_input_grad[2]:
                of_bias = _of_bias(grad)
        return of_x, of_weight, of_bias, None
