# SPDX-License-Identifier: Apache-2.0
"""The order ``chain16``: the arithmetic of the 16-bit tensor cores of SM 9.0, in exact numbers.

For fp16 or bf16 operands, K zero-padded to a multiple of 16, and a float32 accumulator ``c`` that is +0 at first:

1. The next 16 products, in ascending k, are exact. The exponent of one is the sum of its operands' exponents (a
   subnormal operand has its dtype's lowest exponent); it is not normalised.
2. ``e`` is the largest exponent among those of the 16 products that are not zero, of ``c`` if that is not zero, and
   -133. What a term has below ``2**(e - 25)`` is cut off, toward zero.
3. The 17 terms are added exactly, and the sum is rounded to float32 toward zero: the new ``c``. A sum of 2**128 or more
   is an infinity, and stays one.

A term that is infinite or no number makes ``c`` what IEEE 754 makes of such a sum. ``docs/orders.md`` states the order
so that it can be written again, and says what was measured.

Everything here is float64 where float64 is exact: a product has 22 significant bits at most, a term that was cut off
is a multiple of ``2**(e - 25)`` below ``2**(e + 2)``, and 17 of those are far below 2**53 units.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

STEP: Final = 16
"""Products that are added at once."""
FRACTION: Final = 25
"""Bits of a term that are kept below the unit of the largest exponent."""
BLOCK: Final = {"cpu": 1 << 13, "cuda": 1 << 21}
"""Outputs that are computed side by side: on a CPU the 16 float64 products of each, 1 MiB, stay in a core's cache; a
GPU gets enough to be busy."""
_NONE: Final = -10000
"""The exponent of zero: below all others, also as a sum of two."""
_FLOOR: Final = -133
"""The lowest ``e``."""
_LOWEST: Final = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126}
"""The exponent of the subnormal numbers of a dtype."""


def chain16(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in the order ``chain16``.

    Args:
        x: fp16 or bf16 ``[M, K]``, any strides.
        weight: of x's dtype, ``[N, K]``, any strides.

    Returns:
        float32 ``[M, N]``: the accumulators, before a bias and before they are rounded.

    Raises:
        TypeError: another dtype, or two.
    """
    if x.dtype not in (torch.float16, torch.bfloat16) or weight.dtype != x.dtype:
        raise TypeError(f"chain16 takes float16 or bfloat16, got {x.dtype} and {weight.dtype}")
    rows, columns = x.shape[0], weight.shape[0]
    out = torch.zeros(rows, columns, dtype=torch.float32, device=x.device)
    if not out.numel() or not x.shape[1]:
        return out
    a, ea = _steps(x)
    b, eb = _steps(weight)
    block = BLOCK.get(x.device.type, BLOCK["cpu"])
    wide = min(columns, block)
    high = block // wide
    for r in range(0, rows, high):
        for c in range(0, columns, wide):
            r_end, c_end = r + high, c + wide
            out[r:r_end, c:c_end] = _block(
                a[..., r:r_end], ea[..., r:r_end], b[..., c:c_end], eb[..., c:c_end]
            )
    if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(weight).all())):
        _not_finite(out, x, weight)
    return out


def _steps(t: Tensor) -> tuple[Tensor, Tensor]:
    """Values and exponents of ``[R, K]`` as ``[K / 16, 16, R]``, padded with zeros; what is not finite counts as 0."""
    t = torch.nn.functional.pad(t.detach(), (0, -t.shape[1] % STEP)).T.reshape(-1, STEP, t.shape[0])
    values = torch.where(torch.isfinite(t), t, torch.zeros_like(t)).double()
    return values, _exponent(values, _LOWEST[t.dtype]).to(torch.int16)


def _exponent(values: Tensor, lowest: int) -> Tensor:
    """Exponents of float64 numbers as int64, not below ``lowest``; zero has none."""
    found = ((values.view(torch.int64) >> 52) & 0x7FF) - 1023
    return torch.where(values == 0, _NONE, found.clamp(min=lowest))


def _power(exponent: Tensor) -> Tensor:
    """``2.0**exponent`` as float64, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _block(a: Tensor, ea: Tensor, b: Tensor, eb: Tensor) -> Tensor:
    """The accumulators ``[R, C]`` as float64, of operands ``[S, 16, R]`` and ``[S, 16, C]``."""
    c = torch.zeros(a.shape[2], b.shape[2], dtype=torch.float64, device=a.device)
    products = torch.empty(STEP, *c.shape, dtype=torch.float64, device=a.device)
    for step in range(a.shape[0]):
        torch.mul(a[step].unsqueeze(2), b[step].unsqueeze(1), out=products)
        largest = (ea[step].unsqueeze(2) + eb[step].unsqueeze(1)).amax(0).to(torch.int64)
        e = torch.maximum(largest, _exponent(c, _LOWEST[torch.float32])).clamp(min=_FLOOR)
        up = _power(FRACTION - e)
        products.mul_(up)
        products.sub_(torch.frac(products))  # torch.trunc is eight times slower
        total = products.sum(0).add_(c.mul_(up).trunc_())
        c = _toward_zero(total.mul_(_power(e - FRACTION)))
        c = torch.where(c.abs() >= 2.0**128, c * torch.inf, c)
    return c


def _toward_zero(value: Tensor) -> Tensor:
    """float64 numbers rounded toward zero to 24 bits, and to multiples of 2**-149."""
    unit = _power(_exponent(value, -126).clamp(min=-126) - 23)
    return (value / unit).trunc_().mul_(unit).add_(0.0)  # a sum of -0 is +0 too


def _not_finite(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Put in what IEEE 754 makes of the rows and columns that hold infinities or what is no number."""
    rows = (~torch.isfinite(x)).any(1).nonzero().squeeze(1)
    columns = (~torch.isfinite(weight)).any(1).nonzero().squeeze(1)
    for r in rows.tolist():
        out[r] = _class(x[r : r + 1], weight, out[r : r + 1])[0]
    for c in columns.tolist():
        out[:, c] = _class(x, weight[c : c + 1], out[:, c : c + 1])[:, 0]


def _class(x: Tensor, weight: Tensor, finite: Tensor) -> Tensor:
    """``finite`` where all terms are, else the infinity or the NaN that their sum is."""
    products = x.double().unsqueeze(1) * weight.double().unsqueeze(0)
    above, below = (products == torch.inf).any(2), (products == -torch.inf).any(2)
    none = torch.isnan(products).any(2) | (above & below)
    result = torch.where(above, torch.inf, torch.where(below, -torch.inf, finite))
    return torch.where(none, torch.nan, result)
