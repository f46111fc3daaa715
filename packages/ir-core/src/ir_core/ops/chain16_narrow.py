# SPDX-License-Identifier: Apache-2.0
"""``chain16`` where no number is tiny, huge or no number: products in float32, sums in int32.

A product of two fp16 or bf16 numbers has 22 significant bits at most, and is exact in float32 while its exponent is
one of float32's. Scaled by ``2**(25 - e)`` it is below 2**27, and converting it to an integer cuts it off toward zero,
as the order says. 16 such integers are below 2**31. The accumulator, the 17th, is added in float64, which holds that
sum exactly; clearing the 29 bits that a float64 has below a float32 rounds it toward zero to 24 bits.

Operands with exponents from LOWEST to HIGHEST, and zeros, have products of 2**-76 and more. So an accumulator is zero,
what it was at first, or a multiple of 2**-101: it never is subnormal, and the scale never leaves float32 either.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

STEP: Final = 16
"""Products that are added at once."""
FRACTION: Final = 25
"""Bits of a term that are kept below the unit of the largest exponent."""
LOWEST: Final = -38
"""The smallest exponent of an operand here."""
HIGHEST: Final = 50
"""The largest: a product is below 2**102, and thousands of groups of them far from overflow."""
ACC: Final = (-101, 100)
"""Exponents of accumulators to begin with."""
BIAS: Final = (64, 63)
"""What the exponents of the left and of the right operand are stored with: 127 together, float32's."""
_EXPONENT: Final = 255 << 23
"""The bits of a float32 that are its exponent."""
_ZERO: Final = -(1 << 14)
"""The exponent of zero, times 128: with any other it is below 0, and with itself still an int16."""
_FLOOR: Final = (ACC[0] + 127) << 7
"""The lowest ``e`` that is used, times 128: no accumulator has bits that it would cut off."""
_CUT: Final = -(1 << 29)
"""All bits of a float64 but the 29 that a float32 does not have."""


class Prepared(NamedTuple):
    """An operand by groups of 16 k."""

    values: Tensor
    """float32 ``[S, 16, Z, R]``."""
    exponents: Tensor
    """int16 ``[S, 16, Z, R]``: those of the values and the side's bias, times 128."""


def prepare(t: Tensor, bias: int) -> Prepared | None:
    """``[Z, R, K]`` made ready, or ``None`` where a number is out of range."""
    rows = t.permute(2, 0, 1)
    values = torch.zeros(rows.shape[0] + -rows.shape[0] % STEP, *rows.shape[1:], device=t.device)
    values[: rows.shape[0]] = rows
    values = values.reshape(-1, STEP, *rows.shape[1:])
    zero = values == 0
    exponents = (values.view(torch.int32) >> 23).bitwise_and_(255).sub_(127)
    if not bool((((exponents >= LOWEST) & (exponents <= HIGHEST)) | zero).all()):
        return None
    if t.dtype == torch.float16:
        exponents.clamp_(min=-14)
    return Prepared(values, exponents.add_(bias).mul_(128).masked_fill_(zero, _ZERO).to(torch.int16))


def accepts(acc: Tensor) -> bool:
    """Whether a block may begin with these accumulators."""
    size = acc.abs()
    return bool(((size >= 2.0 ** ACC[0]) & (size < 2.0 ** ACC[1]) | (acc == 0)).all())


def add(acc: Tensor, left: Prepared, right: Prepared) -> Tensor:
    """The accumulators ``[Z, R, C]`` after all groups of ``[S, 16, Z, R]`` and ``[S, 16, Z, C]``."""

    def new(dtype: torch.dtype, *slots: int) -> Tensor:
        return torch.empty(*slots, *acc.shape, dtype=dtype, device=acc.device)

    def number(value: int, dtype: torch.dtype) -> Tensor:  # an operator would make this tensor at each call
        return torch.tensor(value, dtype=dtype, device=acc.device)

    exponent_bits, high_half = number(_EXPONENT, torch.int32), number(16, torch.int32)
    fraction, one = number(FRACTION << 23, torch.int32), number(254 << 23, torch.int32)
    cut = number(_CUT, torch.int64)

    terms, integers = new(torch.float32, STEP + 1), new(torch.int32, STEP + 1)
    products, c = terms[:STEP], terms[STEP].copy_(acc)
    cut_off, own = integers[:STEP], integers[STEP]
    exponents, largest = new(torch.int16, STEP + 1), new(torch.int16)
    exponents[STEP] = _FLOOR
    up, down, total, sums = new(torch.float32), new(torch.float32), new(torch.int32), new(torch.float64)
    c_bits, up_bits, down_bits = (t.view(torch.int32) for t in (c, up, down))
    sum_bits = sums.view(torch.int64)

    groups = (left.values.unsqueeze(4), right.values.unsqueeze(3), left.exponents.unsqueeze(4))
    for a, b, ea, eb in zip(*(t.unbind(0) for t in (*groups, right.exponents.unsqueeze(3))), strict=True):
        torch.mul(a, b, out=products)
        torch.add(ea, eb, out=exponents[:STEP])
        torch.amax(exponents, 0, out=largest)
        down_bits.copy_(largest).bitwise_left_shift_(high_half)  # e as a float32 has it
        torch.bitwise_and(c_bits, exponent_bits, out=total)
        torch.maximum(down_bits, total, out=down_bits)
        down_bits.sub_(fraction)  # 2**(e - 25)
        torch.sub(one, down_bits, out=up_bits)  # 2**(25 - e)
        terms.mul_(up)
        integers.copy_(terms)
        torch.sum(cut_off, 0, dtype=torch.int32, out=total)
        sums.copy_(total).add_(own)
        sum_bits.bitwise_and_(cut)
        c.copy_(sums).mul_(down)
    return c.clone()
