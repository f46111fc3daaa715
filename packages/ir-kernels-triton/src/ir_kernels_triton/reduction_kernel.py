# SPDX-License-Identifier: Apache-2.0
"""The kernels of softmax, log_softmax and logsumexp, of sum and mean, and of layer_norm: whole rows in registers, or
several passes over long rows.

Steps and roundings are those of ``ir_core.ops.reduction`` and ``layer_norm_portable``. The maximum of a row has no
order, so it is taken as the compiler likes; sums have the canonical order. Rows keep the promise of alignment.
"""

import triton
import triton.language as tl

from ir_kernels_triton.elementary import exp, log
from ir_kernels_triton.rms_kernel import row_offsets
from ir_kernels_triton.tree import (
    addresses,
    canonical_divide,
    canonical_reciprocal,
    columns,
    inside,
    over_rows,
    round_to,
    row_sums,
    thread_sums,
    upcast,
)

SOFTMAX = tl.constexpr(0)
LOG_SOFTMAX = tl.constexpr(1)
LOGSUMEXP = tl.constexpr(2)

ARGUMENTS = ["x_ptr", "y_ptr", "rows", "inner", "x_outer", "x_inner", "y_outer", "y_inner"]
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""
NORM_ARGUMENTS = [*ARGUMENTS[:2], "w_ptr", "b_ptr", *ARGUMENTS[2:], "epsilon"]


@triton.jit
def _read(x_ptr, row_offset, col, mask, VEC: tl.constexpr, BYTES: tl.constexpr, INTERPRET: tl.constexpr):
    """Elements of rows as float32, zero where masked."""
    x = tl.load(addresses(x_ptr, row_offset + col, VEC, BYTES, True), mask=mask, other=0.0)
    return upcast(x, INTERPRET)


@triton.jit
def _write(y_ptr, row_offset, col, y, mask, VEC: tl.constexpr, BYTES: tl.constexpr, INTERPRET: tl.constexpr):
    y = round_to(y, y_ptr.dtype.element_ty, INTERPRET)
    tl.store(addresses(y_ptr, row_offset + col, VEC, BYTES, True), y, mask=mask)


@triton.jit
def _write_one(y_ptr, y, rows, inner, y_outer, y_inner, INNER: tl.constexpr, INTERPRET: tl.constexpr):
    """One number for each row, ``[ROWS]``."""
    row = tl.program_id(0) * y.shape[0] + tl.arange(0, y.shape[0])
    y_at = y_ptr + row_offsets(row, INNER, inner, y_outer, y_inner)
    tl.store(y_at, round_to(y, y_ptr.dtype.element_ty, INTERPRET), mask=row < rows)


@triton.jit
def _totals(part, ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Canonical sums of thread sums, ``[ROWS]``; +0 of zeros of either sign."""
    return row_sums(part, ROWS, WARPS) + 0.0


@triton.jit
def _maxima(x, ROWS: tl.constexpr):
    """The largest element of each row of a tile ``[HALVES * CHUNKS, ROWS * SPAN]``: ``[ROWS]``."""
    return tl.max(tl.reshape(tl.max(x, 0), (ROWS, x.shape[1] // ROWS)), 1)


@triton.jit
def _logsumexp(largest, total, no_number, INTERPRET: tl.constexpr):
    """``no_number``: 1 where the row has a NaN, which ``largest`` may have passed over."""
    y = tl.where(tl.abs(largest) == float("inf"), largest, largest + log(total, INTERPRET))
    return tl.where(no_number > 0, float("nan"), y)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def softmax_tile(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner,
    N: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr,
    KIND: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """softmax, log_softmax or logsumexp of ``ROWS`` whole rows of ``N`` elements."""
    row = tl.program_id(0) * ROWS + (tl.arange(0, ROWS * SPAN) // SPAN)[None, :]
    col = columns(CHUNKS, HALVES, ROWS, SPAN, PIECE)
    mask = inside(col, row, rows, N, ROWS, VEC)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    x = tl.where(mask, _read(x_ptr, x_row, col, mask, VEC, BYTES, INTERPRET), float("-inf"))
    largest = _maxima(x, ROWS)
    shifted = x - over_rows(largest, SPAN)
    e = exp(shifted, INTERPRET, True)
    total = _totals(thread_sums(e, HALVES, PIECE), ROWS, WARPS)
    if KIND == LOGSUMEXP:
        y = _logsumexp(largest, total, _maxima((x != x).to(tl.int32), ROWS), INTERPRET)
        _write_one(y_ptr, y, rows, inner, y_outer, y_inner, INNER, INTERPRET)
    else:
        y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
        if KIND == SOFTMAX:
            y = e * over_rows(canonical_reciprocal(total), SPAN)
        else:
            y = shifted - over_rows(log(total, INTERPRET), SPAN)
        _write(y_ptr, y_row, col, y, mask, VEC, BYTES, INTERPRET)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def softmax_long(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner,
    N: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, OUT_BLOCKS: tl.constexpr, OUT_CHUNKS: tl.constexpr,
    VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The same of one row of ``BLOCKS`` blocks: its maximum, its sum, its result. A row is read from memory once and
    then from the L2 cache."""
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    mask = inside(col, row, rows, N, 1, VEC)
    x = tl.where(mask, _read(x_ptr, x_row, col, mask, VEC, BYTES, INTERPRET), float("-inf"))
    best = tl.max(x, 0)
    no_number = tl.max((x != x).to(tl.int32), 0)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        mask = inside(at, row, rows, N, 1, VEC)
        x = tl.where(mask, _read(x_ptr, x_row, at, mask, VEC, BYTES, INTERPRET), float("-inf"))
        best = tl.maximum(best, tl.max(x, 0))
        if KIND == LOGSUMEXP:
            no_number = tl.maximum(no_number, tl.max((x != x).to(tl.int32), 0))
    largest = tl.max(tl.reshape(best, (1, SPAN)), 1)
    m = over_rows(largest, SPAN)
    mask = inside(col, row, rows, N, 1, VEC)
    x = tl.where(mask, _read(x_ptr, x_row, col, mask, VEC, BYTES, INTERPRET), float("-inf"))
    part = thread_sums(exp(x - m, INTERPRET, True), HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        mask = inside(at, row, rows, N, 1, VEC)
        x = tl.where(mask, _read(x_ptr, x_row, at, mask, VEC, BYTES, INTERPRET), float("-inf"))
        part = part + thread_sums(exp(x - m, INTERPRET, True), HALVES, PIECE)
    total = _totals(part, 1, WARPS)
    if KIND == LOGSUMEXP:
        found = tl.max(tl.reshape(no_number, (1, SPAN)), 1)
        y = _logsumexp(largest, total, found, INTERPRET)
        _write_one(y_ptr, y, rows, inner, y_outer, y_inner, INNER, INTERPRET)
    else:
        y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
        if KIND == SOFTMAX:
            last = over_rows(canonical_reciprocal(total), SPAN)
        else:
            last = over_rows(log(total, INTERPRET), SPAN)
        for b in range(OUT_BLOCKS):
            to = columns(OUT_CHUNKS, HALVES, 1, SPAN, PIECE) + b * (HALVES * OUT_CHUNKS * SPAN)
            written = inside(to, row, rows, N, 1, VEC)
            shifted = _read(x_ptr, x_row, to, written, VEC, BYTES, INTERPRET) - m
            if KIND == SOFTMAX:
                # What is masked may lie above the maximum, where this form of exp has no value: it is not written.
                y = exp(shifted, INTERPRET, True) * last
            else:
                y = shifted - last
            _write(y_ptr, y_row, to, y, written, VEC, BYTES, INTERPRET)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def sum_tile(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner,
    N: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr,
    MEAN: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Sum or mean of ``ROWS`` whole rows of ``N`` elements."""
    row = tl.program_id(0) * ROWS + (tl.arange(0, ROWS * SPAN) // SPAN)[None, :]
    col = columns(CHUNKS, HALVES, ROWS, SPAN, PIECE)
    mask = inside(col, row, rows, N, ROWS, VEC)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    x = _read(x_ptr, x_row, col, mask, VEC, BYTES, INTERPRET)
    y = _totals(thread_sums(x, HALVES, PIECE), ROWS, WARPS)
    if MEAN:
        y = canonical_divide(y, N)
    _write_one(y_ptr, y, rows, inner, y_outer, y_inner, INNER, INTERPRET)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def sum_long(
    x_ptr, y_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner,
    N: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, INNER: tl.constexpr,
    MEAN: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The same of one row of ``BLOCKS`` blocks."""
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    x = _read(x_ptr, x_row, col, inside(col, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
    part = thread_sums(x, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        x = _read(x_ptr, x_row, at, inside(at, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
        part = part + thread_sums(x, HALVES, PIECE)
    y = _totals(part, 1, WARPS)
    if MEAN:
        y = canonical_divide(y, N)
    _write_one(y_ptr, y, rows, inner, y_outer, y_inner, INNER, INTERPRET)


@triton.jit
def _rstd(squares, epsilon, N: tl.constexpr):
    return canonical_reciprocal(tl.sqrt_rn(canonical_divide(squares, N) + epsilon))


@triton.jit
def _weighed(
    y, w_ptr, b_ptr, col, mask, VEC: tl.constexpr, W_BYTES: tl.constexpr, B_BYTES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    if HAS_WEIGHT:
        y = y * upcast(tl.load(addresses(w_ptr, col, VEC, W_BYTES, True), mask=mask, other=0.0), INTERPRET)
    if HAS_BIAS:
        y = y + upcast(tl.load(addresses(b_ptr, col, VEC, B_BYTES, True), mask=mask, other=0.0), INTERPRET)
    return y


@triton.jit(do_not_specialize=NORM_ARGUMENTS, do_not_specialize_on_alignment=NORM_ARGUMENTS)
def layer_norm_tile(
    x_ptr, y_ptr, w_ptr, b_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner, epsilon,
    N: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, W_BYTES: tl.constexpr,
    B_BYTES: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, INNER: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Normalise ``ROWS`` whole rows of ``N`` elements."""
    row = tl.program_id(0) * ROWS + (tl.arange(0, ROWS * SPAN) // SPAN)[None, :]
    col = columns(CHUNKS, HALVES, ROWS, SPAN, PIECE)
    mask = inside(col, row, rows, N, ROWS, VEC)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    x = _read(x_ptr, x_row, col, mask, VEC, BYTES, INTERPRET)
    mean = canonical_divide(_totals(thread_sums(x, HALVES, PIECE), ROWS, WARPS), N)
    deviation = tl.where(mask, x - over_rows(mean, SPAN), 0.0)
    squares = _totals(thread_sums(deviation * deviation, HALVES, PIECE), ROWS, WARPS)
    y = deviation * over_rows(_rstd(squares, epsilon, N), SPAN)
    whole = inside(col, row, rows, N, 1, VEC)
    y = _weighed(y, w_ptr, b_ptr, col, whole, VEC, W_BYTES, B_BYTES, HAS_WEIGHT, HAS_BIAS, INTERPRET)
    y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
    _write(y_ptr, y_row, col, y, mask, VEC, BYTES, INTERPRET)


@triton.jit(do_not_specialize=NORM_ARGUMENTS, do_not_specialize_on_alignment=NORM_ARGUMENTS)
def layer_norm_long(
    x_ptr, y_ptr, w_ptr, b_ptr, rows, inner, x_outer, x_inner, y_outer, y_inner, epsilon,
    N: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, OUT_BLOCKS: tl.constexpr, OUT_CHUNKS: tl.constexpr,
    VEC: tl.constexpr, BYTES: tl.constexpr, W_BYTES: tl.constexpr, B_BYTES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, INNER: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The same of one row of ``BLOCKS`` blocks: mean, variance, result."""
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    x = _read(x_ptr, x_row, col, inside(col, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
    part = thread_sums(x, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        x = _read(x_ptr, x_row, at, inside(at, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
        part = part + thread_sums(x, HALVES, PIECE)
    mean = over_rows(canonical_divide(_totals(part, 1, WARPS), N), SPAN)
    x = _read(x_ptr, x_row, col, inside(col, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
    deviation = tl.where(col < N, x - mean, 0.0)
    part = thread_sums(deviation * deviation, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        x = _read(x_ptr, x_row, at, inside(at, row, rows, N, 1, VEC), VEC, BYTES, INTERPRET)
        deviation = tl.where(at < N, x - mean, 0.0)
        part = part + thread_sums(deviation * deviation, HALVES, PIECE)
    rstd = over_rows(_rstd(_totals(part, 1, WARPS), epsilon, N), SPAN)
    y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
    for b in range(OUT_BLOCKS):
        to = columns(OUT_CHUNKS, HALVES, 1, SPAN, PIECE) + b * (HALVES * OUT_CHUNKS * SPAN)
        mask = inside(to, row, rows, N, 1, VEC)
        y = (_read(x_ptr, x_row, to, mask, VEC, BYTES, INTERPRET) - mean) * rstd
        y = _weighed(y, w_ptr, b_ptr, to, mask, VEC, W_BYTES, B_BYTES, HAS_WEIGHT, HAS_BIAS, INTERPRET)
        _write(y_ptr, y_row, to, y, mask, VEC, BYTES, INTERPRET)
