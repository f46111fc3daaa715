# SPDX-License-Identifier: Apache-2.0
"""linear and bmm by tiles: any strides, any K, any device, interpreted too; and many aligned rows on SM 9.0.

One program has a tile of outputs, each with one float32 accumulator that goes through all of K, ascending. fp16 and
bf16 on SM 9.0 make that ``chain16``; float32 is a chain of fused multiply-adds on every device (``fma_chain``).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ir_kernels_triton.chain16_dot import chain16_dot, fma_chain_dot
from ir_kernels_triton.tree import round_to, upcast

ARGUMENTS = [
    "x_ptr", "w_ptr", "b_ptr", "y_ptr", "rows", "N", "K", "x_row", "x_column", "w_row", "w_column", "y_row",
    "x_batch", "w_batch", "y_batch",
]  # fmt: skip
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""


@triton.jit
def _dot(x, w, acc, INTERPRET: tl.constexpr):
    if x.dtype == tl.float32:
        return fma_chain_dot(x, w, acc) if INTERPRET else tl.dot(x, w, acc, input_precision="ieee")
    else:
        return chain16_dot(x, w, acc, True) if INTERPRET else tl.dot(x, w, acc)


@triton.jit
def _place(program, rows, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """The tile of a program: ``GROUP`` tiles of rows share the weights that are in the L2 cache."""
    row_tiles = tl.cdiv(rows, BM)
    across = GROUP * tl.cdiv(N, BN)
    first = program // across * GROUP
    height = min(row_tiles - first, GROUP)
    return first + program % across % height, program % across // height


@triton.jit(do_not_specialize=ARGUMENTS)
def linear_tile(
    x_ptr, w_ptr, b_ptr, y_ptr, rows, N, K, x_row, x_column, w_row, w_column, y_row, x_batch, w_batch, y_batch,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """``y[m, n] = sum over k of x[m, k] * w[n, k]``, plus ``b[n]``; for each of a batch, as far as programs go.

    ``ALIGNED``: the last dimension of both is contiguous, and each row is 16-byte aligned and a multiple of 16 bytes.
    """
    VEC: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    tiles = tl.cdiv(rows, BM) * tl.cdiv(N, BN)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    x_ptr += batch * x_batch
    w_ptr += batch * w_batch
    y_ptr += batch * y_batch
    tile_m, tile_n = _place(tl.program_id(0) % tiles, rows, N, BM, BN, 8)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK).to(tl.int64)
    x_offset = m.to(tl.int64) * x_row
    w_offset = n.to(tl.int64) * w_row
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in tl.range(0, K, BK, num_stages=STAGES):
        inside = start + k < K
        if ALIGNED:
            inside = tl.max_constancy(inside, VEC)
            x_at = x_ptr + (x_offset[:, None] + (start + k)[None, :])
            w_at = w_ptr + (w_offset[:, None] + (start + k)[None, :])
            x_at = tl.multiple_of(tl.max_contiguous(x_at, [1, VEC]), [1, 16])
            w_at = tl.multiple_of(tl.max_contiguous(w_at, [1, VEC]), [1, 16])
        else:
            x_at = x_ptr + (x_offset[:, None] + (start + k)[None, :] * x_column)
            w_at = w_ptr + (w_offset[:, None] + (start + k)[None, :] * w_column)
        x = tl.load(x_at, mask=(m < rows)[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at, mask=(n < N)[:, None] & inside[None, :], other=0.0)
        acc = _dot(x, tl.trans(w), acc, INTERPRET)
    if HAS_BIAS:
        acc += upcast(tl.load(b_ptr + n, mask=n < N, other=0.0), INTERPRET)[None, :]
    y = round_to(acc, y_ptr.dtype.element_ty, INTERPRET)
    y_at = y_ptr + (m.to(tl.int64)[:, None] * y_row + n[None, :])
    tl.store(y_at, y, mask=(m < rows)[:, None] & (n < N)[None, :])


@triton.jit
def _round(
    acc, b_ptr, first, N, SIZE: tl.constexpr, SWAP: tl.constexpr, HAS_BIAS: tl.constexpr, TYPE: tl.constexpr
):
    """The outputs ``[BM, SIZE]`` of an accumulator, which is transposed if ``SWAP``."""
    if HAS_BIAS:
        n = first + tl.arange(0, SIZE)
        bias = tl.load(b_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        acc += bias[:, None] if SWAP else bias[None, :]
    y = acc.to(TYPE)
    return tl.trans(y) if SWAP else y


@triton.jit(do_not_specialize=["b_ptr", "rows", "N", "K"])
def linear_bulk(
    x, w, y, b_ptr, rows, N, K, w2, y2,
    BM: tl.constexpr, BN: tl.constexpr, MORE: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr, HALVES: tl.constexpr, SWAP: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The same for many aligned rows: persistent programs, tiles through tensor descriptors (TMA).

    A tile has ``BM`` rows and ``BN + MORE`` columns: with 128 + 64 columns, 512 rows of 6144 outputs are 128 tiles, and
    no power of two fills 132 processors in one turn. ``MORE`` columns have an accumulator of their own; it, ``w2`` and
    ``y2`` are left out where ``MORE`` is 0. ``SWAP``: the weights are the operand whose rows are the instruction's 64.
    ``HALVES``: a tile is stored in two, so that a stage of its shared memory is free for reading. ``FLATTEN``: the loop
    over tiles and the one over K are one, so that the next tile is on its way while one is stored (with ``MORE``, ptxas
    would put a wait behind every instruction).
    """
    gdc_launch_dependents()
    gdc_wait()
    TYPE: tl.constexpr = y.dtype
    WIDE: tl.constexpr = BN + MORE
    tiles = tl.cdiv(rows, BM) * tl.cdiv(N, WIDE)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=FLATTEN):
        tile_m, tile_n = _place(tile, rows, N, BM, WIDE, GROUP)
        m = tile_m * BM
        n = tile_n * WIDE
        acc = tl.zeros((BN, BM) if SWAP else (BM, BN), dtype=tl.float32)
        if MORE:
            acc2 = tl.zeros((MORE, BM) if SWAP else (BM, MORE), dtype=tl.float32)
        for step in range(tl.cdiv(K, BK)):
            a = x.load([m, step * BK])
            b = w.load([n, step * BK])
            acc = tl.dot(b, a.T, acc) if SWAP else tl.dot(a, b.T, acc)
            if MORE:
                b2 = w2.load([n + BN, step * BK])
                acc2 = tl.dot(b2, a.T, acc2) if SWAP else tl.dot(a, b2.T, acc2)
        if HALVES:
            if SWAP:
                left, right = tl.split(tl.permute(tl.reshape(acc, (2, BN // 2, BM)), (1, 2, 0)))
            else:
                left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
            y.store([m, n], _round(left, b_ptr, n, N, BN // 2, SWAP, HAS_BIAS, TYPE))
            y.store([m, n + BN // 2], _round(right, b_ptr, n + BN // 2, N, BN // 2, SWAP, HAS_BIAS, TYPE))
        else:
            y.store([m, n], _round(acc, b_ptr, n, N, BN, SWAP, HAS_BIAS, TYPE))
        if MORE:
            y2.store([m, n + BN], _round(acc2, b_ptr, n + BN, N, MORE, SWAP, HAS_BIAS, TYPE))
