# SPDX-License-Identifier: Apache-2.0
"""The product with a weight matrix, ``x @ weight.T + bias``.

Its orders, by dtype, each with its reference in ``portable``: fp16 and bf16 ``chain16`` (``chain16.py``), float32
``fma_chain`` and float64 ``mul_add_chain`` (``fma_chain.py``). In each of them the bias is added to the accumulator,
in float32 (float64 for float64), and the sum is rounded once, to x's dtype and to nearest even. A policy may ask for
``chain16x8`` (``chunks.py``), which is made of eight such sums, for every dtype.

Gradients. That of ``x`` is ``linear(grad, weight.T)``: rows stay rows, so it is batch-invariant where ``linear`` is,
and runs under the policy that the forward had. Those of ``weight`` and ``bias`` sum over the rows, which no
implementation can do without looking at all of them; they do it in the order of ``linear`` too, rows ascending:
``linear(grad.T, x.T)`` and ``linear(grad.T, ones)``. Hence they are reproducible, and the same for the same batch.

Tolerance, for outputs of about 1 (the generator's: unit rows, weights of variance 1 / K). Let u be the unit roundoff of
the dtype. One rounding at the end: u. Before it, each of the K / 16 steps of ``chain16`` cuts off below 2**-23 of the
accumulator, and 2**-25 of the largest term for each of 17: all toward zero, so that they add up. K = 65536 is granted,
with accumulators up to 4. For float32 and float64, K roundings of random sign, 4 sqrt(K) units (Higham, Accuracy and
Stability, 2nd ed., section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.meaning import Order
from ir_core.op import register_op
from ir_core.ops.arguments import row_length, wanted
from ir_core.ops.chain16 import chain16
from ir_core.ops.chunks import CHAIN16X8
from ir_core.ops.fma_chain import fma_chain, mul_add_chain
from ir_core.requirement import parse_requirement
from ir_core.tolerances import unit_roundoff

REFERENCES: Final[dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]]] = {
    torch.float16: chain16,
    torch.bfloat16: chain16,
    torch.float32: fma_chain,
    torch.float64: mul_add_chain,
}
"""The accumulators of ``x @ weight.T`` in the order of each dtype, of matrices ``[M, K]`` and ``[N, K]``."""


ORDERS: Final = (
    Order(
        "chain16",
        "fp16 and bf16. K is padded with zeros to a multiple of 16, and a float32 accumulator is +0 at first. For each "
        "16 products in ascending k: the products are exact, their exponents those of the operands added; all 17 terms "
        "are cut off toward zero 25 bits below the unit of the largest exponent and added exactly; the sum is rounded "
        "to float32 toward zero. The bias is added in float32, and the result rounded once. See docs/orders.md.",
        requires=parse_requirement("sm>=9.0, sm<10.0 | cpu"),
        dtypes=(torch.float16, torch.bfloat16),
    ),
    Order(
        "fma_chain",
        "float32. The accumulator is +0 at first; for each k in ascending order it becomes "
        "fma(x[k], w[k], accumulator), rounded once to nearest even. The bias is added in float32.",
        dtypes=(torch.float32,),
    ),
    Order(
        "mul_add_chain",
        "float64. The accumulator is +0 at first; for each k in ascending order the product is rounded, then the sum. "
        "The bias is added in float64.",
        dtypes=(torch.float64,),
    ),
)
"""On SM 8.x, 10 and 12 the 16-bit product has an order of the hardware's own, which was not measured: none is named."""


@register_op(has_reduction=True, orders=(*ORDERS, CHAIN16X8))
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of rows with a weight matrix: ``x @ weight.T + bias``.

    Args:
        x: fp16, bf16, fp32 or fp64 ``[..., K]``, any strides, any number of rows; K may be 0.
        weight: of x's dtype, ``[N, K]``, any strides.
        bias: of x's dtype, ``[N]``, or ``None``.

    Returns:
        ``[..., N]``, of x's dtype, contiguous.

    Raises:
        ArgumentError: another dtype, or a weight or a bias that does not fit.
    """
    return torch.nn.functional.linear(x, weight, bias).contiguous()


@linear.register_check
def check(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Refuse what is no call of ``linear``; given tensors or their facts."""
    if x.dtype not in REFERENCES:
        raise ArgumentError(
            f"linear takes float16, bfloat16, float32 and float64, and 'x' is {x.dtype}.",
            why="An order is defined for each of these.",
            fix="Convert it first.",
        )
    length = row_length("linear", x)
    if weight.ndim != 2 or weight.shape[1] != length:
        sizes = ", ".join(str(weight.shape[i]) for i in range(weight.ndim))
        raise ArgumentError(
            f"linear: 'weight' has the shape [{sizes}], and the rows of 'x' have {length} elements.",
            why="Each row of the weight is multiplied with each row of 'x'.",
            fix=f"Give it the shape [N, {length}].",
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ArgumentError(
                f"linear: '{name}' is {tensor.dtype}, and 'x' is {x.dtype}.",
                why="The order of the sum is that of one dtype.",
                fix=f"Convert one of them: {name}.to(x.dtype).",
            )
    if bias is not None and bias.shape != (weight.shape[0],):
        sizes = ", ".join(str(bias.shape[i]) for i in range(bias.ndim))
        raise ArgumentError(
            f"linear: 'bias' has the shape [{sizes}], and the weight has {weight.shape[0]} rows.",
            why="Each output has its own element of the bias; nothing is broadcast.",
            fix=f"Give it the shape [{weight.shape[0]}].",
        )


def linear_portable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The order's reference. Opaque, so that no compiler contracts, splits or reorders it."""
    accumulators = REFERENCES[x.dtype](x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight)
    if bias is not None:
        accumulators = accumulators + bias.to(accumulators.dtype)
    return accumulators.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@linear.register_fake
def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@linear.register_backward
def _linear_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    x, weight, bias = args
    grad = grads[0]
    if grad is None:
        return None, None, None
    rows = math.prod(x.shape[:-1])
    columns = grad.reshape(rows, weight.shape[0]).T
    return (
        linear(grad, weight.T) if wanted(x) else None,
        linear(columns, x.reshape(rows, x.shape[-1]).T) if wanted(weight) else None,
        linear(columns, columns.new_ones((1, rows))).squeeze(1) if wanted(bias) else None,
    )


@linear.register_input_generator
def _linear_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    out: int = 8,
    bias: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    """Rows of unit variance, ``out`` weights of variance ``1 / hidden_size``: few, for the sake of ``portable``."""
    x = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device)
    weight = torch.randn(out, hidden_size, dtype=dtype, device=device) / math.sqrt(max(hidden_size, 1))
    return x, weight, torch.randn(out, dtype=dtype, device=device) if bias else None


_STEPS: Final = 65536 // 16
for _dtype in (torch.float16, torch.bfloat16):
    linear.override_tolerance(
        _dtype, atol=_STEPS * 4 * (2.0**-23 + 17 * 2.0**-25), rtol=unit_roundoff(_dtype)
    )
for _dtype in (torch.float32, torch.float64):
    _u = unit_roundoff(_dtype)
    linear.override_tolerance(_dtype, atol=4 * math.sqrt(65536) * _u, rtol=2 * _u)
