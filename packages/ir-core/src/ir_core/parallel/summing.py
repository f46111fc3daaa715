# SPDX-License-Identifier: Apache-2.0
"""A sum over ranks in a fixed order: what each rank has travels as it is, and every rank adds in the same tree.

Two ways, with the same bits, since elements do not mix: a few elements are gathered whole and added by every rank;
of many, each rank gets one slice from all ranks, adds, rounds, and the slices are gathered. The second moves
``2 (t - 1) / t`` tensors a rank, as an all-reduce does, where the first moves ``t - 1``.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.ops.chunks import COUNTS, tree

SLICES_FROM: Final = 1 << 20
"""Elements from which each rank adds a slice: 4 MiB of float32. Not measured; ``benchmarks/ranks.py`` times both."""

gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13, and before


def ranks_of(group: dist.ProcessGroup | None) -> int:
    """The number of ranks in ``group``; 1 without ``torch.distributed``.

    Raises:
        ArgumentError: it is not 1, 2, 4 or 8.
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 1
    ranks = dist.get_world_size(group)
    if ranks not in COUNTS:
        raise ArgumentError(
            f"A sum over {ranks} ranks has no order here.",
            why="The tree of chain16x8 has 8 parts, and each rank computes as many of them as the others.",
            fix="Use 1, 2, 4 or 8 ranks, or give the function a group of so many.",
        )
    return ranks


def ordered_sum(
    part: Tensor,
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The sum of a tensor over ranks, as a balanced tree in the order of the ranks; the same bits on each of them.

    ``((p0 + p1) + (p2 + p3)) + ((p4 + p5) + (p6 + p7))`` for 8 ranks, ``(p0 + p1) + (p2 + p3)`` for 4. Then the bias is
    added in the type of ``part``, and the result rounded once. Records no gradient: the functions of ``linears.py`` do.

    Args:
        part: float32 or float64, of one shape on all ranks; for example of ``ops.linear_partial``.
        bias: as long as the last dimension of ``part``, the same on all ranks, or ``None``.
        dtype: of the result; by default that of ``part``.
        group: the ranks, in their order in this group; by default all.

    Raises:
        ArgumentError: another number of ranks than 1, 2, 4 or 8, or a ``part`` that was rounded already.
    """
    if part.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            f"ordered_sum takes float32 and float64, and 'part' is {part.dtype}.",
            why="A part that was rounded before it is added gives other bits on another number of ranks.",
            fix="Give it the result of ops.linear_partial as it is.",
        )
    ranks = ranks_of(group)
    with torch.no_grad():
        if ranks == 1:
            return _end(part, bias, dtype)
        if part.numel() >= SLICES_FROM and part.numel() % ranks == 0:
            return by_slices(part, ranks, bias, dtype, group)
        return whole(part, ranks, bias, dtype, group)


def whole(part: Tensor, ranks: int, bias: Tensor | None, dtype: Any, group: Any) -> Tensor:
    """:func:`ordered_sum` by one all-gather."""
    gathered = part.new_empty((ranks, *part.shape))
    gather(gathered.view(ranks * part.numel()), part.contiguous().view(-1), group=group)
    return _end(tree(list(gathered.unbind())), bias, dtype)


def by_slices(part: Tensor, ranks: int, bias: Tensor | None, dtype: Any, group: Any) -> Tensor:
    """:func:`ordered_sum` by an all-to-all of slices, and an all-gather of their sums; the elements divide."""
    flat = part.contiguous().view(-1)
    mine = torch.empty_like(flat)
    dist.all_to_all_single(mine, flat, group=group)
    piece = tree(list(mine.view(ranks, -1).unbind()))
    if bias is not None:
        first = dist.get_rank(group) * piece.numel()
        column = torch.arange(first, first + piece.numel(), device=part.device) % part.shape[-1]
        piece = piece + bias.to(part.dtype)[column]
    piece = _end(piece, None, dtype).contiguous()
    result = piece.new_empty(part.shape)
    gather(result.view(-1), piece, group=group)
    return result


def _end(total: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    if bias is not None:
        total = total + bias.to(total.dtype)
    return total if dtype is None else total.to(dtype)
