# SPDX-License-Identifier: Apache-2.0
"""Device functions shared by the kernels: the canonical fold, exact roots, and casts that the interpreter gets right.

A tile is ``[H * C, R * T]``. ``T = W * L * Q`` is one 16-byte load of each thread of the ``W`` warps of a row;
``R`` rows belong to different warps (or half warps); ``C`` are the chunks: further loads of the same threads. ``H = 2``
cuts the canonical vector of 8 into two loads of ``Q = 4`` float32, so that one thread still owns the whole vector.
The compiler lays tiles out in just that way: a fold over a vector or the chunks stays inside a thread, a fold over the
lanes is one shuffle a step, and the fold over the warps passes each warp's sum through shared memory once.
(With a third dimension for the rows, Triton 3.6 hands warps to the chunks first, and 3.7 to the rows.)
"""

import triton
import triton.language as tl


@triton.jit
def fold(x):
    """Add the upper half of axis 1 of ``[A, S, B]`` to its lower half until one is left: ``[A, B]``."""
    A: tl.constexpr = x.shape[0]
    S: tl.constexpr = x.shape[1]
    B: tl.constexpr = x.shape[2]
    if S == 1:
        return tl.reshape(x, (A, B))
    else:
        return fold(tl.sum(tl.reshape(x, (A, 2, S // 2, B)), 1))


@triton.jit
def fold_split(x):
    """The same fold over the last axis of ``[A, S]``, with both halves in one thread: ``[A]``.

    ``tl.split`` makes the compiler bring all ``S`` values to each thread in one exchange; the additions then stay in
    registers. One barrier, where a ``tl.sum`` over the warps has two and
    steps of two over the warps have about ``3 log2(S)``.
    """
    A: tl.constexpr = x.shape[0]
    S: tl.constexpr = x.shape[1]
    if S == 1:
        return tl.reshape(x, (A,))
    else:
        low, high = tl.split(tl.permute(tl.reshape(x, (A, 2, S // 2)), (0, 2, 1)))
        return fold_split(low + high)


@triton.jit
def columns(C: tl.constexpr, H: tl.constexpr, R: tl.constexpr, T: tl.constexpr, Q: tl.constexpr):
    """Index within a block of each element of a tile, ``[H * C, R * T]``."""
    t = (tl.arange(0, R * T) % T)[None, :]
    if H == 1:
        return tl.arange(0, C)[:, None] * T + t
    else:
        chunk = tl.arange(0, H * C)[:, None]
        return ((chunk % C) * (T // Q) + t // Q) * (H * Q) + (chunk // C) * Q + t % Q


@triton.jit
def inside(col, row, rows, N: tl.constexpr, R: tl.constexpr, VEC: tl.constexpr):
    """Which elements of a tile belong to a row; ``VEC`` neighbours are all in or all out."""
    mask = col < N
    if R > 1:
        mask = mask & (row < rows)
    if VEC > 1 and mask.shape[1] >= VEC:  # the compiler loses sight of it in the arithmetic of ``columns``
        mask = tl.max_constancy(mask, [1, VEC])
    return mask


@triton.jit
def over_rows(x, T: tl.constexpr):
    """One value a row, ``[R]``, for each element of the row: ``[1, R * T]``."""
    R: tl.constexpr = x.shape[0]
    if R == 1:
        return x[None, :]
    else:
        return tl.reshape(tl.broadcast_to(x[:, None], (R, T)), (1, R * T))


@triton.jit
def thread_sums(x, H: tl.constexpr, Q: tl.constexpr):
    """Fold the vectors and then the chunks of a tile ``[H * C, R * T]``: ``[R * T // Q]``, one value a thread."""
    C: tl.constexpr = x.shape[0] // H
    WIDTH: tl.constexpr = x.shape[1]
    part = fold(tl.reshape(x, (1, H, C * WIDTH)))
    part = fold(tl.reshape(part, (C * WIDTH // Q, Q, 1)))
    part = fold(tl.reshape(part, (1, C, WIDTH // Q)))
    return tl.reshape(part, (WIDTH // Q,))


@triton.jit
def row_sums(part, R: tl.constexpr, W: tl.constexpr):
    """Fold the lanes and then the warps of thread sums ``[R * W * L]``: ``[R]``."""
    L: tl.constexpr = part.shape[0] // (R * W)
    part = fold(tl.reshape(part, (R * W, L, 1)))
    return fold_split(tl.reshape(part, (R, W)))


@triton.jit
def plain_sum(x, R: tl.constexpr):
    """Sum each row of a tile ``[H * C, R * T]`` in whatever order the compiler likes: ``[R]``."""
    return tl.sum(tl.reshape(tl.sum(x, 0), (R, x.shape[1] // R)), 1)


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
    """``base + offset`` for offsets ``[H * C, R * T]``, with a promise of alignment when ``HINT``.

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
    """Load ``[H * C, R * T]``, zero where masked; ``KEEP``: these lines leave the L2 cache after all others.

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
    """``x``, of which the compiler no longer knows where it came from, so that it keeps nothing else made of it."""
    if INTERPRET:
        return x
    else:
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK
        )


@triton.jit
def pinned(pointer):
    """``pointer``, computed where this stands; the compiler would move it to its use. (Not for the interpreter.)"""
    return tl.inline_asm_elementwise(
        "mov.b64 $0, $1;", "=l,l", [pointer.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
    ).to(pointer.dtype, bitcast=True)
