# SPDX-License-Identifier: Apache-2.0
"""Two to a power for what attention computes with: float32 (``elementary.py``), and float64 in the same steps.

float64, for ``x <= 0``: x is taken from -1023 on; ``n = (x + ROUND) - ROUND``, ``ROUND = 1.5 * 2**52``; ``f = x - n``;
a polynomial of the coefficients ``log(2)**k / k!`` up to k = 13, where the first that is left out is below 4e-18; and a
product with ``2**n``, which is +0 for n = -1023. Every product and every sum is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.ops import elementary

TAYLOR: Final = tuple(math.log(2.0) ** k / math.factorial(k) for k in range(14))
_ROUND: Final = 1.5 * 2.0**52


def exp2(x: Tensor, terms: int) -> Tensor:
    """``2**x`` of float32 ``x`` with so many terms, or of float64 ``x <= 0``; a NaN stays. No gradient."""
    if x.dtype != torch.float64:
        return elementary.exp2(x, terms)
    x = x.detach().clamp(min=-1023.0)
    n = (x + _ROUND) - _ROUND
    f = x - n
    p = torch.full_like(f, TAYLOR[-1])
    for coefficient in reversed(TAYLOR[:-1]):
        p = p * f + coefficient
    return p * ((n.to(torch.int64) + 1023) << 52).view(torch.float64)


class _Exp2(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, terms: int) -> Tensor:
        return exp2(x, terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return grad * (output * math.log(2.0)), None


differentiable_exp2: Callable[[Tensor, int], Tensor] = _Exp2.apply
""":func:`exp2` with its derivative, ``log(2) * exp2(x)``, of any order."""
