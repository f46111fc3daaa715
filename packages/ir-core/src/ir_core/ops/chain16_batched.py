# SPDX-License-Identifier: Apache-2.0
"""Sums of products on top of an accumulator, of many small matrices at once: what ``portable`` of attention is made of.

``chain16_add`` is the order ``chain16`` (``chain16.py``) begun with a given accumulator instead of +0; ``fma_add`` and
``mul_add`` are ``fma_chain`` and ``mul_add_chain`` (``fma_chain.py``) begun so. Matrices of a batch are independent.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ir_core.ops.chain16 import _LOWEST, BLOCK, FRACTION, STEP, _exponent, _power, _toward_zero
from ir_core.ops.fma_chain import fma_steps

_NARROW: Final = (-45, 50)
"""Exponents of operands whose products are normal float32, and stay so when they are scaled to ``2**25`` units."""


def chain16_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``acc + x @ weight.mT`` in the order ``chain16``, 16 products at a time on top of ``acc``.

    Args:
        acc: float32 ``[Z, R, C]``.
        x: fp16 or bf16 ``[Z, R, K]``.
        weight: of x's dtype, ``[Z, C, K]``.

    Returns:
        float32 ``[Z, R, C]``.
    """
    (batch, rows, columns), k = acc.shape, x.shape[2]
    if not acc.numel() or not k:
        return acc
    a, b = _steps(x), _steps(weight)
    plain = bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())
    ea, eb = (_exponents(t, _LOWEST[x.dtype]) for t in (a, b))
    narrow = plain and all(_inside(t, e) for t, e in ((a, ea), (b, eb)))
    if narrow:
        a, b = a.float(), b.float()
    block = BLOCK.get(x.device.type, BLOCK["cpu"])
    wide = min(columns, block)
    high = min(max(block // wide, 1), rows)
    deep = max(block // (wide * high), 1)
    out = torch.empty_like(acc)
    for z in range(0, batch, deep):
        for r in range(0, rows, high):
            for c in range(0, columns, wide):
                at = slice(z, z + deep), slice(r, r + high), slice(c, c + wide)
                left, right = (at[0], ..., at[1]), (at[0], ..., at[2])
                out[at] = _block(acc[at], a[left], ea[left], b[right], eb[right], plain)
    return out


def _steps(t: Tensor) -> Tensor:
    """``[Z, R, K]`` as float64 ``[Z, K / 16, 16, R]``, padded with zeros."""
    t = torch.nn.functional.pad(t.detach(), (0, -t.shape[2] % STEP)).mT
    return t.reshape(t.shape[0], -1, STEP, t.shape[2]).double()


def _exponents(t: Tensor, lowest: int) -> Tensor:
    """Exponents of what is finite; the rest counts as zero."""
    return _exponent(torch.where(torch.isfinite(t), t, 0.0), lowest).to(torch.int16)


def _inside(t: Tensor, e: Tensor) -> bool:
    return not bool(((t != 0) & ((e < _NARROW[0]) | (e > _NARROW[1]))).any())


def _block(acc: Tensor, a: Tensor, ea: Tensor, b: Tensor, eb: Tensor, plain: bool) -> Tensor:
    """The accumulators ``[Z, R, C]`` of operands ``[Z, S, 16, R]`` and ``[Z, S, 16, C]``."""
    c = acc.double()
    for step in range(a.shape[1]):
        products = a[:, step].unsqueeze(3) * b[:, step].unsqueeze(2)
        largest = (ea[:, step].unsqueeze(3) + eb[:, step].unsqueeze(2)).amax(1).to(torch.int64)
        e = torch.maximum(largest, _exponent(torch.where(torch.isfinite(c), c, 0.0), -126)).clamp(min=-133)
        up = _power(FRACTION - e)
        if a.dtype == torch.float32:  # all products are normal float32; 16 of them, cut off, are below 2**31
            scale = (((FRACTION - e).clamp(max=126) + 127) << 23).to(torch.int32).view(torch.float32)
            total = products.mul_(scale.unsqueeze(1)).to(torch.int32).sum(1, dtype=torch.int32).double()
        else:
            finite = products if plain else torch.where(torch.isfinite(products), products, 0.0)
            finite = finite * up.unsqueeze(1)
            total = finite.sub_(torch.frac(finite)).sum(1)
        total = total.add_((c * up).trunc_())
        new = _toward_zero(total.mul_(_power(e - FRACTION)))
        new = torch.where(new.abs() >= 2.0**128, new * torch.inf, new)
        if not plain:
            others = torch.where(torch.isfinite(products), 0.0, products).sum(1)
            new = torch.where((others == 0) & torch.isfinite(c), new, c + others)
        c = new
    return c.float()


def fma_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``acc + x @ weight.mT`` of float32 ``[Z, R, C]``, ``[Z, R, K]``, ``[Z, C, K]``, by fused multiply-adds."""
    left, right = (t.detach().permute(2, 0, 1).double() for t in (x, weight))
    return fma_steps(left, right, acc.double()).float()


def mul_add(acc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same of float64; product and sum are each rounded."""
    left, right = (t.detach().permute(2, 0, 1) for t in (x, weight))
    for k in range(left.shape[0]):
        acc = acc + left[k].unsqueeze(2) * right[k].unsqueeze(1)
    return acc
