# SPDX-License-Identifier: Apache-2.0
"""The order ``chain16x8``: a sum of products that is made of eight parts, so that ranks can compute some of them each.

K is padded with zeros to a multiple of 128 and cut into 8 equal chunks of consecutive k, so that each is a multiple of
16 long. The partial sum of a chunk is that of the dtype's own chain, from +0: ``chain16`` for fp16 and bf16,
``fma_chain`` for float32, ``mul_add_chain`` for float64; one that is zero is +0. The 8 partial sums are added as a
balanced tree of neighbours, ``((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))``, in the accumulator's type, to nearest.

Half, a quarter or an eighth of consecutive chunks is a subtree. Where K is a multiple of 128, a rank that holds
1 / t of the columns (t = 2, 4, 8) holds ``8 / t`` whole chunks, and what is left to do are the top levels of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ir_core.meaning import Order

CHUNKS: Final = 8
"""Chunks of K; also the most ranks that can share a sum."""
STEP: Final = 16
"""A chunk is a multiple of this long: the K of one instruction."""
COUNTS: Final = (1, 2, 4, 8)
"""Chunks that make a subtree."""

CHAIN16X8: Final = Order(
    "chain16x8",
    "K is padded with zeros to a multiple of 128 and cut into 8 equal chunks. The partial sum of a chunk is that of "
    "chain16 (fp16, bf16), fma_chain (float32) or mul_add_chain (float64), from +0; one that is zero is +0. The 8 "
    "partial sums are added as a balanced tree of neighbours, ((0+1)+(2+3))+((4+5)+(6+7)), in float32 (float64), each "
    "sum rounded to nearest even. The bias is added to the total, and the result rounded once. See docs/orders.md.",
    reference="portable_x8",
    by_name=True,
)


def chunk_length(k: int, chunks: int = CHUNKS) -> int:
    """Elements of each of ``chunks`` chunks of ``k``: a multiple of 16, the last ones padded with zeros."""
    return -(-k // (STEP * chunks)) * STEP


def tree(parts: list[Tensor]) -> Tensor:
    """The sum of 1, 2, 4 or 8 tensors of one shape: neighbours are added until one is left."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def chunked(
    chain: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, chunks: int = CHUNKS
) -> Tensor:
    """``x @ weight.T`` of ``[M, K]`` and ``[N, K]``: ``chunks`` partial sums, each by ``chain``, added as a tree.

    Returns:
        ``[M, N]`` in the type of ``chain``'s accumulators, before a bias and before they are rounded.
    """
    length = chunk_length(x.shape[1], chunks)
    behind = (0, length * chunks - x.shape[1])
    x, weight = (torch.nn.functional.pad(t.detach(), behind) for t in (x, weight))
    pieces = [slice(c * length, (c + 1) * length) for c in range(chunks)]
    return tree([chain(x[:, piece], weight[:, piece]) + 0.0 for piece in pieces])
