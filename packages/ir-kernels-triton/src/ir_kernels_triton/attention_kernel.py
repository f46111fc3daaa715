# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E741  names are those of docs/orders.md
"""attention in the orders ``tiles64``: one pass over the keys, or parts of 512 side by side and a merge.

A program has ``BM`` rows of one group of heads. A row is a query of one head; the heads that share keys stand side by
side, so that a tile of keys is read once for all of them: row r is query ``r // GROUP`` of the head ``r % GROUP``.
No row's arithmetic depends on another's, so how many rows, warps and stages there are changes no bit.

All kernels are made of ``_tile`` (64 keys more) and ``_merge`` (512 keys closed), which have the steps of
``docs/orders.md`` one by one. Every multiply-add is asked for by name; float32 needs the compiler's contraction for its
dots, and nothing else here can be contracted.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ir_kernels_triton.chain16_dot import chain16_dot, fma_chain_dot, fma_exact
from ir_kernels_triton.elementary import exp2
from ir_kernels_triton.tree import canonical_reciprocal, hidden, round_to

TILE = tl.constexpr(64)
PART = tl.constexpr(8)
"""Tiles of a part."""

OPERANDS = ["q_ptr", "k_ptr", "v_ptr", "mask_ptr", "lengths_ptr"]
SIZES = ["rows", "keys", "queries", "groups"]
STRIDES = [
    *("q_b", "q_h", "q_m", "k_b", "k_g", "k_n", "v_b", "v_g", "v_n"),
    *("mask_b", "mask_h", "mask_m", "mask_n"),
]
ARGUMENTS = [*OPERANDS, "o_ptr", "m_ptr", "l_ptr", *SIZES, *STRIDES, "factor"]
"""Everything that is not a constant; kept from specialisation also where Triton's own JIT launches the kernel."""
MERGE_ARGUMENTS = ["c_ptr", "m_ptr", "l_ptr", "o_ptr", "lengths_ptr", *SIZES]


@triton.jit
def _fma(a, b, c, INTERPRET: tl.constexpr):
    if INTERPRET:
        return fma_exact(a, b, c)
    else:
        return tl.fma(a, b, c)


@triton.jit
def _dot(x, w, acc, INTERPRET: tl.constexpr):
    if x.dtype == tl.float32:
        return fma_chain_dot(x, w, acc) if INTERPRET else tl.dot(x, w, acc, input_precision="ieee")
    else:
        return chain16_dot(x, w, acc, True) if INTERPRET else tl.dot(x, w, acc)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(x, INTERPRET: tl.constexpr):
    """The largest of each row; in the interpreter infinity for what is no number, which comes to the same."""
    if INTERPRET:
        return tl.max(tl.where(x == x, x, float("inf")), 1)
    else:
        return tl.reduce(x, 1, _larger)


@triton.jit
def _tree(p):
    """The sum of each row of ``[BM, 64]``: pairs that differ in bit 0 of the column, then 3, 4, 5, 1, 2."""
    BM: tl.constexpr = p.shape[0]
    p = tl.sum(tl.reshape(p, (BM, 8, 4, 2)), 3)
    p = tl.sum(tl.reshape(p, (BM, 4, 2, 4)), 2)
    p = tl.sum(tl.reshape(p, (BM, 2, 2, 4)), 2)
    p = tl.sum(p, 1)
    p = tl.sum(tl.reshape(p, (BM, 2, 2)), 2)
    return tl.sum(p, 1)


@triton.jit
def _weight(old, new, TERMS: tl.constexpr, INTERPRET: tl.constexpr):
    """What a result with the maximum ``old`` counts under ``new``; no number where ``new`` is infinite or none."""
    w = exp2(old - tl.where(new == float("-inf"), 0.0, new), TERMS, INTERPRET, NONPOSITIVE=True)
    return tl.where(new < float("inf"), w, float("nan"))


@triton.jit
def _scores(q, k, INTERPRET: tl.constexpr):
    return _dot(q, tl.trans(k), tl.zeros((q.shape[0], TILE), dtype=tl.float32), INTERPRET)


@triton.jit
def _tile(s, v, seen, m, l, c, factor, MASKED: tl.constexpr, TERMS: tl.constexpr, INTERPRET: tl.constexpr):
    """64 keys more: the maximum ``m`` ``[BM]``, the sum ``l`` ``[BM]`` and the accumulators ``c`` ``[BM, BC]``."""
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    top = _largest(s, INTERPRET)
    a = top * factor
    a = _fma(tl.abs(a), 1.1920928955078125e-07, a, INTERPRET)  # 2**-23
    new = _larger(m, tl.where(top == float("-inf"), top, a))
    base = tl.where(new == float("-inf"), 0.0, new)
    p = exp2(_fma(s, factor, -base[:, None], INTERPRET), TERMS, INTERPRET, NONPOSITIVE=True)
    if v.dtype == tl.float32:
        p = hidden(p, INTERPRET)  # else its last product could be contracted with the sum's first addition
    w = _weight(m, new, TERMS, INTERPRET)
    l = _fma(l, w, _tree(p), INTERPRET)
    c = _dot(round_to(p, v.dtype, INTERPRET), v, c * w[:, None], INTERPRET)
    return new, l, c


@triton.jit
def _merge(top, total, whole, m, l, c, TERMS: tl.constexpr, INTERPRET: tl.constexpr):
    """What there is, and one part more."""
    new = _larger(top, m)
    old_w = _weight(top, new, TERMS, INTERPRET)
    new_w = _weight(m, new, TERMS, INTERPRET)
    total = _fma(total, old_w, l * new_w, INTERPRET)
    whole = _fma(whole, old_w[:, None], c * new_w[:, None], INTERPRET)
    return new, total, whole


@triton.jit
def _divided(whole, total, INTERPRET: tl.constexpr):
    """The result; a minus zero becomes a zero."""
    one = tl.where(total == 0.0, 1.0, total)
    inverse = tl.where(total == 0.0, 0.0, canonical_reciprocal(one))
    return _fma(whole, inverse[:, None], 0.0, INTERPRET)


@triton.jit
def _at(base, offset, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Addresses ``[R, WIDTH]`` of rows that begin at ``offset`` ``[R]`` elements."""
    pointer = base + (offset[:, None] + tl.arange(0, WIDTH)[None, :])
    if ALIGNED:
        VEC: tl.constexpr = 128 // base.dtype.element_ty.primitive_bitwidth
        pointer = tl.multiple_of(tl.max_contiguous(pointer, [1, VEC]), [1, 16])
    return pointer


@triton.jit
def _columns(N: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, BITS: tl.constexpr):
    """Which of ``[1, WIDTH]`` columns a row of ``N`` elements has."""
    inside = (tl.arange(0, WIDTH) < N)[None, :]
    if ALIGNED:
        inside = tl.max_constancy(inside, [1, 128 // BITS])
    return inside


@triton.jit
def _read(
    base, offset, there, N: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, ALL: tl.constexpr
):
    """Rows of ``N`` elements as ``[R, WIDTH]``; zeros behind a row's end, and for rows not ``there`` unless ``ALL``."""
    pointer = _at(base, offset, WIDTH, ALIGNED)
    if N == WIDTH:
        if ALL:
            return tl.load(pointer)
        else:
            return tl.load(pointer, mask=there[:, None], other=0.0)
    else:
        inside = _columns(N, WIDTH, ALIGNED, base.dtype.element_ty.primitive_bitwidth)
        if not ALL:
            inside = inside & there[:, None]
        return tl.load(pointer, mask=inside, other=0.0)


@triton.jit
def _keys_seen(lengths_ptr, b, row, keys, queries, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
               HAS_LENGTHS: tl.constexpr):  # fmt: skip
    """``(keys there are, the end of what each row sees)``; the latter before a mask."""
    limit = keys
    if HAS_LENGTHS:
        limit = tl.minimum(tl.maximum(tl.load(lengths_ptr + b).to(tl.int32), 0), keys)
    end = row * 0 + limit
    if CAUSAL:
        end = tl.minimum(row // GROUP + (keys - queries + 1), limit)
    return limit, tl.maximum(end, 0)


@triton.jit
def _tiles(
    first, last, start, q, k_at, v_at, mask_at, k_n, v_n, mask_n, limit, end, m, l, c, top, total, whole, factor,
    D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, MASKED: tl.constexpr,
    HAS_MASK: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr, TERMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Add the tiles from ``first`` to ``last``; ``start`` is the first of all, the addresses are those of key 0.

    A part is closed when the first tile of the next has its scores: at that point the compiler has waited for the
    accumulators. (A branch behind the product that makes them would be entered without waiting, Triton 3.6 and 3.7.)
    """
    for t in tl.range(first, last, num_stages=STAGES):
        n = t * TILE + tl.arange(0, TILE)
        there = n < limit
        n64 = n.to(tl.int64)
        k = _read(k_at, n64 * k_n, there, D, BD, ALIGNED, not MASKED)
        v = _read(v_at, n64 * v_n, there, C, BC, ALIGNED, not MASKED)
        s = _scores(q, k, INTERPRET)
        if not PARTS:  # noqa: SIM102  a constant
            if ((t & 7) == 0) & (t > start):
                top, total, whole = _merge(top, total, whole, m, l, c, TERMS, INTERPRET)
                m = tl.full(m.shape, float("-inf"), tl.float32)
                l = tl.zeros(l.shape, dtype=tl.float32)
                c = tl.zeros(c.shape, dtype=tl.float32)
        seen = n[None, :] < end[:, None]
        if HAS_MASK:
            visible = tl.load(mask_at[:, None] + (n64 * mask_n)[None, :], mask=there[None, :], other=0)
            seen = seen & (visible != 0)
        m, l, c = _tile(s, v, seen, m, l, c, factor, MASKED, TERMS, INTERPRET)
    return m, l, c, top, total, whole


@triton.jit(do_not_specialize=ARGUMENTS)
def attention_rows(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, o_ptr, m_ptr, l_ptr, rows, keys, queries, groups,
    q_b, q_h, q_m, k_b, k_g, k_n, v_b, v_g, v_n, mask_b, mask_h, mask_m, mask_n, factor,
    BM: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """``BM`` rows over all their keys, or with ``PARTS`` over 512 of them.

    Without ``PARTS`` the result goes to ``o``, ``[B, H, M, C]`` contiguous. With it the accumulators go there, float32
    ``[B * G, parts, rows, C]``, with the maxima and sums ``[B * G, parts, rows]``.
    """
    if PDL:
        gdc_launch_dependents()
    TERMS: tl.constexpr = 6 if q_ptr.dtype.element_ty == tl.float32 else 4
    row_tiles = tl.cdiv(rows, BM)
    parts = tl.cdiv(keys, TILE * PART)
    program = tl.program_id(0)
    if PARTS:
        part = program % parts
        program = program // parts
        tile = program % row_tiles
        z = program // row_tiles
    else:  # later queries of a causal call have most keys: they begin first
        part = 0
        z = program % (tl.num_programs(0) // row_tiles)
        tile = row_tiles - 1 - program // (tl.num_programs(0) // row_tiles)
    b = (z // groups).to(tl.int64)
    g = (z % groups).to(tl.int64)
    r = tile * BM + tl.arange(0, BM)
    row = tl.minimum(r, rows - 1)  # rows behind the last are the last again; they are not stored
    query, head = (row // GROUP).to(tl.int64), g * GROUP + row % GROUP
    if PDL:
        gdc_wait()
    limit, end = _keys_seen(lengths_ptr, b, row, keys, queries, GROUP, CAUSAL, HAS_LENGTHS)
    last = tl.cdiv(tl.max(end, 0), TILE)  # tiles that some row sees something of
    full = 0 if HAS_MASK else tl.min(end, 0) // TILE  # tiles that all rows see all of
    first = 0
    if PARTS:
        first = part * PART
        last = tl.minimum(last, first + PART)
        full = tl.maximum(tl.minimum(full, last), first)
    q = _read(q_ptr, b * q_b + head * q_h + query * q_m, row >= 0, D, BD, ALIGNED, True)
    k_at, v_at = k_ptr + (b * k_b + g * k_g), v_ptr + (b * v_b + g * v_g)
    mask_at = mask_ptr + (b * mask_b + head * mask_h + query * mask_m)
    m = tl.full((BM,), float("-inf"), tl.float32)
    l = tl.zeros((BM,), dtype=tl.float32)
    c = tl.zeros((BM, BC), dtype=tl.float32)
    top, total, whole = m, l, c
    m, l, c, top, total, whole = _tiles(
        first, full, first, q, k_at, v_at, mask_at, k_n, v_n, mask_n, limit, end, m, l, c, top, total, whole, factor,
        D, C, BD, BC, False, False, ALIGNED, PARTS, STAGES, TERMS, INTERPRET,
    )  # fmt: skip
    m, l, c, top, total, whole = _tiles(
        full, last, first, q, k_at, v_at, mask_at, k_n, v_n, mask_n, limit, end, m, l, c, top, total, whole, factor,
        D, C, BD, BC, True, HAS_MASK, ALIGNED, PARTS, STAGES, TERMS, INTERPRET,
    )  # fmt: skip
    column = tl.arange(0, BC)
    stored = (r < rows)[:, None] & (column < C)[None, :]
    if PARTS:
        to = (z.to(tl.int64) * parts + part) * rows + r
        tl.store(m_ptr + to, m, mask=r < rows)
        tl.store(l_ptr + to, l, mask=r < rows)
        tl.store(o_ptr + (to[:, None] * C + column[None, :]), c, mask=stored)
    else:
        top, total, whole = _merge(top, total, whole, m, l, c, TERMS, INTERPRET)
        o = round_to(_divided(whole, total, INTERPRET), o_ptr.dtype.element_ty, INTERPRET)
        to = ((b * groups * GROUP + head) * queries + query) * C
        tl.store(o_ptr + (to[:, None] + column[None, :]), o, mask=stored)


@triton.jit(do_not_specialize=MERGE_ARGUMENTS)
def attention_merge(
    c_ptr, m_ptr, l_ptr, o_ptr, lengths_ptr, rows, keys, queries, groups,
    BR: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, TERMS: tl.constexpr, UNROLL: tl.constexpr, PDL: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Merge the parts of ``BR`` rows, in ascending order; ``UNROLL`` of them are read at once."""
    if PDL:
        gdc_launch_dependents()
    row_tiles = tl.cdiv(rows, BR)
    z = tl.program_id(0) // row_tiles
    r = (tl.program_id(0) % row_tiles) * BR + tl.arange(0, BR)
    b = (z // groups).to(tl.int64)
    if PDL:
        gdc_wait()
    _, end = _keys_seen(lengths_ptr, b, r, keys, queries, GROUP, CAUSAL, HAS_LENGTHS)
    mine = tl.where(r < rows, tl.cdiv(end, TILE * PART), 0)  # parts that the row sees something of
    column = tl.arange(0, BC)
    inside = (column < C)[None, :]
    top = tl.full((BR,), float("-inf"), tl.float32)
    total = tl.zeros((BR,), dtype=tl.float32)
    whole = tl.zeros((BR, BC), dtype=tl.float32)
    first = z.to(tl.int64) * tl.cdiv(keys, TILE * PART) * rows + r
    for start in tl.range(0, tl.max(mine, 0), UNROLL):
        for u in tl.static_range(UNROLL):
            at = first + rows.to(tl.int64) * (start + u)
            there = start + u < mine
            m = tl.load(m_ptr + at, mask=there, other=float("-inf"))
            l = tl.load(l_ptr + at, mask=there, other=0.0)
            c = tl.load(c_ptr + (at[:, None] * C + column[None, :]), mask=there[:, None] & inside, other=0.0)
            top, total, whole = _merge(top, total, whole, m, l, c, TERMS, INTERPRET)
    o = round_to(_divided(whole, total, INTERPRET), o_ptr.dtype.element_ty, INTERPRET)
    head = (z % groups).to(tl.int64) * GROUP + r % GROUP
    to = ((b * groups * GROUP + head) * queries + r // GROUP) * C
    tl.store(o_ptr + (to[:, None] + column[None, :]), o, mask=(r < rows)[:, None] & inside)
