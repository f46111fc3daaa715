# SPDX-License-Identifier: Apache-2.0
"""The orders ``fma_chain`` (float32) and ``mul_add_chain`` (float64) of a sum of products: one term after the other.

``fma_chain``: ``c`` is +0 at first; for each k in ascending order ``c = fma(x[k], w[k], c)``, the product exact and the
sum rounded once, to nearest even. Every GPU has the instruction and Triton's ``ieee`` dot of float32 is made of it; a
CPU without it computes the same through float64, where the product of two float32 is exact.

``mul_add_chain``: ``c = c + (x[k] * w[k])``, product and sum rounded to float64, to nearest even.

Both cost a few passes over all outputs for each k, where a GEMM has them in registers: references, not kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ir_core.ops.chain16 import even

BLOCK: Final = {"cpu": 1 << 13, "cuda": 1 << 21}
"""Outputs that are computed side by side: a float64 for each stays in a core's cache."""
NARROW: Final = 512
"""Columns that stay together where there are many rows: then a weight is read for several rows at once."""
STRETCH: Final = {"cpu": 1 << 15, "cuda": 1 << 24}
"""Float64 sums that are kept until they are looked at."""
LENGTH: Final = 256
"""Steps between two looks, at most."""
_HALF: Final = 1 << 28
"""The last 29 bits, which a float32 does not have, of a float64 midway between two float32."""
_MIDWAY: Final = -(1 << 63)
"""The same bits moved to the top of an int64: the least one."""
_NORMAL: Final = 2.0**-38
"""Products of float32 from here on are multiples of 2**-122."""
_NORMAL_ACC: Final = 2.0**-102
"""Accumulators from here on are multiples of 2**-125, and so is a sum of such: 0, or normal in float32."""


def fma_chain(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of float32 ``[M, K]`` and ``[N, K]``, any strides, in the order ``fma_chain``.

    Raises TypeError when an operand is not float32.
    """
    return _chain(fma_add, x, weight, torch.float32, "fma_chain")


def mul_add_chain(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of float64 ``[M, K]`` and ``[N, K]`` in the order ``mul_add_chain``: float64 ``[M, N]``.

    Raises TypeError when an operand is not float64.
    """
    return _chain(mul_add, x, weight, torch.float64, "mul_add_chain")


def _chain(
    add: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dtype: torch.dtype, name: str
) -> Tensor:
    if x.dtype != dtype or weight.dtype != dtype:
        raise TypeError(f"{name} takes {dtype}, got {x.dtype} and {weight.dtype}")
    acc = torch.zeros(1, x.shape[0], weight.shape[0], dtype=dtype, device=x.device)
    return add(acc, x.unsqueeze(0), weight.unsqueeze(0)).squeeze(0)


def fma_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``acc + x @ weight.mT`` of float32 ``[Z, R, C]``, ``[Z, R, K]``, ``[Z, C, K]``, by fused multiply-adds."""
    return _blocks(_fma_steps, acc, x, weight)


def mul_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same of float64; product and sum are each rounded."""
    return _blocks(_mul_add_steps, acc, x, weight)


def _blocks(
    steps: Callable[[Tensor, Tensor, Tensor], Tensor], acc: Tensor, x: Tensor, weight: Tensor
) -> Tensor:
    (batch, rows, columns), k = acc.shape, x.shape[2]
    if not acc.numel() or not k:
        return acc
    if rows > columns:  # the longer side is the one that is contiguous
        return _blocks(steps, acc.mT, weight, x).mT.contiguous()
    block = BLOCK.get(acc.device.type, BLOCK["cpu"])
    wide = even(columns, max(block // rows, NARROW))
    high = even(rows, block // wide)
    deep = even(batch, block // (wide * high))
    acc, left, right = acc.detach(), x.detach().permute(2, 0, 1).double(), weight.detach().permute(2, 0, 1)
    out = torch.empty(acc.shape, dtype=acc.dtype, device=acc.device)
    for c in range(0, columns, wide):
        part = right[..., c : c + wide].double().contiguous()
        for z in range(0, batch, deep):
            for r in range(0, rows, high):
                at = slice(z, z + deep), slice(r, r + high), slice(c, c + wide)
                out[at] = steps(left[:, at[0], at[1]].unsqueeze(3), part[:, at[0]].unsqueeze(2), acc[at])
    return out


def _mul_add_steps(x: Tensor, weight: Tensor, acc: Tensor) -> Tensor:
    """``acc`` plus the products of float64 ``[K, Z, R, 1]`` and ``[K, Z, 1, C]``, one k after the other."""
    c = acc.contiguous().clone()
    product = torch.empty_like(c)
    for a, b in zip(x.unbind(0), weight.unbind(0), strict=True):
        c.add_(torch.mul(a, b, out=product))
    return c


def _fma_steps(x: Tensor, weight: Tensor, acc: Tensor) -> Tensor:
    """The same of float64 numbers that are float32's, on top of float32, rounded to float32 after each step.

    The product of two float32 is exact in float64. The sum may have been rounded to midway between two float32: then,
    and where a float32 is subnormal and midway is elsewhere, rounding it again could go the wrong way. That is rare, so
    a stretch of steps is done without asking, and once more, by way of numbers rounded to odd, if one of its sums was
    such.
    """
    sizes = STRETCH.get(acc.device.type, STRETCH["cpu"])
    length = max(min(sizes // acc.numel(), LENGTH, x.shape[0]), 1)
    normal = _from(x, _NORMAL) and _from(weight, _NORMAL) and _from(acc, _NORMAL_ACC)
    totals = torch.empty(length, *acc.shape, dtype=torch.float64, device=acc.device)
    rounded = torch.empty(length, *acc.shape, dtype=torch.float32, device=acc.device)
    tails = torch.empty(totals.shape, dtype=torch.int64, device=acc.device)
    up = torch.tensor(35, device=acc.device)
    buffers = tuple(zip(totals.unbind(0), rounded.unbind(0), strict=True))
    c = acc.double()
    for start in range(0, x.shape[0], length):
        a, b = x[start : start + length], weight[start : start + length]
        before = c.clone()
        for left, right, (total, narrow) in zip(a.unbind(0), b.unbind(0), buffers, strict=False):
            torch.addcmul(c, left, right, out=total)  # the product is exact, whether or not this fuses it
            c.copy_(narrow.copy_(total))
        done = totals[: len(a)]
        torch.bitwise_left_shift(done.view(torch.int64), up, out=tails[: len(a)])
        if normal and int(tails[: len(a)].min()) != _MIDWAY:
            continue
        addends = torch.cat((before.unsqueeze(0), rounded[: len(a) - 1]))
        if bool((midway(done) & (_error(a * b, addends, done) != 0)).any()):
            c = before
            for left, right in zip(a.unbind(0), b.unbind(0), strict=True):
                product = left * right
                c = _to_odd(product, c, product + c).float().double()
    return c.float()


def _from(t: Tensor, lowest: float) -> bool:
    """Whether all numbers are 0 or at least ``lowest`` in size."""
    return bool(((t.abs() >= lowest) | (t == 0)).all())


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32, rounded once to nearest; of float64, product and sum each rounded."""
    if a.dtype == torch.float64:
        return a * b + c
    product, addend = torch.broadcast_tensors(a.double() * b.double(), c.double())
    total = product + addend
    return (_to_odd(product, addend, total) if bool(midway(total).any()) else total).float()


def midway(total: Tensor) -> Tensor:
    """Where rounding the float64 ``total`` of an inexact sum to float32 could go the wrong way; never too few."""
    tail = total.view(torch.int64) & (2 * _HALF - 1)
    return (tail == _HALF) | ((total.abs() < 2.0**-125) & (total != 0))


def _to_odd(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The exact ``a + b`` rounded to odd: where ``total``, the nearest float64, is not exact, its last bit becomes 1.

    Rounding that to a format of at most 51 bits gives what rounding the exact sum would (Boldo and Melquiond,
    "Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers, 2008).
    """
    error = _error(a, b, total)
    bits = total.view(torch.int64)
    inexact = (error != 0) & torch.isfinite(total) & ((bits & 1) == 0)
    outward = (error > 0) == (total > 0)
    return torch.where(inexact, torch.where(outward, bits + 1, bits - 1), bits).view(torch.float64)


def _error(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """What the float64 sum ``total`` of ``a`` and ``b`` was rounded by: Knuth's TwoSum."""
    b_seen = total - a
    return (a - (total - b_seen)) + (b - b_seen)
