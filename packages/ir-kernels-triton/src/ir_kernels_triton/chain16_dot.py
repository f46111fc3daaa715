# SPDX-License-Identifier: Apache-2.0
"""``tl.dot`` in a documented order, where the hardware or the interpreter has another: device functions for any pack.

In Triton's interpreter ``tl.dot`` is NumPy's matmul, whose sums follow no order at all. A kernel that takes its
products and sums from here when it is interpreted has the bits of the order, so that its tiles, addresses and masks
can be tested on a CPU. The functions compile too, for a GPU whose tensor cores have another order; there they are slow.
"""

import triton
import triton.language as tl

from ir_kernels_triton.tree import upcast


@triton.jit
def _exponent(x, LOWEST: tl.constexpr):
    """Exponents of float64 numbers, not below ``LOWEST``; that of zero is below all others, also in a sum of two."""
    found = ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    return tl.where(x == 0.0, -10000, tl.maximum(found, LOWEST))


@triton.jit
def _power(exponent):
    """``2.0**exponent`` as float64, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _step(x, w, acc, LOWEST: tl.constexpr):
    """One step of ``chain16``: ``acc`` ``[M, N]`` plus 16 products of float64 ``[M, 16]`` and ``[16, N]``."""
    products = x[:, :, None] * w[None, :, :]
    e_x = _exponent(tl.where(_finite(x), x, 0.0), LOWEST)
    e_w = _exponent(tl.where(_finite(w), w, 0.0), LOWEST)
    c = acc.to(tl.float64)
    c_finite = tl.where(_finite(c), c, 0.0)
    largest = tl.max(e_x[:, :, None] + e_w[None, :, :], 1)
    e = tl.maximum(tl.maximum(largest, _exponent(c_finite, -126)), -133)
    up = _power(25 - e)
    terms = (tl.where(_finite(products), products, 0.0) * up[:, None, :]).to(tl.int64)  # cut off, toward zero
    total = tl.sum(terms, 1) + (c_finite * up).to(tl.int64)
    value = total.to(tl.float64) * _power(e - 25)
    unit = _power(tl.maximum(_exponent(value, -126), -126) - 23)
    value = (value / unit).to(tl.int64).to(tl.float64) * unit
    infinity = tl.where(value < 0.0, float("-inf"), float("inf"))
    value = tl.where(tl.abs(value) >= 3.402823669209385e38, infinity, value)  # 2**128
    others = tl.sum(tl.where(_finite(products), 0.0, products), 1)
    value = tl.where((others == 0.0) & _finite(c), value, c + others)
    return value.to(tl.float32)


@triton.jit
def chain16_dot(x, w, acc, INTERPRET: tl.constexpr):
    """``acc + x @ w`` in the order ``chain16``: the K of the tile in steps of 16, ascending.

    ``x`` is fp16 or bf16 ``[M, K]`` and ``w`` ``[K, N]`` of its dtype, K a multiple of 16; ``acc`` is float32 ``[M,
    N]``.
    """
    M: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    N: tl.constexpr = w.shape[1]
    LOWEST: tl.constexpr = -14 if x.dtype == tl.float16 else -126
    x_steps = tl.reshape(upcast(x, INTERPRET).to(tl.float64), (M, K // 16, 16))
    w_steps = tl.reshape(upcast(w, INTERPRET).to(tl.float64), (K // 16, 16, N))
    number = tl.arange(0, K // 16)
    for step in tl.static_range(K // 16):
        here = number == step
        x_step = tl.sum(tl.where(here[None, :, None], x_steps, 0.0), 1)  # one term that is not zero: exact
        w_step = tl.sum(tl.where(here[:, None, None], w_steps, 0.0), 0)
        acc = _step(x_step, w_step, acc, LOWEST)
    return acc


@triton.jit
def fma_exact(a, b, c):
    """``a * b + c`` of float32 tensors, rounded once, without the instruction for it.

    The product of two float32 is exact in float64. Their sum is rounded to odd there, then to float32, which is what
    rounding the exact sum once gives (Boldo and Melquiond, 2008); its error is Knuth's TwoSum.
    """
    product = tl.cast(a, tl.float64) * tl.cast(b, tl.float64)
    addend = tl.cast(c, tl.float64)
    total = product + addend
    seen = total - product
    error = (product - (total - seen)) + (addend - seen)
    bits = total.to(tl.int64, bitcast=True)
    outward = (error > 0.0) == (total > 0.0)
    odd = tl.where(outward, bits + 1, bits - 1)
    inexact = (error != 0.0) & _finite(total) & ((bits & 1) == 0)
    return tl.where(inexact, odd, bits).to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def fma_chain_dot(x, w, acc):
    """``acc + x @ w`` of float32 tiles in the order ``fma_chain``: one fused multiply-add after the other."""
    K: tl.constexpr = x.shape[1]
    number = tl.arange(0, K)
    for k in tl.static_range(K):
        x_k = tl.sum(tl.where((number == k)[None, :], x, 0.0), 1)
        w_k = tl.sum(tl.where((number == k)[:, None], w, 0.0), 0)
        acc = fma_exact(x_k[:, None], w_k[None, :], acc)
    return acc
