# SPDX-License-Identifier: Apache-2.0
"""Exponential and logarithm of float32, specified to the bit: the same on every CPU, every GPU and in the interpreter.

Libraries and instructions (``ex2.approx``, a vector loop and its scalar remainder) give other bits each. Here each is
a range reduction and a polynomial of fused multiply-adds, additions and products, all rounded to nearest even, with
subnormal numbers kept. ``docs/orders.md`` has the steps; ``ir_kernels_triton.elementary`` has them for a GPU.

A fused multiply-add is computed here as ``float32(float64(a) * float64(b) + float64(c))``. The product is exact, the
sum is rounded twice, which can differ from one rounding where the float64 sum is midway between two float32. It does
so nowhere in these functions: ``benchmarks/elementary_exhaustive.c`` compared them with the processor's instruction for
every float32. A change of a constant wants that program run again.

The polynomials are minimax fits of our own, each coefficient rounded to float32 before the next ones were fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

# All constants are float32 numbers, written exactly.
LOG2_E: Final = 1.4426950216293335
ROUND: Final = 12582912.0
"""1.5 * 2**23: adding it rounds a small float32 to an integer, to nearest even."""
LN2_HIGH: Final = 0.693359375
"""Nine bits, so that its product with the exponent is exact; ``LN2_LOW`` is what it lacks to log(2)."""
LN2_LOW: Final = -0.00021219444170128554
LN2: Final = 0.6931471824645996

EXP: Final = (
    0.4999999403953552,
    0.1666652113199234,
    0.04166825860738754,
    0.008368666283786297,
    0.0013821196043863893,
)
"""exp(r) = 1 + r + r**2 * (EXP[0] + EXP[1] r + ...) for abs(r) <= 0.34665, relative error 3.2e-9."""
EXP_MIN: Final = -88.0
"""Below, exp is taken there, where the power of two of its scale is +0."""
EXP_MAX: Final = 89.0
"""Above, exp is taken there, where it is infinite."""

EXP2: Final[dict[int, tuple[float, ...]]] = {
    3: (0.6932829022407532, 0.24221095442771912, 0.05500904470682144),
    4: (0.6931241750717163, 0.2402409166097641, 0.0559065118432045, 0.00958317331969738),
    5: (
        0.6931470036506653,
        0.24022246897220612,
        0.0555071085691452,
        0.009671292267739773,
        0.0013269535265862942,
    ),
    6: (
        0.6931471824645996,
        0.24022647738456726,
        0.05550359934568405,
        0.009618505835533142,
        0.0013390806270763278,
        0.0001532646274426952,
    ),
}
"""2**f = 1 + f * (c[0] + c[1] f + ...) for abs(f) <= 0.5, by number of coefficients.

Relative errors: 1.02e-4, 2.83e-6, 9.4e-8 and 3.0e-9 (before rounding)."""
EXP2_MIN: Final = -127.0
EXP2_MAX: Final = 128.0

LOG: Final = (
    -0.5,
    0.3333321511745453,
    -0.2499980628490448,
    0.2001042664051056,
    -0.16680197417736053,
    0.14005732536315918,
    -0.12187445908784866,
    0.1398460865020752,
    -0.12880222499370575,
)
"""log(1 + f) = f + f**2 * (LOG[0] + LOG[1] f + ...) for -1/3 <= f <= 1/3, relative error 4.7e-9."""
LOG_SPLIT: Final = 0x3F2AAAAB
"""Bits of the smallest float32 above 2/3: the significand that log takes lies from there to twice as far."""

BLOCK: Final = 1 << 16
"""Elements that are computed at once: the float64 numbers of a step stay in a core's cache."""


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` of float32 ``x``, any shape; the error is below 0.91 units in the last place.

    exp(-0) = exp(0) = 1, exp(inf) = inf, a NaN stays. Results below 2**-126.5 are +0, those from there to 2**-126
    are subnormal; results of 2**128 and more are infinite. No gradient.

    Raises TypeError when ``x`` is not float32.
    """
    return _blockwise(_exp, x, "exp")


def exp2(x: Tensor, terms: int = 6) -> Tensor:
    """``2**x`` of float32 ``x``, any shape, by a polynomial of ``terms`` coefficients (3, 4, 5 or 6) behind the 1.

    The error is below 0.88 units in the last place with 6, 2 with 5, and relative below 2.9e-6 with 4, 1.1e-4 with 3:
    what suffices where the result is rounded to 16 bits. Integers give exact powers. Underflow, overflow, infinities
    and NaNs are as for :func:`exp`. No gradient.

    Raises TypeError when ``x`` is not float32, ValueError for another number of terms.
    """
    if terms not in EXP2:
        raise ValueError(f"exp2 has polynomials of 3, 4, 5 and 6 terms, not of {terms}")
    return _blockwise(lambda part: _exp2(part, EXP2[terms]), x, "exp2")


def log(x: Tensor) -> Tensor:
    """Natural logarithm of float32 ``x``, any shape; the error is below 0.94 units in the last place.

    log(1) = +0, log(0) = log(-0) = -inf, log(inf) = inf; that of a negative number is a NaN, and a NaN stays. Subnormal
    numbers are taken as what they are. No gradient.

    Raises TypeError when ``x`` is not float32.
    """
    return _blockwise(_log, x, "log")


def _blockwise(function: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError(f"{name} takes float32, got {x.dtype}")
    x = x.detach()
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() <= BLOCK:
        return function(x)
    return torch.cat([function(part) for part in x.reshape(-1).split(BLOCK)]).view(x.shape)


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """``a * b + c`` of float32, rounded once (see the text of this module)."""
    b = b.double() if isinstance(b, Tensor) else b
    return (a.double() * b + (c.double() if isinstance(c, Tensor) else c)).float()


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """``c[0] + c[1] x + c[2] x**2 + ...``, the highest power first, one fused multiply-add for each of the others."""
    wide = x.double()
    p = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = (p.double() * wide + c).float()
    return p


def _scaled(p: Tensor, n: Tensor) -> Tensor:
    """``p * 2**n`` for integers ``n`` from -127, where the power is +0, to 128."""
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(n > 127.0, (p * 2.0) * 2.0**127, p * power)


def _exp(x: Tensor) -> Tensor:
    x = x.clamp(EXP_MIN, EXP_MAX)  # a NaN stays
    n = _fma(x, LOG2_E, ROUND) - ROUND
    r = _fma(n, -LN2_LOW, _fma(n, -LN2_HIGH, x))
    return _scaled(_horner(r, (1.0, 1.0, *EXP)), n)


def _exp2(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    x = x.clamp(EXP2_MIN, EXP2_MAX)
    n = (x + ROUND) - ROUND
    return _scaled(_horner(x - n, (1.0, *coefficients)), n)


def _log(x: Tensor) -> Tensor:
    small = x < 2.0**-126
    bits = torch.where(small, x * 8388608.0, x).view(torch.int32)  # 2**23: a subnormal number becomes normal
    e = (bits - LOG_SPLIT) >> 23
    f = (bits - (e << 23)).view(torch.float32) - 1.0
    n = torch.where(small, e - 23, e).float()
    y = _fma(n, LN2, _fma(_horner(f, LOG), f * f, f))
    y = torch.where(x < float("inf"), y, x)  # +inf and NaN
    y = torch.where(x < 0.0, torch.full_like(x, float("nan")), y)
    return torch.where(x == 0.0, torch.full_like(x, float("-inf")), y)
