# SPDX-License-Identifier: Apache-2.0
"""The product of two batches of matrices, ``x @ weight.mT``: ``linear`` with a weight matrix of its own for each batch.

Its orders are those of ``linear``, by dtype: each output sums products of a row of ``x`` and one of ``weight`` over k.
The gradient of ``x`` is ``bmm(grad, weight.mT)`` and that of ``weight`` is ``bmm(grad.mT, x.mT)``, under the policy of
the forward. The first does not depend on the number of rows of ``x``, the second sums over them, ascending.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.op import register_op
from ir_core.ops.arguments import wanted
from ir_core.ops.matmul import ORDERS, REFERENCES
from ir_core.ops.matmul import linear as _linear

ROWS: Final = 3
"""Rows of each matrix that the input generator makes; how many there are changes no bit."""


@register_op(activations=["x", "weight"], has_reduction=True, orders=ORDERS)
def bmm(x: Tensor, weight: Tensor) -> Tensor:
    """The product of each matrix of ``x`` with the matrix of ``weight`` at its place: ``x @ weight.mT``.

    Args:
        x: fp16, bf16, fp32 or fp64 ``[..., M, K]``, any strides; any dimension may be 0.
        weight: of x's dtype, ``[..., N, K]`` with the leading dimensions of ``x``, any strides.

    Returns:
        ``[..., M, N]``, of x's dtype, contiguous.

    Raises:
        ArgumentError: another dtype, or matrices that do not fit.
    """
    check_batch(x, weight)
    return torch.matmul(x, weight.mT).contiguous()


@bmm.register_check
def check(x: Tensor, weight: Tensor) -> None:
    """Refuse what is no call of ``bmm``; given tensors or their facts (of which the leading dimensions are none)."""
    if x.dtype not in REFERENCES:
        raise ArgumentError(
            f"bmm takes float16, bfloat16, float32 and float64, and 'x' is {x.dtype}.",
            why="An order is defined for each of these.",
            fix="Convert it first.",
        )
    if weight.dtype != x.dtype:
        raise ArgumentError(
            f"bmm: 'weight' is {weight.dtype}, and 'x' is {x.dtype}.",
            why="The order of the sum is that of one dtype.",
            fix="Convert one of them: weight.to(x.dtype).",
        )
    if x.ndim < 2 or weight.ndim != x.ndim:
        raise ArgumentError(
            f"bmm takes matrices: 'x' has {x.ndim} dimensions and 'weight' has {weight.ndim}.",
            why="Each matrix of 'x' is multiplied with the matrix of 'weight' at its place; nothing is broadcast.",
            fix="Give both [B, rows, K]; expand one that is the same for all: weight.expand(B, -1, -1).",
        )
    if weight.shape[-1] != x.shape[-1]:
        raise ArgumentError(
            f"bmm: the rows of 'weight' have {weight.shape[-1]} elements, and those of 'x' have {x.shape[-1]}.",
            why="Each row of a weight is multiplied with each row of the 'x' at its place.",
            fix="For x @ y with y of [B, K, N], give y.mT.",
        )


def check_batch(x: Tensor, weight: Tensor) -> None:
    """Refuse batches of other shapes; given tensors. Implementations ask, since facts do not tell the batch."""
    if x.shape[:-2] != weight.shape[:-2]:
        raise ArgumentError(
            f"bmm: 'x' has the batch {list(x.shape[:-2])}, and 'weight' has {list(weight.shape[:-2])}.",
            why="Each matrix of 'x' is multiplied with the matrix of 'weight' at its place; nothing is broadcast.",
            fix="Expand the one that is the same for all: weight.expand(x.shape[0], -1, -1).",
        )


def bmm_portable(x: Tensor, weight: Tensor) -> Tensor:
    """The order's reference, matrix by matrix. Opaque, so that no compiler contracts, splits or reorders it."""
    check_batch(x, weight)
    lead, (rows, k), columns = x.shape[:-2], x.shape[-2:], weight.shape[-2]
    batch = math.prod(lead)
    a, b = x.reshape(batch, rows, k), weight.reshape(batch, columns, k)
    product = REFERENCES[x.dtype]
    out = x.new_empty((batch, rows, columns))
    for each in range(batch):
        out[each] = product(a[each], b[each])
    return out.reshape(*lead, rows, columns)


@bmm.register_fake
def _bmm_fake(x: Tensor, weight: Tensor) -> Tensor:
    check_batch(x, weight)
    return x.new_empty((*x.shape[:-1], weight.shape[-2]))


@bmm.register_backward
def _bmm_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    x, weight = args
    grad = grads[0]
    if grad is None:
        return None, None
    return (
        bmm(grad, weight.mT) if wanted(x) else None,
        bmm(grad.mT, x.mT) if wanted(weight) else None,
    )


@bmm.register_input_generator
def _bmm_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    out: int = 8,
    rows: int = ROWS,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    """``num_tokens`` matrices of ``rows`` rows of unit variance, and of ``out`` weights of variance ``1 / K``."""
    x = torch.randn(num_tokens, rows, hidden_size, dtype=dtype, device=device)
    weight = torch.randn(num_tokens, out, hidden_size, dtype=dtype, device=device)
    return x, weight / math.sqrt(max(hidden_size, 1))


for _dtype in REFERENCES:  # the sums are those of linear, and so are their bounds
    bmm.override_tolerance(_dtype, **_linear.get_tolerance(_dtype))
