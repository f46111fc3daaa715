# SPDX-License-Identifier: Apache-2.0
"""linear in the order ``chain16x8``: K in 8 chunks, each an accumulator of its own, added as a balanced tree.

A program that computes all chunks walks the tree by counting in binary: it keeps a finished sum of one, of two and of
four chunks, and a new one is added to those that are there. So there are four accumulators at most, the one at work
included. (With the tree unrolled ptxas takes all registers and spills.) For few rows each chunk has a program of its
own instead, eight times as many, and ``split_fold`` adds what they leave.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ir_kernels_triton.linear_tile_kernel import _dot, _place
from ir_kernels_triton.tree import round_to, upcast

ARGUMENTS = [
    "x_ptr", "w_ptr", "b_ptr", "y_ptr", "rows", "N", "K", "length", "x_row", "x_column", "w_row", "w_column", "y_part",
]  # fmt: skip
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""


@triton.jit
def _chunk(
    x_ptr, w_ptr, x_rows, w_rows, rows_inside, w_inside, x_column, w_column, first, length, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ALIGNED: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """The partial sum of ``length`` products from ``first`` on."""
    VEC: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    k = tl.arange(0, BK).to(tl.int64)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in tl.range(0, length, BK, num_stages=STAGES):
        at = first + start + k
        inside = (start + k < length) & (at < K)
        if ALIGNED:
            inside = tl.max_constancy(inside, VEC)
            x_at = x_ptr + (x_rows[:, None] + at[None, :])
            w_at = w_ptr + (w_rows[:, None] + at[None, :])
            x_at = tl.multiple_of(tl.max_contiguous(x_at, [1, VEC]), [1, 16])
            w_at = tl.multiple_of(tl.max_contiguous(w_at, [1, VEC]), [1, 16])
        else:
            x_at = x_ptr + (x_rows[:, None] + at[None, :] * x_column)
            w_at = w_ptr + (w_rows[:, None] + at[None, :] * w_column)
        x = tl.load(x_at, mask=rows_inside[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at, mask=w_inside[:, None] & inside[None, :], other=0.0)
        acc = _dot(x, tl.trans(w), acc, INTERPRET)
    return acc


@triton.jit
def _push(acc, chunk, one, two, four):
    """Put the sum of a chunk into the tree: ``one``, ``two`` and ``four`` are finished sums of so many chunks."""
    acc += 0.0  # -0 is +0
    if chunk % 2 == 0:
        one = acc
    else:
        acc = one + acc
        if chunk % 4 == 1:
            two = acc
        else:
            acc = two + acc
            if chunk % 8 == 3:
                four = acc
            else:
                four = four + acc
    return one, two, four


@triton.jit(do_not_specialize=ARGUMENTS)
def split_tile(
    x_ptr, w_ptr, b_ptr, y_ptr, rows, N, K, length, x_row, x_column, w_row, w_column, y_part,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, EACH: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_BIAS: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The sums of ``EACH`` chunks of ``length``, for a tile of outputs; ``y_part`` elements of ``y`` from part to part.

    ``ALIGNED``: the last dimension of both is contiguous, and each row is 16-byte aligned and a multiple of 16 bytes.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tiles = tl.cdiv(rows, BM) * tl.cdiv(N, BN)
    part = (tl.program_id(0) // tiles).to(tl.int64)
    tile_m, tile_n = _place(tl.program_id(0) % tiles, rows, N, BM, BN, 8)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    x_rows = m.to(tl.int64) * x_row
    w_rows = n.to(tl.int64) * w_row
    one = tl.zeros((BM, BN), dtype=tl.float32)
    two = tl.zeros((BM, BN), dtype=tl.float32)
    four = tl.zeros((BM, BN), dtype=tl.float32)
    for chunk in tl.range(EACH):
        acc = _chunk(
            x_ptr, w_ptr, x_rows, w_rows, m < rows, n < N, x_column, w_column, (part * EACH + chunk) * length, length,
            K, BM, BN, BK, STAGES, ALIGNED, INTERPRET,
        )  # fmt: skip
        one, two, four = _push(acc, chunk, one, two, four)
    acc = one if EACH == 1 else two if EACH == 2 else four
    if HAS_BIAS:
        acc += upcast(tl.load(b_ptr + n, mask=n < N, other=0.0), INTERPRET)[None, :]
    y = round_to(acc, y_ptr.dtype.element_ty, INTERPRET)
    y_at = y_ptr + (part * y_part + m.to(tl.int64)[:, None] * N + n[None, :])
    tl.store(y_at, y, mask=(m < rows)[:, None] & (n < N)[None, :])


@triton.jit
def _parts(p_ptr, at, inside, total, COUNT: tl.constexpr):
    """The sum of ``COUNT`` stored partial sums, as a tree."""
    if COUNT == 1:
        return tl.load(p_ptr + at, mask=inside, other=0.0)
    else:
        left = _parts(p_ptr, at, inside, total, COUNT // 2)
        return left + _parts(p_ptr, at + total * (COUNT // 2), inside, total, COUNT // 2)


@triton.jit(do_not_specialize=["p_ptr", "b_ptr", "y_ptr", "total", "N"])
def split_fold(
    p_ptr, b_ptr, y_ptr, total, N, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The end of what ``split_tile`` began with a program for each chunk: ``total`` elements, rows of ``N``."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    acc = _parts(p_ptr, at, inside, total, CHUNKS)
    if HAS_BIAS:
        acc += upcast(tl.load(b_ptr + at % N, mask=inside, other=0.0), INTERPRET)
    tl.store(y_ptr + at, round_to(acc, y_ptr.dtype.element_ty, INTERPRET), mask=inside)


@triton.jit(do_not_specialize=["b_ptr", "rows", "N", "steps"])
def split_bulk(
    x, w, y, b_ptr, rows, N, steps, CHUNKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The same for many aligned rows on SM 9.0, through tensor descriptors (TMA); a chunk is ``steps`` times ``BK``."""
    gdc_launch_dependents()
    gdc_wait()
    tile_m, tile_n = _place(tl.program_id(0), rows, N, BM, BN, GROUP)
    m = tile_m * BM
    n = tile_n * BN
    one = tl.zeros((BM, BN), dtype=tl.float32)
    two = tl.zeros((BM, BN), dtype=tl.float32)
    four = tl.zeros((BM, BN), dtype=tl.float32)
    for chunk in tl.range(CHUNKS):
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for step in range(steps):
            k = (chunk * steps + step) * BK
            acc = tl.dot(x.load([m, k]), w.load([n, k]).T, acc)
        one, two, four = _push(acc, chunk, one, two, four)
    acc = one if CHUNKS == 1 else two if CHUNKS == 2 else four
    if HAS_BIAS:
        columns = n + tl.arange(0, BN)
        acc += tl.load(b_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    y.store([m, n], acc.to(y.dtype))
