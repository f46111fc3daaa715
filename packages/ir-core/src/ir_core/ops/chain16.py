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

Two ways lead to the same bits. ``chain16_narrow.py`` has the fast one, for operands whose products and sums are all
normal float32 numbers: those of models are. ``chain16_wide.py`` takes everything, in float64.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ir_core.ops import chain16_narrow, chain16_wide

BLOCK: Final = {"cpu": 1920, "cuda": 1 << 21}
"""Outputs that are computed side by side. On a CPU 17 terms of each are fewer than the 32,768 elements from which on
torch wakes its other threads, at each of the dozen small operations of a group: on a busy machine waiting for them
costs a hundred times the work. A GPU gets enough to be busy."""
ALONE: Final = 1 << 13
"""The same on a CPU where torch has one thread: the terms, 544 KiB, stay in its cache."""


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
    acc = torch.zeros(1, x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    return chain16_add(acc, x.unsqueeze(0), weight.unsqueeze(0)).squeeze(0)


def chain16_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``acc + x @ weight.mT`` in the order ``chain16``, on top of ``acc``, for each of Z matrices.

    Args:
        acc: float32 ``[Z, R, C]``.
        x: fp16 or bf16 ``[Z, R, K]``, any strides.
        weight: of x's dtype, ``[Z, C, K]``, any strides.

    Returns:
        float32 ``[Z, R, C]``, contiguous.
    """
    (batch, rows, columns), k = acc.shape, x.shape[2]
    if not acc.numel() or not k:
        return acc
    if rows > columns:  # the longer side is the one that is contiguous in the products
        return chain16_add(acc.mT, weight, x).mT.contiguous()
    acc, x, weight = acc.detach(), x.detach(), weight.detach()
    block = BLOCK.get(x.device.type, BLOCK["cpu"])
    if x.device.type == "cpu" and torch.get_num_threads() == 1:
        block = ALONE
    wide = even(columns, block)
    high = even(rows, block // wide)
    deep = even(batch, block // (wide * high))
    out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device)
    for z in range(0, batch, deep):
        left = [_Operand(x[z : z + deep, r : r + high], 0) for r in range(0, rows, high)]
        for c in range(0, columns, wide):
            right = _Operand(weight[z : z + deep, c : c + wide], 1)
            for i, operand in enumerate(left):
                at = slice(z, z + deep), slice(i * high, (i + 1) * high), slice(c, c + wide)
                out[at] = _block(acc[at], operand, right)
    return out


def even(count: int, most: int) -> int:
    """The length of the parts when ``count`` is cut evenly into as few as have at most ``most`` each."""
    parts = -(-count // max(most, 1))
    return -(-count // parts)


class _Operand:
    """``[Z, R, K]`` of either side, made ready for the fast way, and for the other when a block needs it."""

    def __init__(self, t: Tensor, side: int) -> None:
        self.t = t
        self.narrow = chain16_narrow.prepare(t, chain16_narrow.BIAS[side])
        self._wide: chain16_wide.Prepared | None = None

    @property
    def wide(self) -> chain16_wide.Prepared:
        if self._wide is None:
            self._wide = chain16_wide.prepare(self.t)
        return self._wide


def _block(acc: Tensor, left: _Operand, right: _Operand) -> Tensor:
    if left.narrow is not None and right.narrow is not None and chain16_narrow.accepts(acc):
        return chain16_narrow.add(acc, left.narrow, right.narrow)
    return chain16_wide.add(acc, left.wide, right.wide)
