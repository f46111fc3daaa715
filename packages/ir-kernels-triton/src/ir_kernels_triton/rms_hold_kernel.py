# SPDX-License-Identifier: Apache-2.0
"""rms_norm and fused_add_rms_norm of long 16-bit rows: the end of a row stays in registers, as it was read.

A row of 65536 has twice the elements that fit as float32. As it came from memory most of it does fit, and is not read
again; the blocks before it are read twice, the last first, while they are still in a cache.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ir_kernels_triton.rms_kernel import ARGUMENTS, FIRST_WAVE, _rstd, _weigh, row_offsets
from ir_kernels_triton.tree import (
    addresses,
    columns,
    hidden,
    inside,
    round_to,
    row_sums,
    thread_sums,
    touch_bytes,
    upcast,
)


@triton.jit
def _load(
    pointer, row, at, rows, N: tl.constexpr, VEC: tl.constexpr, BYTES: tl.constexpr, POLICY: tl.constexpr
):
    """One block of a row, as it is in memory."""
    mask = inside(at, row, rows, N, 1, VEC)
    return tl.load(addresses(pointer, at, VEC, BYTES, True), mask=mask, other=0.0, eviction_policy=POLICY)


@triton.jit
def _write(
    z, rstd, w_ptr, y_ptr, sum_ptr, row, at, rows, N: tl.constexpr, VEC: tl.constexpr, X_BYTES: tl.constexpr,
    W_BYTES: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The results of one block; ``z`` is its sum in float32."""
    X_DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    mask = inside(at, row, rows, N, 1, VEC)
    if HAS_RESIDUAL:
        tl.store(addresses(sum_ptr, at, VEC, X_BYTES, True), round_to(z, X_DTYPE, INTERPRET), mask=mask)
    w = z
    if HAS_WEIGHT:
        w = _load(w_ptr, row, at, rows, N, VEC, W_BYTES, "")
    y = _weigh(z * rstd, w, X_DTYPE, HAS_WEIGHT, INTERPRET)
    tl.store(addresses(y_ptr, at, VEC, X_BYTES, True), y, mask=mask)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def rms_hold(
    x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rows, inner,
    x_outer, x_inner, r_outer, r_inner, y_outer, y_inner, s_outer, s_inner, epsilon,
    N: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr,
    SPAN: tl.constexpr, HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, X_BYTES: tl.constexpr,
    W_BYTES: tl.constexpr, INNER: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    CANONICAL: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Normalise one row of ``N`` elements in ``BLOCKS`` blocks, of which the last ``HELD`` are read once.

    Aligned rows only. Nothing is written before the row is reduced, so the outputs may be the inputs.
    """
    BLOCK: tl.constexpr = HALVES * CHUNKS * SPAN
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    if PDL:
        if not INNER:  # noqa: SIM102
            if tl.program_id(0) < FIRST_WAVE:
                BYTES: tl.constexpr = N * x_ptr.dtype.element_ty.primitive_bitwidth // 8
                touch_bytes(x_ptr + tl.program_id(0).to(tl.int64) * x_outer, BYTES)
        gdc_wait()
    x_row = x_ptr + row_offsets(row, INNER, inner, x_outer, x_inner)
    r_row = residual_ptr + row_offsets(row, INNER, inner, r_outer, r_inner)
    part = tl.zeros((WARPS * 32,), tl.float32)
    for b in range(BLOCKS - HELD):
        x = upcast(_load(x_row, row, col + b * BLOCK, rows, N, VEC, X_BYTES, "evict_last"), INTERPRET)
        if HAS_RESIDUAL:
            x += upcast(_load(r_row, row, col + b * BLOCK, rows, N, VEC, X_BYTES, "evict_last"), INTERPRET)
        part = part + thread_sums(x * x, HALVES, PIECE)
    xs = ()
    rs = ()
    for b in tl.static_range(BLOCKS - HELD, BLOCKS):
        xs = xs + (_load(x_row, row, col + b * BLOCK, rows, N, VEC, X_BYTES, "evict_last"),)  # noqa: RUF005
        if HAS_RESIDUAL:
            rs = rs + (_load(r_row, row, col + b * BLOCK, rows, N, VEC, X_BYTES, "evict_last"),)  # noqa: RUF005
    if PDL:
        gdc_launch_dependents()
    for b in tl.static_range(HELD):
        x = upcast(xs[b], INTERPRET)
        if HAS_RESIDUAL:
            x += upcast(rs[b], INTERPRET)
        part = part + thread_sums(x * x, HALVES, PIECE)
    if CANONICAL:
        total = row_sums(part, 1, WARPS)
    else:
        total = tl.sum(tl.reshape(part, (1, part.shape[0])), 1)
    rstd = _rstd(total, epsilon, N, CANONICAL)
    # From here on rows and addresses are hidden: the compiler would keep those from above, as float32, and spill.
    row = hidden(row, INTERPRET)
    x_row = x_ptr + row_offsets(row, INNER, inner, x_outer, x_inner)
    r_row = residual_ptr + row_offsets(row, INNER, inner, r_outer, r_inner)
    y_row = y_ptr + row_offsets(row, INNER, inner, y_outer, y_inner)
    s_row = sum_ptr + row_offsets(row, INNER, inner, s_outer, s_inner)
    for b in tl.static_range(HELD):
        z = upcast(hidden(xs[b], INTERPRET), INTERPRET)
        if HAS_RESIDUAL:
            z += upcast(hidden(rs[b], INTERPRET), INTERPRET)
        _write(
            z, rstd, w_ptr, y_row, s_row, row, col + (BLOCKS - HELD + b) * BLOCK, rows, N, VEC, X_BYTES, W_BYTES,
            HAS_RESIDUAL, HAS_WEIGHT, INTERPRET,
        )  # fmt: skip
    for b in range(BLOCKS - HELD):
        at = col + (BLOCKS - HELD - 1 - b) * BLOCK
        z = upcast(_load(x_row, row, at, rows, N, VEC, X_BYTES, "evict_first"), INTERPRET)
        if HAS_RESIDUAL:
            z += upcast(_load(r_row, row, at, rows, N, VEC, X_BYTES, "evict_first"), INTERPRET)
        _write(
            z,
            rstd,
            w_ptr,
            y_row,
            s_row,
            row,
            at,
            rows,
            N,
            VEC,
            X_BYTES,
            W_BYTES,
            HAS_RESIDUAL,
            HAS_WEIGHT,
            INTERPRET,
        )
