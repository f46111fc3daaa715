# SPDX-License-Identifier: Apache-2.0
"""The orders ``fma_chain`` (float32) and ``mul_add_chain`` (float64) of a sum of products: one term after the other.

``fma_chain``: ``c`` is +0 at first; for each k in ascending order ``c = fma(x[k], w[k], c)``, the product exact and the
sum rounded once, to nearest even. Every GPU has the instruction and Triton's ``ieee`` dot of float32 is made of it; a
CPU without it computes the same through float64, where the product of two float32 is exact.

``mul_add_chain``: ``c = c + (x[k] * w[k])``, product and sum rounded to float64, to nearest even.

Both cost one pass over all outputs for each k, where a GEMM has them in registers: references, not kernels.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ROWS: Final = 64
"""Rows that are computed side by side: with 4096 columns a float64 for each output is 2 MiB."""
STRETCH: Final = 1 << 20
"""Float64 sums that are kept until they are looked at: 8 MiB."""
_TAIL: Final = (1 << 29) - 1
"""The bits of a float64 that a float32 does not have."""
_HALF: Final = 1 << 28
"""Those bits of a number midway between two float32."""


def fma_chain(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of float32 ``[M, K]`` and ``[N, K]``, any strides, in the order ``fma_chain``.

    Raises TypeError when an operand is not float32.
    """
    _check(x, weight, torch.float32, "fma_chain")
    return _blocks(x.double(), weight.double(), _fma_block, torch.float32)


def mul_add_chain(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of float64 ``[M, K]`` and ``[N, K]`` in the order ``mul_add_chain``: float64 ``[M, N]``.

    Raises TypeError when an operand is not float64.
    """
    _check(x, weight, torch.float64, "mul_add_chain")
    return _blocks(x, weight, _mul_add_block, torch.float64)


def _check(x: Tensor, weight: Tensor, dtype: torch.dtype, name: str) -> None:
    if x.dtype != dtype or weight.dtype != dtype:
        raise TypeError(f"{name} takes {dtype}, got {x.dtype} and {weight.dtype}")


def _blocks(x: Tensor, weight: Tensor, block: object, dtype: torch.dtype) -> Tensor:
    assert callable(block)
    x, weight = x.detach().T.contiguous(), weight.detach().T.contiguous()
    parts = [block(x[:, r : r + ROWS], weight) for r in range(0, x.shape[1], ROWS)]
    return torch.cat(parts).to(dtype) if parts else weight.new_zeros((0, weight.shape[1]), dtype=dtype)


def _mul_add_block(x: Tensor, weight: Tensor) -> Tensor:
    c = torch.zeros(x.shape[1], weight.shape[1], dtype=torch.float64, device=x.device)
    product = torch.empty_like(c)
    for k in range(x.shape[0]):
        torch.mul(x[k].unsqueeze(1), weight[k].unsqueeze(0), out=product)
        c += product
    return c


def _fma_block(x: Tensor, weight: Tensor) -> Tensor:
    return fma_steps(x, weight, x.new_zeros((x.shape[1], weight.shape[1])))


def fma_steps(x: Tensor, weight: Tensor, c: Tensor) -> Tensor:
    """``c`` plus the products of ``[K, ..., R]`` and ``[K, ..., C]``, one k after the other: ``[..., R, C]``.

    All are float64 numbers that are float32's: after each step the sum is rounded to float32.

    The float64 sum may have been rounded to midway between two float32: then, and where a float32 is subnormal and
    midway is elsewhere, rounding it again could go the wrong way. That is rare, so a stretch of steps is done without
    asking, and once more, by way of numbers rounded to odd, if one of its sums was such.
    """
    length = max(min(STRETCH // max(c.numel(), 1), 256), 1)
    totals = torch.empty(length, *c.shape, dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[0], length):
        products = x[start : start + length].unsqueeze(-1) * weight[start : start + length].unsqueeze(-2)
        before, c = c, _steps(products, c, totals)
        done = totals[: len(products)]
        if bool(midway(done).any()):
            c = before
            for product in products:
                c = _to_odd(product, c, product + c).float().double()
    return c


def _steps(products: Tensor, c: Tensor, totals: Tensor) -> Tensor:
    """Add products one after the other, each float64 sum rounded to float32; ``totals`` receives the sums."""
    narrow = torch.empty(c.shape, dtype=torch.float32, device=c.device)
    c = c.clone()
    for product, total in zip(products, totals, strict=False):
        torch.add(c, product, out=total)
        c.copy_(narrow.copy_(total))
    return c


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32, rounded once to nearest; of float64, product and sum each rounded."""
    if a.dtype == torch.float64:
        return a * b + c
    product, addend = torch.broadcast_tensors(a.double() * b.double(), c.double())
    total = product + addend
    return (_to_odd(product, addend, total) if bool(midway(total).any()) else total).float()


def midway(total: Tensor) -> Tensor:
    """Where rounding the float64 ``total`` of an inexact sum to float32 could go the wrong way; never too few."""
    return ((total.view(torch.int64) & _TAIL) == _HALF) | ((total.abs() < 2.0**-125) & (total != 0))


def _to_odd(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The exact ``a + b`` rounded to odd: where ``total``, the nearest float64, is not exact, its last bit becomes 1.

    Rounding that to a format of at most 51 bits gives what rounding the exact sum would (Boldo and Melquiond,
    "Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers, 2008). The error is Knuth's TwoSum.
    """
    b_seen = total - a
    error = (a - (total - b_seen)) + (b - b_seen)
    bits = total.view(torch.int64)
    inexact = (error != 0) & torch.isfinite(total) & ((bits & 1) == 0)
    outward = (error > 0) == (total > 0)
    return torch.where(inexact, torch.where(outward, bits + 1, bits - 1), bits).view(torch.float64)
