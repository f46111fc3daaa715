# SPDX-License-Identifier: Apache-2.0
"""The order ``chain16x8`` of ``linear``, and the op ``linear_partial``: the part of it that one rank computes.

``portable_x8`` is the order's reference for ``linear``, and ``portable`` for ``linear_partial``. Ranks put their
parts together in ``ir_core.parallel``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.meaning import PORTABLE
from ir_core.op import register_op
from ir_core.ops import matmul
from ir_core.ops.arguments import wanted
from ir_core.ops.chunks import CHAIN16X8, COUNTS, chunked
from ir_core.ops.matmul import REFERENCES, linear


def linear_portable_x8(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The reference of ``chain16x8``. Opaque, so that no compiler contracts, splits or reorders it."""
    accumulators = _accumulators(x, weight)
    if bias is not None:
        accumulators = accumulators + bias.to(accumulators.dtype)
    return accumulators.to(x.dtype)


def _accumulators(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return chunked(REFERENCES[x.dtype], flat, weight, chunks).reshape(*x.shape[:-1], weight.shape[0])


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which sums of products of ``dtype`` are kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@register_op(has_reduction=True, orders=(replace(CHAIN16X8, reference=PORTABLE, by_name=False),))
def linear_partial(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    """A subtree of ``x @ weight.T`` in the order ``chain16x8``, not rounded: what one of ``8 / chunks`` ranks computes.

    K is cut into ``chunks`` chunks, each a multiple of 16 long (padded with zeros), and their partial sums are added as
    a balanced tree. With 8 chunks, all of K and a bias, rounding the result gives ``linear`` in ``chain16x8``.

    Args:
        x: fp16, bf16, fp32 or fp64 ``[..., K]``, any strides, any number of rows; K may be 0.
        weight: of x's dtype, ``[N, K]``, any strides.
        chunks: 1, 2, 4 or 8.

    Returns:
        ``[..., N]``, contiguous: float32, or float64 for float64. Its gradient is rounded to x's dtype before it is
        multiplied, which changes nothing where the result was rounded to x's dtype.

    Raises:
        ArgumentError: another dtype or number of chunks, or a weight that does not fit.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.nn.functional.linear(x.to(wide), weight.to(wide)).contiguous()


@linear_partial.register_check
def check(x: Tensor, weight: Tensor, chunks: int = 8) -> None:
    """Refuse what is no call of ``linear_partial``; given tensors or their facts."""
    matmul.check(x, weight)
    if chunks not in COUNTS:
        raise ArgumentError(
            f"linear_partial: chunks is {chunks}.",
            why="A subtree of the 8 chunks of chain16x8 has 1, 2, 4 or 8 of them.",
            fix="Give 8 divided by the number of ranks: 8, 4, 2 or 1.",
        )


def linear_partial_portable(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    """The order's reference. Opaque, so that no compiler contracts, splits or reorders it."""
    return _accumulators(x, weight, chunks)


@linear_partial.register_fake
def _fake(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=accumulator_dtype(x.dtype))


@linear_partial.register_backward
def _backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    x, weight, _ = args
    grad = grads[0]
    if grad is None:
        return None, None, None
    grad = grad.to(x.dtype)
    rows = math.prod(x.shape[:-1])
    columns = grad.reshape(rows, weight.shape[0]).T
    return (
        linear(grad, weight.T) if wanted(x) else None,
        linear(columns, x.reshape(rows, x.shape[-1]).T) if wanted(weight) else None,
        None,
    )


@linear_partial.register_input_generator
def _inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    out: int = 8,
    chunks: int = 8,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    """Rows of unit variance and ``out`` weights of variance ``1 / hidden_size``, as for ``linear``."""
    made = linear.generate_inputs(
        num_tokens=num_tokens, hidden_size=hidden_size, dtype=dtype, out=out, device=device
    )
    return made[0], made[1], chunks


linear_partial.register_values(chunks=COUNTS)
for _dtype in REFERENCES:
    linear_partial.override_tolerance(_dtype, **linear.get_tolerance(_dtype))
