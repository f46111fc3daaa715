# SPDX-License-Identifier: Apache-2.0
"""Device functions shared by the kernels: the canonical fold, exact roots, and casts that the interpreter gets right.

A tile is ``[HALVES * CHUNKS, ROWS * SPAN]``, with these constants:

- ``SPAN = WARPS * LANES * PIECE``: elements of a row that one 16-byte load of each thread of its warps covers.
- ``ROWS``: rows of the tile; they belong to different warps, or to different parts of a warp.
- ``CHUNKS``: loads of each thread, one ``SPAN`` after the other.
- ``HALVES``: 2 where the canonical vector of 8 takes two loads of ``PIECE = 4`` float32, so that one thread still owns
  the whole vector; else 1, and ``PIECE`` is the vector.

The compiler lays tiles out in just that way: a fold over a vector or the chunks stays inside a thread, a fold over the
lanes is one shuffle a step, and the fold over the warps passes each warp's sum through shared memory once.
(With a third dimension for the rows, Triton 3.6 hands warps to the chunks first, and 3.7 to the rows.)
"""

import triton
import triton.language as tl


@triton.jit
def fold(x):
    """Add the upper half of axis 1 of ``[GROUPS, SIZE, WIDTH]`` to its lower half until one is left.

    The result is ``[GROUPS, WIDTH]``.
    """
    GROUPS: tl.constexpr = x.shape[0]
    SIZE: tl.constexpr = x.shape[1]
    WIDTH: tl.constexpr = x.shape[2]
    if SIZE == 1:
        return tl.reshape(x, (GROUPS, WIDTH))
    else:
        return fold(tl.sum(tl.reshape(x, (GROUPS, 2, SIZE // 2, WIDTH)), 1))


@triton.jit
def fold_split(x):
    """The same fold over the last axis of ``[GROUPS, SIZE]``, with both halves in one thread: ``[GROUPS]``.

    ``tl.split`` makes the compiler bring all ``SIZE`` values to each thread in one exchange; the additions then stay in
    registers. That takes one barrier, where a ``tl.sum`` over the warps takes two, and steps of two over the warps take
    about ``3 log2(SIZE)``.
    """
    GROUPS: tl.constexpr = x.shape[0]
    SIZE: tl.constexpr = x.shape[1]
    if SIZE == 1:
        return tl.reshape(x, (GROUPS,))
    else:
        low, high = tl.split(tl.permute(tl.reshape(x, (GROUPS, 2, SIZE // 2)), (0, 2, 1)))
        return fold_split(low + high)


@triton.jit
def columns(
    CHUNKS: tl.constexpr, HALVES: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, PIECE: tl.constexpr
):
    """Index within a block of each element of a tile, ``[HALVES * CHUNKS, ROWS * SPAN]``."""
    t = (tl.arange(0, ROWS * SPAN) % SPAN)[None, :]
    if HALVES == 1:
        return tl.arange(0, CHUNKS)[:, None] * SPAN + t
    else:
        chunk = tl.arange(0, HALVES * CHUNKS)[:, None]
        return (
            ((chunk % CHUNKS) * (SPAN // PIECE) + t // PIECE) * (HALVES * PIECE)
            + (chunk // CHUNKS) * PIECE
            + t % PIECE
        )


@triton.jit
def inside(col, row, rows, N: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr):
    """Which elements of a tile belong to a row; ``VEC`` neighbours are all in or all out."""
    mask = col < N
    if ROWS > 1:
        mask = mask & (row < rows)
    if VEC > 1 and mask.shape[1] >= VEC:  # the compiler loses sight of it in the arithmetic of ``columns``
        mask = tl.max_constancy(mask, [1, VEC])
    return mask


@triton.jit
def over_rows(x, SPAN: tl.constexpr):
    """One value a row, ``[ROWS]``, for each element of the row: ``[1, ROWS * SPAN]``."""
    ROWS: tl.constexpr = x.shape[0]
    if ROWS == 1:
        return x[None, :]
    else:
        return tl.reshape(tl.broadcast_to(x[:, None], (ROWS, SPAN)), (1, ROWS * SPAN))


@triton.jit
def thread_sums(x, HALVES: tl.constexpr, PIECE: tl.constexpr):
    """Fold the vectors and then the chunks of a tile ``[HALVES * CHUNKS, ROWS * SPAN]``.

    The result is ``[ROWS * SPAN // PIECE]``, one value for each thread.
    """
    CHUNKS: tl.constexpr = x.shape[0] // HALVES
    WIDTH: tl.constexpr = x.shape[1]
    part = fold(tl.reshape(x, (1, HALVES, CHUNKS * WIDTH)))
    part = fold(tl.reshape(part, (CHUNKS * WIDTH // PIECE, PIECE, 1)))
    part = fold(tl.reshape(part, (1, CHUNKS, WIDTH // PIECE)))
    return tl.reshape(part, (WIDTH // PIECE,))


@triton.jit
def row_sums(part, ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Fold the lanes and then the warps of thread sums ``[ROWS * WARPS * LANES]``: ``[ROWS]``."""
    LANES: tl.constexpr = part.shape[0] // (ROWS * WARPS)
    part = fold(tl.reshape(part, (ROWS * WARPS, LANES, 1)))
    return fold_split(tl.reshape(part, (ROWS, WARPS)))


@triton.jit
def plain_sum(x, ROWS: tl.constexpr):
    """Sum each row of a tile ``[HALVES * CHUNKS, ROWS * SPAN]`` in the order that the compiler chooses: ``[ROWS]``."""
    return tl.sum(tl.reshape(tl.sum(x, 0), (ROWS, x.shape[1] // ROWS)), 1)


@triton.jit
def canonical_divide(x, N: tl.constexpr):
    """``x / N``, correctly rounded. A product with the reciprocal is just that when ``N`` is a power of two."""
    if N & (N - 1) == 0:
        return x * (1.0 / N)
    else:
        return tl.div_rn(x, tl.full(x.shape, N, tl.float32))


@triton.jit
def canonical_reciprocal(x):
    """``1 / x``, correctly rounded."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def upcast(x, INTERPRET: tl.constexpr):
    """Float32 of a tensor of any supported dtype; exact."""
    if INTERPRET and x.dtype == tl.bfloat16:  # the interpreter has no bfloat16 of its own: move the bits
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def round_to(x, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """Round float32 ``x`` to ``DTYPE``, to nearest even.

    The interpreter rounds halves up and loses the carry into the exponent even when "rtne" is named, so there the
    rounding is done on the bits. A GPU converts with one instruction.
    """
    if INTERPRET and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, (bits >> 16) | 0x40)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def addresses(base, offset, VEC: tl.constexpr, BYTES: tl.constexpr, HINT: tl.constexpr):
    """``base + offset`` for offsets ``[HALVES * CHUNKS, ROWS * SPAN]``, with a promise of alignment when ``HINT``.

    The promise: each ``VEC`` neighbours on the last axis start at a multiple of ``BYTES``. The kernels' arguments are
    never specialised, so this is all that the compiler knows of alignment. The host checks it for each tensor and
    takes a variant without it where it does not hold. (The sum is formed here because the hint sits on the operation
    that made the pointer: on a function's parameter it would be lost.)
    """
    pointer = base + offset
    if HINT and VEC > 1 and offset.shape[1] >= VEC:  # a tile of variance_size can be narrower
        pointer = tl.multiple_of(tl.max_contiguous(pointer, [1, VEC]), [1, BYTES])
    return pointer


@triton.jit
def read(
    base, offset, mask, rows, VEC: tl.constexpr, BYTES: tl.constexpr, HINT: tl.constexpr, KEEP: tl.constexpr = False
):  # fmt: skip
    """Load ``[HALVES * CHUNKS, ROWS * SPAN]``, zero where masked.

    ``KEEP``: these lines leave the L2 cache after all others.

    Without the promise of alignment, a second load that makes it but never runs (``rows < 0``) keeps the layout of
    the tile what it is with the promise: all loads and stores of one shape vote on one layout.
    """
    POLICY: tl.constexpr = "evict_last" if KEEP else ""
    if HINT:
        pointer = addresses(base, offset, VEC, BYTES, True)
        return tl.load(pointer, mask=mask, other=0.0, eviction_policy=POLICY)
    else:
        x = tl.load(base + offset, mask=mask, other=0.0)
        never = rows < 0
        anchor = tl.load(addresses(base, offset, VEC, BYTES, True), mask=mask & never, other=0.0)
        return tl.where(never, anchor, x)


@triton.jit
def touch(pointer):
    """Ask for the cache line of each pointer to come to the L2 cache; nothing is read. (Not for the interpreter.)"""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",  # an output is required
        "=r,l",
        [pointer.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def touch_bytes(pointer, BYTES: tl.constexpr):
    """The same for ``BYTES`` bytes in a row, a multiple of 16 at a multiple of 16, asked for by one thread. SM 9.0."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; "
        "@p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointer.to(tl.int64), tl.full((), BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def hidden(x, INTERPRET: tl.constexpr):
    """``x``, behind an instruction that the compiler cannot see through.

    It then cannot keep other values that were made of ``x`` in registers, and makes them again.
    """
    if INTERPRET:
        return x
    else:
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK
        )


@triton.jit
def pinned(pointer):
    """``pointer``, computed here; the compiler would compute it where it is used. (Not for the interpreter.)"""
    return tl.inline_asm_elementwise(
        "mov.b64 $0, $1;", "=l,l", [pointer.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
    ).to(pointer.dtype, bitcast=True)
