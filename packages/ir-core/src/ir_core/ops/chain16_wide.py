# SPDX-License-Identifier: Apache-2.0
"""``chain16`` of any numbers: subnormal and huge ones, infinities and NaN too.

Everything here is float64 where float64 is exact: a product has 22 significant bits at most, a term that was cut off
is a multiple of ``2**(e - 25)`` below ``2**(e + 2)``, and 17 of those are far below 2**53 units.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from ir_core.ops.chain16_narrow import FRACTION, STEP

_NONE: Final = -10000
"""The exponent of zero: below all others, also as a sum of two."""
_FLOOR: Final = -133
"""The lowest ``e``."""
_LOWEST: Final = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126}
"""The exponent of the subnormal numbers of a dtype."""


class Prepared(NamedTuple):
    """An operand by groups of 16 k."""

    values: Tensor
    """float64 ``[S, 16, Z, R]``, with 0 for what is not finite."""
    exponents: Tensor
    """int16 ``[S, 16, Z, R]``."""
    others: Tensor | None
    """All values, where some are not finite."""


def prepare(t: Tensor) -> Prepared:
    """``[Z, R, K]`` made ready."""
    rows = torch.nn.functional.pad(t, (0, -t.shape[2] % STEP)).permute(2, 0, 1)
    every = rows.reshape(-1, STEP, *rows.shape[1:]).double()
    values = _finite(every)
    exponents = _exponent(values, _LOWEST[t.dtype]).to(torch.int16)
    return Prepared(values, exponents, every if not bool(torch.isfinite(every).all()) else None)


def add(acc: Tensor, left: Prepared, right: Prepared) -> Tensor:
    """The accumulators ``[Z, R, C]`` after all groups of ``[S, 16, Z, R]`` and ``[S, 16, Z, C]``."""
    c = acc.double()
    products = torch.empty(STEP, *acc.shape, dtype=torch.float64, device=acc.device)
    integers = torch.empty(STEP, *acc.shape, dtype=torch.int32, device=acc.device)
    plain = left.others is None and right.others is None
    for step in range(left.values.shape[0]):
        torch.mul(left.values[step].unsqueeze(3), right.values[step].unsqueeze(2), out=products)
        largest = (left.exponents[step].unsqueeze(3) + right.exponents[step].unsqueeze(2)).amax(0)
        e = torch.maximum(largest, _exponent(_finite(c), _LOWEST[torch.float32])).clamp(min=_FLOOR)
        up = _power(FRACTION - e)
        integers.copy_(products.mul_(up))  # below 2**27, cut off toward zero
        total = integers.sum(0, dtype=torch.int32).double().add_((c * up).trunc_())
        new = _toward_zero(total.mul_(_power(e - FRACTION)))
        new = torch.where(new.abs() >= 2.0**128, new * torch.inf, new)
        if not plain:
            a, b = (t.values if t.others is None else t.others for t in (left, right))
            every = a[step].unsqueeze(3) * b[step].unsqueeze(2)
            others = torch.where(torch.isfinite(every), 0.0, every).sum(0)
            new = torch.where((others == 0) & torch.isfinite(c), new, c + others)
        c = new
    return c.float()


def _finite(t: Tensor) -> Tensor:
    return torch.where(torch.isfinite(t), t, 0.0)


def _exponent(values: Tensor, lowest: int) -> Tensor:
    """Exponents of float64 numbers as int64, not below ``lowest``; zero has none."""
    found = ((values.view(torch.int64) >> 52) & 0x7FF) - 1023
    return torch.where(values == 0, _NONE, found.clamp(min=lowest))


def _power(exponent: Tensor) -> Tensor:
    """``2.0**exponent`` as float64, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _toward_zero(value: Tensor) -> Tensor:
    """float64 numbers rounded toward zero to 24 bits, and to multiples of 2**-149."""
    unit = _power(_exponent(value, -126).clamp(min=-126) - 23)
    return (value / unit).trunc_().mul_(unit).add_(0.0)  # a sum of -0 is +0 too
