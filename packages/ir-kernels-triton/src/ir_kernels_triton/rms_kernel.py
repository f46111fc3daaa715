# SPDX-License-Identifier: Apache-2.0
"""The kernels of rms_norm and fused_add_rms_norm: whole rows in registers (of one call, or of two), or two passes over
long rows.

Arguments are never specialised (see ``launcher.py``): alignment is promised by ``ALIGNED``, and nothing else of a
call's layout reaches the compiler.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ir_kernels_triton.tree import (
    addresses,
    canonical_divide,
    canonical_reciprocal,
    columns,
    inside,
    over_rows,
    pinned,
    plain_sum,
    read,
    round_to,
    row_sums,
    thread_sums,
    touch,
    touch_bytes,
    upcast,
)

ARGUMENTS = [
    "x_ptr",
    "residual_ptr",
    "w_ptr",
    "y_ptr",
    "sum_ptr",
    "rows",
    "inner",
    "x_outer",
    "x_inner",
    "r_outer",
    "r_inner",
    "y_outer",
    "y_inner",
    "s_outer",
    "s_inner",
    "epsilon",
]
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""

PAIR_ARGUMENTS = [
    "x_ptr",
    "w_ptr",
    "y_ptr",
    "x2_ptr",
    "w2_ptr",
    "y2_ptr",
    "rows",
    "rows2",
    "inner",
    "inner2",
    "x_outer",
    "x_inner",
    "x2_outer",
    "x2_inner",
    "epsilon",
]
"""The same of the kernel for two calls."""

FIRST_WAVE = tl.constexpr(132)
"""Programs that find a free processor each (an H100 or H200 has 132): those that dependent launch starts early."""


@triton.jit
def _rstd(total, epsilon, N: tl.constexpr, CANONICAL: tl.constexpr):
    if CANONICAL:
        return canonical_reciprocal(tl.sqrt_rn(canonical_divide(total, N) + epsilon))
    else:
        return tl.rsqrt(total * (1.0 / N) + epsilon)


@triton.jit
def row_offsets(row, INNER: tl.constexpr, inner, outer_stride, inner_stride):
    """Element offset of each row; rows of a view whose leading dimensions do not collapse have two strides."""
    if INNER:
        outer = row // inner
        return outer.to(tl.int64) * outer_stride + (row - outer * inner).to(tl.int64) * inner_stride
    else:
        return row.to(tl.int64) * outer_stride


@triton.jit
def _weigh(y, w, X_DTYPE: tl.constexpr, HAS_WEIGHT: tl.constexpr, INTERPRET: tl.constexpr):
    """The product with the weight, rounded where the op rounds, in ``x``'s dtype."""
    if HAS_WEIGHT:
        y = upcast(round_to(y, w.dtype, INTERPRET), INTERPRET) * upcast(w, INTERPRET)
        y = upcast(round_to(y, w.dtype, INTERPRET), INTERPRET)
    return round_to(y, X_DTYPE, INTERPRET)


@triton.jit
def _touch_rows(
    program, x_ptr, residual_ptr, w_ptr, rows, inner, x_outer, x_inner, r_outer, r_inner, N: tl.constexpr,
    PADDED: tl.constexpr, ROWS: tl.constexpr, W_BYTES: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Bring what this program is going to read into the L2 cache, while the kernel ahead still runs.

    It may still be writing these rows. That is no race: nothing is read here, and all writes of a GPU meet in the L2
    cache, in the very lines that are touched. Only programs that are resident early gain from it.

    ``WHOLE``: the one row of each program is asked for as a whole; else line by line.
    """
    BITS: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth
    LINE: tl.constexpr = 1024 // BITS  # elements in 128 bytes
    LINES: tl.constexpr = (PADDED + LINE - 1) // LINE
    if tl.program_id(0) < FIRST_WAVE:
        if WHOLE:
            row = program.to(tl.int64)
            touch_bytes(x_ptr + row * x_outer, N * BITS // 8)
            if HAS_RESIDUAL:
                touch_bytes(residual_ptr + row * r_outer, N * BITS // 8)
        else:
            line = tl.arange(0, ROWS * LINES)
            row = tl.minimum(program * ROWS + line // LINES, rows - 1)
            col = tl.minimum(line % LINES * LINE, N - 1)
            touch(x_ptr + row_offsets(row, INNER, inner, x_outer, x_inner) + col)
            if HAS_RESIDUAL:
                touch(residual_ptr + row_offsets(row, INNER, inner, r_outer, r_inner) + col)
        if HAS_WEIGHT:
            line = tl.arange(0, LINES)
            if program == 0:
                if WHOLE and W_BYTES == 16:
                    touch_bytes(w_ptr, N * w_ptr.dtype.element_ty.primitive_bitwidth // 8)
                else:
                    touch(w_ptr + tl.minimum(line * LINE, N - 1))


@triton.jit
def _tile(
    program, x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rows, inner,
    x_outer, x_inner, r_outer, r_inner, y_outer, y_inner, s_outer, s_inner, epsilon,
    N: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, X_BYTES: tl.constexpr, W_BYTES: tl.constexpr,
    ALIGNED: tl.constexpr, LATE: tl.constexpr, INNER: tl.constexpr, EARLY: tl.constexpr, LATER: tl.constexpr,
    WHOLE: tl.constexpr, PIN: tl.constexpr, KEEP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, CANONICAL: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Normalise ``ROWS`` whole rows of ``N`` elements, held in registers between the reduction and the product.

    ``LATE``: weights are read after the reduction, where registers are short.
    ``ALIGNED``: every tensor keeps the promise of ``addresses``; otherwise only the outputs do.
    ``EARLY``, ``LATER``: a launch of up to ``EARLY`` programs starts the next kernel at once, one of up to ``LATER``
    behind the wait, a larger one after its reads.
    ``WHOLE``: the one row of a program is touched as a whole, unless the next kernel is started at once.
    ``PIN``: the address of the one row of a program is computed before the wait.
    ``KEEP``: aligned rows that are read leave the L2 cache last.
    """
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    row = program * ROWS + (tl.arange(0, ROWS * SPAN) // SPAN)[None, :]
    col = columns(CHUNKS, HALVES, ROWS, SPAN, PIECE)
    mask = inside(col, row, rows, N, ROWS, VEC)
    x_from, r_from = x_ptr, residual_ptr
    if PIN:  # so that the first access follows the wait at once
        x_from = pinned(x_ptr + program.to(tl.int64) * x_outer)
        if HAS_RESIDUAL:
            r_from = pinned(residual_ptr + program.to(tl.int64) * r_outer)
        x_at = col
        r_at = col
    else:
        x_at = row_offsets(row, INNER, inner, x_outer, x_inner) + col
        r_at = row_offsets(row, INNER, inner, r_outer, r_inner) + col
    programs = tl.num_programs(0)
    if PDL:
        if programs <= EARLY:
            gdc_launch_dependents()  # several kernels are set up ahead
            _touch_rows(
                program, x_ptr, residual_ptr, w_ptr, rows, inner, x_outer, x_inner, r_outer, r_inner,
                N=N, PADDED=HALVES * CHUNKS * SPAN, ROWS=ROWS, W_BYTES=W_BYTES, INNER=INNER, WHOLE=False,
                HAS_RESIDUAL=HAS_RESIDUAL, HAS_WEIGHT=HAS_WEIGHT,
            )  # fmt: skip
        else:
            _touch_rows(
                program, x_ptr, residual_ptr, w_ptr, rows, inner, x_outer, x_inner, r_outer, r_inner,
                N=N, PADDED=HALVES * CHUNKS * SPAN, ROWS=ROWS, W_BYTES=W_BYTES, INNER=INNER, WHOLE=WHOLE,
                HAS_RESIDUAL=HAS_RESIDUAL, HAS_WEIGHT=HAS_WEIGHT,
            )  # fmt: skip
        gdc_wait()
        if (programs > EARLY) & (programs <= LATER):
            gdc_launch_dependents()
    x = upcast(read(x_from, x_at, mask, rows, VEC, X_BYTES, ALIGNED, KEEP), INTERPRET)
    s_at = row_offsets(row, INNER, inner, s_outer, s_inner) + col
    if HAS_RESIDUAL:
        x += upcast(read(r_from, r_at, mask, rows, VEC, X_BYTES, ALIGNED, KEEP), INTERPRET)
        if ROWS > 1:  # here, not below: the registers do not hold two rows, their sums and weights at once
            tl.store(addresses(sum_ptr, s_at, VEC, X_BYTES, True), round_to(x, X_DTYPE, INTERPRET), mask=mask)
    w = x  # never read without a weight
    if HAS_WEIGHT and not LATE:  # here, so that it arrives while the rows are reduced
        w = tl.load(
            addresses(w_ptr, col, VEC, W_BYTES, ALIGNED), mask=inside(col, row, rows, N, 1, VEC), other=0.0
        )
    if HAS_RESIDUAL and ROWS == 1:
        tl.store(addresses(sum_ptr, s_at, VEC, X_BYTES, True), round_to(x, X_DTYPE, INTERPRET), mask=mask)
    if PDL:  # noqa: SIM102  (a constant; the next condition is not)
        if programs > LATER:
            gdc_launch_dependents()
    if CANONICAL:
        total = row_sums(thread_sums(x * x, HALVES, PIECE), ROWS, WARPS)
    else:
        total = plain_sum(x * x, ROWS)
    if HAS_WEIGHT and LATE:
        w = tl.load(
            addresses(w_ptr, col, VEC, W_BYTES, ALIGNED), mask=inside(col, row, rows, N, 1, VEC), other=0.0
        )
    y = _weigh(x * over_rows(_rstd(total, epsilon, N, CANONICAL), SPAN), w, X_DTYPE, HAS_WEIGHT, INTERPRET)
    y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
    tl.store(addresses(y_ptr, y_row + col, VEC, X_BYTES, True), y, mask=mask)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def rms_tile(
    x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rows, inner,
    x_outer, x_inner, r_outer, r_inner, y_outer, y_inner, s_outer, s_inner, epsilon,
    N: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, X_BYTES: tl.constexpr, W_BYTES: tl.constexpr,
    ALIGNED: tl.constexpr, LATE: tl.constexpr, INNER: tl.constexpr, EARLY: tl.constexpr, LATER: tl.constexpr,
    WHOLE: tl.constexpr, PIN: tl.constexpr, KEEP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, CANONICAL: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Whole rows of one tensor, ``ROWS`` a program."""
    _tile(
        tl.program_id(0), x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rows, inner,
        x_outer, x_inner, r_outer, r_inner, y_outer, y_inner, s_outer, s_inner, epsilon,
        N=N, CHUNKS=CHUNKS, ROWS=ROWS, WARPS=WARPS, SPAN=SPAN, HALVES=HALVES, PIECE=PIECE, VEC=VEC,
        X_BYTES=X_BYTES, W_BYTES=W_BYTES, ALIGNED=ALIGNED, LATE=LATE, INNER=INNER, EARLY=EARLY, LATER=LATER,
        WHOLE=WHOLE, PIN=PIN, KEEP=KEEP, HAS_RESIDUAL=HAS_RESIDUAL, HAS_WEIGHT=HAS_WEIGHT, CANONICAL=CANONICAL,
        PDL=PDL, INTERPRET=INTERPRET,
    )  # fmt: skip


@triton.jit(do_not_specialize=PAIR_ARGUMENTS, do_not_specialize_on_alignment=PAIR_ARGUMENTS)
def rms_pair(
    x_ptr, w_ptr, y_ptr, x2_ptr, w2_ptr, y2_ptr, rows, rows2, inner, inner2,
    x_outer, x_inner, x2_outer, x2_inner, epsilon,
    N: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, SPAN: tl.constexpr,
    HALVES: tl.constexpr, PIECE: tl.constexpr, VEC: tl.constexpr, X_BYTES: tl.constexpr, W_BYTES: tl.constexpr,
    EARLY: tl.constexpr, LATER: tl.constexpr, CANONICAL: tl.constexpr, PDL: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Whole rows of two tensors with a weight each: the programs behind those of the first take the second.

    Every tensor keeps the promise of alignment, rows have two strides, and results lie one row after the other.
    """
    program = tl.program_id(0)
    first = (rows + ROWS - 1) // ROWS
    if program >= first:
        program -= first
        x_ptr, w_ptr, y_ptr = x2_ptr, w2_ptr, y2_ptr
        rows, inner, x_outer, x_inner = rows2, inner2, x2_outer, x2_inner
    _tile(
        program, x_ptr=x_ptr, residual_ptr=x_ptr, w_ptr=w_ptr, y_ptr=y_ptr, sum_ptr=x_ptr, rows=rows, inner=inner,
        x_outer=x_outer, x_inner=x_inner, r_outer=0, r_inner=0, y_outer=inner.to(tl.int64) * N, y_inner=N,
        s_outer=0, s_inner=0, epsilon=epsilon,
        N=N, CHUNKS=CHUNKS, ROWS=ROWS, WARPS=WARPS, SPAN=SPAN, HALVES=HALVES, PIECE=PIECE, VEC=VEC,
        X_BYTES=X_BYTES, W_BYTES=W_BYTES, ALIGNED=True, LATE=False, INNER=True, EARLY=EARLY, LATER=LATER,
        WHOLE=False, PIN=False, KEEP=False, HAS_RESIDUAL=False, HAS_WEIGHT=True, CANONICAL=CANONICAL,
        PDL=PDL, INTERPRET=INTERPRET,
    )  # fmt: skip


@triton.jit
def _block(x_ptr, residual_ptr, x_row, r_row, col, mask, rows, VEC: tl.constexpr, X_BYTES: tl.constexpr,
           ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, INTERPRET: tl.constexpr):  # fmt: skip
    """One block of a row (with its residual) as float32."""
    x = upcast(read(x_ptr, x_row + col, mask, rows, VEC, X_BYTES, ALIGNED), INTERPRET)
    if HAS_RESIDUAL:
        x += upcast(read(residual_ptr, r_row + col, mask, rows, VEC, X_BYTES, ALIGNED), INTERPRET)
    return x


@triton.jit
def _head(x_ptr, residual_ptr, x_row, r_row, col, row, rows, N: tl.constexpr, VEC: tl.constexpr,
          X_BYTES: tl.constexpr, ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
          INTERPRET: tl.constexpr):  # fmt: skip
    """One block of the first ``N`` elements of a row, zero behind them.

    ``variance_size`` may end within a vector. The row does not, so whole vectors are read: a mask that splits one
    would break the promise of ``inside``.
    """
    WHOLE: tl.constexpr = (N + VEC - 1) // VEC * VEC
    mask = inside(col, row, rows, WHOLE, 1, VEC)
    x = _block(
        x_ptr, residual_ptr, x_row, r_row, col, mask, rows, VEC, X_BYTES, ALIGNED, HAS_RESIDUAL, INTERPRET
    )
    if WHOLE != N:
        x = tl.where(col < N, x, 0.0)
    return x


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def rms_two_pass(
    x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rows, inner,
    x_outer, x_inner, r_outer, r_inner, y_outer, y_inner, s_outer, s_inner, epsilon,
    N: tl.constexpr, D: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr,
    SPAN: tl.constexpr, HALVES: tl.constexpr, PIECE: tl.constexpr, OUT_BLOCKS: tl.constexpr,
    OUT_CHUNKS: tl.constexpr, OUT_SPAN: tl.constexpr, OUT_HALVES: tl.constexpr, OUT_PIECE: tl.constexpr,
    VEC: tl.constexpr, X_BYTES: tl.constexpr, W_BYTES: tl.constexpr, ALIGNED: tl.constexpr, INNER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, CANONICAL: tl.constexpr, PDL: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Normalise a row of ``D`` elements by its first ``N``: reduce ``BLOCKS`` blocks, then read the row again.

    For rows that do not fit the registers, and for ``variance_size``. The blocks of the reduction (``CHUNKS``,
    ``SPAN``, ``HALVES``, ``PIECE``) are those of ``N`` elements, the blocks of the product (``OUT_...``) those of
    ``D``. Nothing is written before the row is reduced, so the outputs may be the inputs.
    """
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0) + tl.zeros((1, 1), tl.int32)
    x_row = row_offsets(row, INNER, inner, x_outer, x_inner)
    r_row = row_offsets(row, INNER, inner, r_outer, r_inner)
    if PDL:
        gdc_wait()
    col = columns(CHUNKS, HALVES, 1, SPAN, PIECE)
    x = _head(
        x_ptr, residual_ptr, x_row, r_row, col, row, rows, N, VEC, X_BYTES, ALIGNED, HAS_RESIDUAL, INTERPRET
    )  # fmt: skip
    part = thread_sums(x * x, HALVES, PIECE)
    for b in range(1, BLOCKS):
        at = col + b * (HALVES * CHUNKS * SPAN)
        x = _head(
            x_ptr, residual_ptr, x_row, r_row, at, row, rows, N, VEC, X_BYTES, ALIGNED, HAS_RESIDUAL, INTERPRET
        )  # fmt: skip
        part = part + thread_sums(x * x, HALVES, PIECE)
    if CANONICAL:
        total = row_sums(part, 1, WARPS)
    else:
        total = tl.sum(tl.reshape(part, (1, part.shape[0])), 1)
    rstd = _rstd(total, epsilon, N, CANONICAL)
    y_row = row_offsets(row, INNER, inner, y_outer, y_inner)
    s_row = row_offsets(row, INNER, inner, s_outer, s_inner)
    for d in range(OUT_BLOCKS):
        to = columns(OUT_CHUNKS, OUT_HALVES, 1, OUT_SPAN, OUT_PIECE) + d * (
            OUT_HALVES * OUT_CHUNKS * OUT_SPAN
        )
        z = _block(
            x_ptr,
            residual_ptr,
            x_row,
            r_row,
            to,
            inside(to, row, rows, D, 1, VEC),
            rows,
            VEC,
            X_BYTES,
            ALIGNED,
            HAS_RESIDUAL,
            INTERPRET,
        )
        if HAS_RESIDUAL:
            tl.store(
                addresses(sum_ptr, s_row + to, VEC, X_BYTES, True),
                round_to(z, X_DTYPE, INTERPRET),
                mask=inside(to, row, rows, D, 1, VEC),
            )
        w = z
        if HAS_WEIGHT:
            w = tl.load(
                addresses(w_ptr, to, VEC, W_BYTES, ALIGNED), mask=inside(to, row, rows, D, 1, VEC), other=0.0
            )
        y = _weigh(z * rstd, w, X_DTYPE, HAS_WEIGHT, INTERPRET)
        tl.store(addresses(y_ptr, y_row + to, VEC, X_BYTES, True), y, mask=inside(to, row, rows, D, 1, VEC))
    if PDL:
        gdc_launch_dependents()
