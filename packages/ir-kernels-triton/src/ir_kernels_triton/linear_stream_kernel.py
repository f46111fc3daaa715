# SPDX-License-Identifier: Apache-2.0
"""linear for few rows on SM 9.0: the weights stream through shared memory once, as the 64-row operand of ``wgmma``.

Written in Gluon, because three things have no words in Triton: more of K in flight than a loop's stages, a tile of
fewer than 64 weight rows under a 64-row instruction, and weights touched before the wait of a dependent launch.

One program has ``R`` weight rows and ``BT`` rows of x. Its accumulator is the transposed tile ``[64, BT]``: one float32
for each output, which goes through all K steps of 16 in ascending order, so the order is ``chain16``. With ``R`` below
64 the instruction reads on into the tiles behind; what it makes of them stands in rows of the accumulator that are
never stored, and no row of an accumulator depends on another.

The weights are touched before the wait, not read: they come to the L2 cache while the kernel ahead still runs, and are
read after it has ended. So it does not matter whether that kernel writes them. (To read them before the wait would
take 14.6 us instead of 15.2 for four layers at 8 rows on an H200, and old weights if the kernel ahead made new ones.)
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # Triton 3.7 and 3.6

ARGUMENTS = ["x_ptr", "w_ptr", "b_ptr", "y_ptr", "rows", "N", "K", "x_row", "w_row", "y_row"]
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""


@gluon.jit
def _read(smem, at, tile, offset, k, K, EVEN: gl.constexpr, ROWS: gl.constexpr, BK: gl.constexpr,
          LAYOUT: gl.constexpr):  # fmt: skip
    """Start to read ``[ROWS, BK]`` at ``offset`` of K into the slabs from ``at`` on; zeros behind the end of K."""
    to = smem.index(at)._reinterpret(smem.dtype, [ROWS, BK], LAYOUT)
    if EVEN:
        async_copy.async_copy_global_to_shared(to, tile + offset)
    else:
        inside = gl.max_constancy((k + offset) < K, [1, 8])
        async_copy.async_copy_global_to_shared(to, tile + offset, mask=inside)


@gluon.jit
def _multiply(acc, w_smem, x_smem, at, SLABS: gl.constexpr, R: gl.constexpr, V: gl.constexpr,
              LAYOUT: gl.constexpr):  # fmt: skip
    """Start the products of one K step, slab by slab, each four steps of 16."""
    for s in gl.static_range(SLABS):
        a = w_smem.index(at + s)._reinterpret(w_smem.dtype, [V, 64], LAYOUT)
        b = x_smem.index(at + s).permute((1, 0))
        acc = warpgroup_mma(a, b, acc, is_async=True)
    return acc


@gluon.jit
def _touch_weights(w_ptr, first, N, K, w_row, R: gl.constexpr, COLUMNS: gl.constexpr, WARPS: gl.constexpr):
    """Bring the first ``COLUMNS`` of a program's weight rows to the L2 cache; each thread asks for a piece of a row."""
    thread = gl.arange(0, 32 * WARPS, gl.BlockedLayout([1], [32], [WARPS], [0]))
    PIECE: gl.constexpr = COLUMNS * R // (32 * WARPS)
    row = gl.minimum(first + thread % R, N - 1)
    k = (thread // R) * PIECE
    size = gl.minimum(K - k, PIECE) * 2
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [(w_ptr + (row.to(gl.int64) * w_row + k)).to(gl.int64), size],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit(do_not_specialize=ARGUMENTS)
def linear_stream(
    x_ptr, w_ptr, b_ptr, y_ptr, rows, N, K, x_row, w_row, y_row,
    R: gl.constexpr, BT: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr, EVEN: gl.constexpr,
    TOUCH: gl.constexpr, START: gl.constexpr, HAS_BIAS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """``y[m, n] = sum over k of x[m, k] * w[n, k]``, plus ``b[n]``; all rows 16-byte aligned.

    ``WHOLE``: STAGES steps are all of K. Else two stages are being multiplied while the others are on their way, and
    ``STAGES - 2`` steps are at most K. ``START``: where the next kernel is started: 0 at once, 1 behind the wait, 2
    behind the products.
    """
    TYPE: gl.constexpr = x_ptr.dtype.element_ty
    SLABS: gl.constexpr = BK // 64
    V: gl.constexpr = 16 * WARPS  # weight rows of an instruction
    BEHIND: gl.constexpr = (V - R) // R if R < V else 0  # slabs that an instruction reads past the last
    AHEAD: gl.constexpr = STAGES if WHOLE else STAGES - 2
    ACROSS: gl.constexpr = 32 if BK >= 256 else BK // 8  # threads along K
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    READ: gl.constexpr = gl.BlockedLayout([1, 8], [32 // ACROSS, ACROSS], [WARPS, 1], [1, 0])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BT, 16])

    if START == 0:
        gdc_launch_dependents()
    row_tiles = (rows + (BT - 1)) // BT
    program = gl.program_id(0)
    first = (program // row_tiles) * R
    first_row = (program % row_tiles) * BT
    w_smem = gl.allocate_shared_memory(TYPE, [STAGES * SLABS + BEHIND, R, 64], SHARED)
    x_smem = gl.allocate_shared_memory(TYPE, [STAGES * SLABS, BT, 64], SHARED)
    if TOUCH:
        _touch_weights(w_ptr, first, N, K, w_row, R, AHEAD * BK, WARPS)
    # Rows behind the last are the last again; what comes of them is not stored.
    k = gl.expand_dims(gl.arange(0, BK, gl.SliceLayout(0, READ)), 0)
    w_rows = gl.minimum(first + gl.arange(0, R, gl.SliceLayout(1, READ)), N - 1)
    x_rows = gl.minimum(first_row + gl.arange(0, BT, gl.SliceLayout(1, READ)), rows - 1)
    w_tile = w_ptr + (gl.expand_dims(w_rows.to(gl.int64) * w_row, 1) + k)
    x_tile = x_ptr + (gl.expand_dims(x_rows.to(gl.int64) * x_row, 1) + k)
    w_tile = gl.multiple_of(gl.max_contiguous(w_tile, [1, 8]), [1, 16])
    x_tile = gl.multiple_of(gl.max_contiguous(x_tile, [1, 8]), [1, 16])
    gdc_wait()
    if START == 1:
        gdc_launch_dependents()
    for s in gl.static_range(AHEAD):  # no branch here: with one, ptxas puts a wait behind every wgmma
        _read(w_smem, s * SLABS, w_tile, s * BK, k, K, EVEN, R, BK, SHARED)
        _read(x_smem, s * SLABS, x_tile, s * BK, k, K, EVEN, BT, BK, SHARED)
        async_copy.commit_group()
    acc = gl.zeros([V, BT], gl.float32, RESULT)
    if WHOLE:
        for s in gl.static_range(STAGES):
            async_copy.wait_group(STAGES - 1 - s)
            fence_async_shared()
            barrier()
            acc = _multiply(acc, w_smem, x_smem, s * SLABS, SLABS, R, V, SHARED)
    else:
        stage = 0
        ahead = AHEAD
        steps = (K + (BK - 1)) // BK
        for step in range(steps):
            async_copy.wait_group(AHEAD - 1)
            fence_async_shared()
            barrier()
            acc = _multiply(acc, w_smem, x_smem, stage * SLABS, SLABS, R, V, SHARED)
            acc = warpgroup_mma_wait(num_outstanding=SLABS, deps=(acc,))  # the step before has ended
            if step + AHEAD < steps:
                offset = (step + AHEAD) * BK
                _read(w_smem, ahead * SLABS, w_tile, offset, k, K, EVEN, R, BK, SHARED)
                _read(x_smem, ahead * SLABS, x_tile, offset, k, K, EVEN, BT, BK, SHARED)
            async_copy.commit_group()
            stage = gl.where(stage + 1 == STAGES, 0, stage + 1)
            ahead = gl.where(ahead + 1 == STAGES, 0, ahead + 1)
    result = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
    if START == 2:
        gdc_launch_dependents()
    n = first + gl.arange(0, V, gl.SliceLayout(1, RESULT))
    m = first_row + gl.arange(0, BT, gl.SliceLayout(0, RESULT))
    inside = n < gl.minimum(N, first + R)
    if HAS_BIAS:
        bias = gl.load(b_ptr + n, mask=inside, other=0.0).to(gl.float32)
        result = result + gl.expand_dims(bias, 1)
    to = y_ptr + (gl.expand_dims(m.to(gl.int64) * y_row, 0) + gl.expand_dims(n, 1))
    gl.store(to, result.to(TYPE), mask=gl.expand_dims(inside, 1) & gl.expand_dims(m < rows, 0))
