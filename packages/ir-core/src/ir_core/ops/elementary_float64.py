# SPDX-License-Identifier: Apache-2.0
"""Exponential and logarithm of float64, specified to the bit: additions, products and one division, each rounded.

Models seldom compute in float64, so this is written for plainness: Taylor's series, no fused multiply-add. The relative
error of normal results is below 3 * 2**-53.
"""

import math
from typing import Final

import torch
from torch import Tensor

ROUND: Final = 6755399441055744.0
"""1.5 * 2**52: adding it rounds a small float64 to an integer, to nearest even."""
LOG2_E: Final = 1.4426950408889634
LN2_HIGH: Final = 0.6931471805592082
"""40 bits, so that its product with the exponent is exact; ``LN2_LOW`` is what it lacks to log(2)."""
LN2_LOW: Final = 7.371002565167799e-13
EXP: Final = tuple(1.0 / math.factorial(k) for k in range(2, 14))
"""exp(r) = 1 + r + r**2 * (EXP[0] + EXP[1] r + ...); the first term left out is below 5e-18 for abs(r) <= 0.3466."""
EXP_MIN: Final = -709.4
"""Below, exp is taken there, where the power of two of its scale is +0."""
EXP_MAX: Final = 709.9
LOG: Final = tuple(1.0 / (2 * k + 1) for k in range(1, 13))
"""atanh(s) = s + s**3 * (LOG[0] + LOG[1] s**2 + ...); the first term left out is below 2e-19 of s for abs(s) <= 0.2."""
LOG_SPLIT: Final = 0x3FE5555555555556
"""Bits of the smallest float64 above 2/3."""


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` of float64 ``x``. Results below 2**-1022.5 are +0; a NaN stays. No gradient."""
    x = x.detach().clamp(EXP_MIN, EXP_MAX)
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ((_horner(r, EXP) * r) * r + r) + 1.0
    power = ((n.to(torch.int64) + 1023) << 52).view(torch.float64)
    return torch.where(n > 1023.0, (p * 2.0) * 2.0**1023, p * power)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of float64 ``x``; that of zero is -inf, that of a negative number a NaN. No gradient."""
    x = x.detach()
    small = x < 2.0**-1022
    bits = torch.where(small, x * 2.0**52, x).view(torch.int64)
    e = (bits - LOG_SPLIT) >> 52
    f = (bits - (e << 52)).view(torch.float64) - 1.0
    n = torch.where(small, e - 52, e).double()
    s = f / (f + 2.0)
    square = s * s
    y = s * 2.0 + ((_horner(square, LOG) * square) * (s * 2.0) + n * LN2_LOW)
    y = n * LN2_HIGH + y
    y = torch.where(x < float("inf"), y, x)  # +inf and NaN
    y = torch.where(x < 0.0, torch.full_like(x, float("nan")), y)
    return torch.where(x == 0.0, torch.full_like(x, float("-inf")), y)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * x + c
    return p
