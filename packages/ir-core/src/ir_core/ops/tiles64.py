# SPDX-License-Identifier: Apache-2.0
"""The orders of attention, on any device: tiles of 64 keys, counted from a sequence's first key.

``docs/orders.md`` states them so that they can be written again. In short, for one query and its visible keys: scores
are sums of products in the order of the dtype; for each 64 keys a running maximum, exponentials of two, their sum as a
tree, and the products with the values as a continued sum; every 512 keys the partial result is closed, and merged into
what there is. A key that is not visible has the exponential +0, which changes nothing in any of these; so the result
depends on the visible keys and their indices alone, not on how many queries or further keys a call has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ir_core.ops.chain16 import chain16_add
from ir_core.ops.fma_chain import fma, fma_add, mul_add
from ir_core.ops.powers import exp2

TILE: Final = 64
"""Keys of a tile: the maximum moves, and what there is is rescaled, once a tile."""
PART: Final = 512
"""Keys of a part: parts can be computed side by side."""
SUM_BITS: Final = (0, 3, 4, 5, 1, 2)
"""The bits of a key's index in its tile, in the order in which pairs that differ in them are added: on tensor cores one
thread has keys that differ in the first four."""


LOG2_E: Final = 1.4426950408889634


class Arithmetic(NamedTuple):
    """What a dtype computes with; ``terms`` are those of exp2, 4 where probabilities are rounded to 16 bits."""

    accumulator: torch.dtype
    add_products: Callable[[Tensor, Tensor, Tensor], Tensor]
    terms: int


ARITHMETIC: Final = {
    torch.float16: Arithmetic(torch.float32, chain16_add, 4),
    torch.bfloat16: Arithmetic(torch.float32, chain16_add, 4),
    torch.float32: Arithmetic(torch.float32, fma_add, 6),
    torch.float64: Arithmetic(torch.float64, mul_add, 13),
}


class Partial(NamedTuple):
    """What is known of some keys: the maximum ``[Z, R, 1]`` (of scores in powers of two, a little above it), the sum of
    exponentials ``[Z, R, 1]``, and the sum of their products with the values ``[Z, R, C]``."""

    top: Tensor
    total: Tensor
    acc: Tensor


def prepared_scale(query: Tensor, scale: float | None) -> tuple[Tensor, float]:
    """The query and the positive factor of its scores, such that ``2**(factor * score)`` is what softmax sums.

    A negative scale is that of the negative query, since every order here is symmetric in sign; 0 that of a query of
    zeros. The factor is rounded to the accumulator's type where it is multiplied with.
    """
    scale = float(query.shape[-1]) ** -0.5 if scale is None else float(scale)
    if scale < 0.0:
        return -query, -scale * LOG2_E
    if scale == 0.0:
        return torch.zeros_like(query), 1.0
    return query, scale * LOG2_E


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, factor: float) -> Tensor:
    """Attention of ``query`` ``[Z, R, D]`` to ``key`` ``[Z, N, D]`` and ``value`` ``[Z, N, C]``: ``[Z, R, C]``.

    Args:
        query, key, value: of one dtype, which has an order.
        visible: bool, which broadcasts to ``[Z, R, N]``; None: every key.
        factor: what scores are multiplied by, a positive number; see :func:`prepared_scale`.
    """
    arithmetic = ARITHMETIC[query.dtype]
    keys, columns = key.shape[1], value.shape[2]
    whole = _nothing(query, columns, arithmetic)
    factors = torch.full((), factor, dtype=arithmetic.accumulator, device=query.device)
    for start in range(0, keys, PART):
        part = _nothing(query, columns, arithmetic)
        for at in range(start, min(start + PART, keys), TILE):
            there = slice(at, min(at + TILE, keys))
            seen = None if visible is None else visible[..., there]
            part = _tile(part, query, key[:, there], value[:, there], seen, factors, arithmetic)
        whole = _merge(whole, part, arithmetic)
    one = torch.ones_like(whole.total)
    reciprocal = torch.where(whole.total == 0, 0.0, one / whole.total)
    return fma(whole.acc, reciprocal, torch.zeros_like(one)).to(query.dtype)


def _nothing(query: Tensor, columns: int, arithmetic: Arithmetic) -> Partial:
    zeros = query.new_zeros((*query.shape[:2], columns), dtype=arithmetic.accumulator)
    total = zeros.new_zeros((*query.shape[:2], 1))
    return Partial(torch.full_like(total, -torch.inf), total, zeros)


def _tile(
    part: Partial,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    factor: Tensor,
    how: Arithmetic,
) -> Partial:
    """One more tile of up to 64 keys."""
    scores = how.add_products(part.acc.new_zeros((*query.shape[:2], key.shape[1])), query, key)
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    top = torch.maximum(part.top, _above(scores.amax(-1, keepdim=True), factor))
    base = torch.where(top == -torch.inf, 0.0, top)
    p = exp2(fma(scores, factor, -base), how.terms)
    old = _weight(part.top, top, how)
    total = fma(part.total, old, _tree(p))
    acc = how.add_products(part.acc * old, p.to(query.dtype), value.mT)
    return Partial(top, total, acc)


def _merge(whole: Partial, part: Partial, how: Arithmetic) -> Partial:
    """Both together."""
    top = torch.maximum(whole.top, part.top)
    old, new = _weight(whole.top, top, how), _weight(part.top, top, how)
    return Partial(top, fma(whole.total, old, part.total * new), fma(whole.acc, old, part.acc * new))


def _above(score: Tensor, factor: Tensor) -> Tensor:
    """``score * factor``, and one or two units more: not below the exact product, so that no exponent is positive."""
    product = score * factor
    unit = torch.full_like(factor, 2.0**-52 if factor.dtype == torch.float64 else 2.0**-23)
    return torch.where(score == -torch.inf, score, fma(product.abs(), unit, product))


def _weight(old: Tensor, new: Tensor, how: Arithmetic) -> Tensor:
    """What a result with the maximum ``old`` counts under the maximum ``new``; no number, when that is none."""
    base = torch.where(new == -torch.inf, 0.0, new)
    return torch.where(new < torch.inf, exp2(old - base, how.terms), torch.nan)


def _tree(p: Tensor) -> Tensor:
    """The sum of up to 64 numbers ``[Z, R, n]``, of pairs that differ in one bit of their index: ``[Z, R, 1]``."""
    p = torch.nn.functional.pad(p, (0, TILE - p.shape[-1])).unflatten(-1, (2,) * 6)
    left = list(range(5, -1, -1))  # the bits that the last dimensions stand for
    for bit in SUM_BITS:
        dim = left.index(bit) - len(left)
        p = p.select(dim, 0) + p.select(dim, 1)
        left.remove(bit)
    return p.unsqueeze(-1)
