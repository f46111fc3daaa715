# SPDX-License-Identifier: Apache-2.0
"""The kernels of gelu_and_mul_sparse: whole gates in registers, or three passes over long ones.

The canonical GELU is ``ir_core.ops.activation.canonical_gelu``, step by step, with its constants.
"""

import triton
import triton.language as tl

from ir_core.ops import activation
from ir_kernels_triton.elementary import LN2_HIGH, LN2_LOW, LOG2_E, ROUND
from ir_kernels_triton.rms_kernel import row_offsets
from ir_kernels_triton.tree import (
    addresses,
    canonical_divide,
    canonical_reciprocal,
    columns,
    inside,
    over_rows,
    plain_sum,
    round_to,
    row_sums,
    thread_sums,
    upcast,
)

EXP_MIN = tl.constexpr(activation.EXP_MIN)
E0, E1, E2, E3, E4 = (tl.constexpr(c) for c in activation.EXP)
TAIL_SCALE = tl.constexpr(activation.TAIL_SCALE)
T0, T1, T2, T3, T4, T5, T6 = (tl.constexpr(c) for c in activation.TAIL)
CUBIC = tl.constexpr(activation.CUBIC)
SLOPE = tl.constexpr(activation.MINUS_TWO_ROOT_TWO_OVER_PI)
ARGUMENTS = [
    "x_ptr",
    "y_ptr",
    "rows",
    "inner",
    "x_outer",
    "x_inner",
    "y_outer",
    "y_inner",
    "multiplier",
]


@triton.jit
def _read(base, offset, mask, VEC: tl.constexpr, BYTES: tl.constexpr):
    return tl.load(addresses(base, offset, VEC, BYTES, True), mask=mask, other=0.0)


@triton.jit
def _exp(y):
    y = tl.where(y < EXP_MIN, EXP_MIN, y)
    n = (y * LOG2_E + ROUND) - ROUND
    r = (y - n * LN2_HIGH) - n * LN2_LOW
    p = (((r * E4 + E3) * r + E2) * r + E1) * r + E0
    p = ((p * r) * r + r) + 1.0
    return p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _gelu(x, TANH: tl.constexpr, CANONICAL: tl.constexpr):
    """GELU of float32 ``x >= 0``."""
    if CANONICAL:
        if TANH:
            y = tl.div_rn(x, _exp((x + ((x * x) * x) * CUBIC) * SLOPE) + 1.0)
        else:
            t = canonical_reciprocal(x * TAIL_SCALE + 1.0)
            p = (((((t * T6 + T5) * t + T4) * t + T3) * t + T2) * t + T1) * t + T0
            y = x * (1.0 - (p * t) * _exp((x * x) * -0.5))
    else:
        if TANH:
            y = x / (tl.exp((x + x * x * x * CUBIC) * SLOPE) + 1.0)
        else:
            y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return y


@triton.jit
def _threshold(
    mean, variance, multiplier, DTYPE: tl.constexpr, CANONICAL: tl.constexpr, INTERPRET: tl.constexpr
):
    """``mean + std * multiplier``, rounded to ``x``'s dtype where the op rounds."""
    std = tl.sqrt_rn(variance) if CANONICAL else tl.sqrt(variance)
    step = upcast(
        round_to(upcast(round_to(std, DTYPE, INTERPRET), INTERPRET) * multiplier, DTYPE, INTERPRET), INTERPRET
    )
    total = upcast(round_to(mean, DTYPE, INTERPRET), INTERPRET) + step
    return upcast(round_to(total, DTYPE, INTERPRET), INTERPRET)


@triton.jit
def _gated(
    gate,
    up,
    threshold,
    DTYPE: tl.constexpr,
    TANH: tl.constexpr,
    CANONICAL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    sparse = upcast(round_to(gate - threshold, DTYPE, INTERPRET), INTERPRET)
    sparse = tl.where(sparse <= 0, 0.0, sparse)  # a NaN stays
    value = upcast(round_to(_gelu(sparse, TANH, CANONICAL), DTYPE, INTERPRET), INTERPRET)
    return round_to(value * up, DTYPE, INTERPRET)


@triton.jit
def _mean(
    x,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    HALVES: tl.constexpr,
    PIECE: tl.constexpr,
    CANONICAL: tl.constexpr,
):
    if CANONICAL:
        mean = canonical_divide(row_sums(thread_sums(x, HALVES, PIECE), ROWS, WARPS), N)
    else:
        mean = plain_sum(x, ROWS) * (1.0 / N)
    return mean


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def gelu_tile(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner, multiplier,
    N: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr,
    TANH: tl.constexpr, CANONICAL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """``ROWS`` whole rows, gates of ``N`` elements."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + (tl.arange(0, ROWS * SPAN) // SPAN)[None, :]
    col = columns(CHUNKS, HALVES, ROWS, SPAN, PIECE)
    mask = inside(col, row, rows, N, ROWS, VEC)
    at = row_offsets(row, INNER, inner, x_outer, x_inner) + col
    gate = upcast(_read(x_ptr, at, mask, VEC, BYTES), INTERPRET)
    up = upcast(_read(x_ptr + N, at, mask, VEC, BYTES), INTERPRET)
    mean = _mean(gate, N, ROWS, WARPS, HALVES, PIECE, CANONICAL)
    deviation = tl.where(mask, gate - over_rows(mean, SPAN), 0.0)
    variance = _mean(deviation * deviation, N, ROWS, WARPS, HALVES, PIECE, CANONICAL)
    threshold = over_rows(_threshold(mean, variance, multiplier, DTYPE, CANONICAL, INTERPRET), SPAN)
    y = _gated(gate, up, threshold, DTYPE, TANH, CANONICAL, INTERPRET)
    to = row_offsets(row, INNER, inner, y_outer, y_inner) + col
    tl.store(addresses(y_ptr, to, VEC, BYTES, True), y, mask=mask)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def gelu_long(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner, multiplier,
    N: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr,
    TANH: tl.constexpr, CANONICAL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One row whose gate of ``N`` elements takes ``BLOCKS`` blocks: mean, variance, result."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    gate = upcast(_read(x_ptr, x_row + col, inside(col, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
    part = thread_sums(gate, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        more = upcast(_read(x_ptr, x_row + at, inside(at, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
        part = part + thread_sums(more, HALVES, PIECE)
    mean = canonical_divide(row_sums(part, 1, WARPS), N)
    gate = upcast(_read(x_ptr, x_row + col, inside(col, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
    deviation = tl.where(col < N, gate - over_rows(mean, SPAN), 0.0)
    part = thread_sums(deviation * deviation, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        gate = upcast(_read(x_ptr, x_row + at, inside(at, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
        deviation = tl.where(at < N, gate - over_rows(mean, SPAN), 0.0)
        part = part + thread_sums(deviation * deviation, HALVES, PIECE)
    variance = canonical_divide(row_sums(part, 1, WARPS), N)
    threshold = over_rows(_threshold(mean, variance, multiplier, DTYPE, CANONICAL, INTERPRET), SPAN)
    y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
    # Halves of a block: the result needs more registers than the sums, and float32 would spill.
    for b in range(2 * BLOCKS):
        to = columns(CHUNKS // 2, HALVES, 1, SPAN, PIECE) + b * (HALVES * (CHUNKS // 2) * SPAN)
        g = upcast(_read(x_ptr, x_row + to, inside(to, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
        u = upcast(_read(x_ptr + N, x_row + to, inside(to, row, rows, N, 1, VEC), VEC, BYTES), INTERPRET)
        z = _gated(g, u, threshold, DTYPE, TANH, CANONICAL, INTERPRET)
        tl.store(addresses(y_ptr, y_row + to, VEC, BYTES, True), z, mask=inside(to, row, rows, N, 1, VEC))
