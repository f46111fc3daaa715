# SPDX-License-Identifier: Apache-2.0
"""Device functions: exponential and logarithm of float32 with the bits of ``ir_core.ops.elementary``.

A fused multiply-add is asked for by name: kernels are compiled with contraction forbidden, so each is where the
definition has one and nowhere else. The interpreter's own rounds twice, so there it is computed through float64, which
was found to give the same for every float32 (see ``ir_core.ops.elementary``).
"""

import triton
import triton.language as tl

from ir_core.ops import elementary

LOG2_E = tl.constexpr(elementary.LOG2_E)
ROUND = tl.constexpr(elementary.ROUND)
LN2_HIGH = tl.constexpr(elementary.LN2_HIGH)
LN2_LOW = tl.constexpr(elementary.LN2_LOW)
LN2 = tl.constexpr(elementary.LN2)
EXP_MIN = tl.constexpr(elementary.EXP_MIN)
EXP_MAX = tl.constexpr(elementary.EXP_MAX)
EXP2_MIN = tl.constexpr(elementary.EXP2_MIN)
EXP2_MAX = tl.constexpr(elementary.EXP2_MAX)
E0, E1, E2, E3, E4 = (tl.constexpr(c) for c in elementary.EXP)
B30, B31, B32 = (tl.constexpr(c) for c in elementary.EXP2[3])
B40, B41, B42, B43 = (tl.constexpr(c) for c in elementary.EXP2[4])
B50, B51, B52, B53, B54 = (tl.constexpr(c) for c in elementary.EXP2[5])
B60, B61, B62, B63, B64, B65 = (tl.constexpr(c) for c in elementary.EXP2[6])
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(c) for c in elementary.LOG)
LOG_SPLIT = tl.constexpr(elementary.LOG_SPLIT)


@triton.jit
def fma(a, b, c, INTERPRET: tl.constexpr):
    """``a * b + c`` of float32 tensors or constants, rounded once."""
    if INTERPRET:
        product = tl.cast(a, tl.float64) * tl.cast(b, tl.float64)
        return (product + tl.cast(c, tl.float64)).to(tl.float32)
    else:
        return tl.fma(a, b, c)


@triton.jit
def _scaled(p, rounded, n, NONPOSITIVE: tl.constexpr):
    """``p * 2**n``; ``rounded`` is ``n + ROUND``, whose last bits are those of ``n``."""
    power = ((rounded.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    y = p * power
    if not NONPOSITIVE:
        y = tl.where(n > 127.0, (p * 2.0) * 1.7014118346046923e38, y)  # 2**127
    return y


@triton.jit
def _within(x, LOW: tl.constexpr, HIGH: tl.constexpr, NONPOSITIVE: tl.constexpr):
    """``x`` from ``LOW`` to ``HIGH``; a NaN stays."""
    x = tl.maximum(x, LOW, propagate_nan=tl.PropagateNan.ALL)
    if not NONPOSITIVE:
        x = tl.minimum(x, HIGH, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def exp(x, INTERPRET: tl.constexpr, NONPOSITIVE: tl.constexpr = False):
    """``exp(x)``, by 13 instructions where ``NONPOSITIVE``: no ``x`` is above 0 then (a NaN may be there)."""
    x = _within(x, EXP_MIN, EXP_MAX, NONPOSITIVE)
    rounded = fma(x, LOG2_E, ROUND, INTERPRET)
    n = rounded - ROUND
    r = fma(n, -LN2_HIGH, x, INTERPRET)
    r = fma(n, -LN2_LOW, r, INTERPRET)
    p = fma(r, E4, E3, INTERPRET)
    p = fma(p, r, E2, INTERPRET)
    p = fma(p, r, E1, INTERPRET)
    p = fma(p, r, E0, INTERPRET)
    p = fma(p, r, 1.0, INTERPRET)
    p = fma(p, r, 1.0, INTERPRET)
    return _scaled(p, rounded, n, NONPOSITIVE)


@triton.jit
def exp2(x, TERMS: tl.constexpr, INTERPRET: tl.constexpr, NONPOSITIVE: tl.constexpr = False):
    """``2**x`` by a polynomial of ``TERMS`` coefficients behind the 1; with ``NONPOSITIVE`` by 6 instructions more."""
    x = _within(x, EXP2_MIN, EXP2_MAX, NONPOSITIVE)
    rounded = x + ROUND
    n = rounded - ROUND
    f = x - n
    if TERMS == 3:
        p = fma(f, B32, B31, INTERPRET)
        p = fma(p, f, B30, INTERPRET)
    elif TERMS == 4:
        p = fma(f, B43, B42, INTERPRET)
        p = fma(p, f, B41, INTERPRET)
        p = fma(p, f, B40, INTERPRET)
    elif TERMS == 5:
        p = fma(f, B54, B53, INTERPRET)
        p = fma(p, f, B52, INTERPRET)
        p = fma(p, f, B51, INTERPRET)
        p = fma(p, f, B50, INTERPRET)
    else:
        tl.static_assert(TERMS == 6)
        p = fma(f, B65, B64, INTERPRET)
        p = fma(p, f, B63, INTERPRET)
        p = fma(p, f, B62, INTERPRET)
        p = fma(p, f, B61, INTERPRET)
        p = fma(p, f, B60, INTERPRET)
    p = fma(p, f, 1.0, INTERPRET)
    return _scaled(p, rounded, n, NONPOSITIVE)


@triton.jit
def log(x, INTERPRET: tl.constexpr):
    """Natural logarithm."""
    small = x < 1.1754943508222875e-38  # 2**-126
    bits = tl.where(small, x * 8388608.0, x).to(tl.int32, bitcast=True)
    e = (bits - LOG_SPLIT) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    n = tl.where(small, e - 23, e).to(tl.float32)
    p = fma(f, L8, L7, INTERPRET)
    p = fma(p, f, L6, INTERPRET)
    p = fma(p, f, L5, INTERPRET)
    p = fma(p, f, L4, INTERPRET)
    p = fma(p, f, L3, INTERPRET)
    p = fma(p, f, L2, INTERPRET)
    p = fma(p, f, L1, INTERPRET)
    p = fma(p, f, L0, INTERPRET)
    y = fma(n, LN2, fma(p, f * f, f, INTERPRET), INTERPRET)
    y = tl.where(x < float("inf"), y, x)
    y = tl.where(x < 0.0, float("nan"), y)
    return tl.where(x == 0.0, float("-inf"), y)
