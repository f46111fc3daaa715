# SPDX-License-Identifier: Apache-2.0
"""The shapes of a call of attention: what fits, which keys a query sees, and the matrices that are one batch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ir_core.errors import ArgumentError


class AttentionCall(NamedTuple):
    """Sizes of a call.

    Attributes:
        leading: dimensions in front of the heads; ``batch`` is their product.
        heads, groups: of the queries, and of keys and values.
        queries, keys: of one head.
    """

    leading: tuple[int, ...]
    batch: int
    heads: int
    groups: int
    queries: int
    keys: int

    def rows(self, t: Tensor) -> Tensor:
        """``[B, H, M, X]`` as ``[B * G, H / G * M, X]``: the queries that share keys are one matrix."""
        return t.reshape(self.batch * self.groups, self.heads // self.groups * self.queries, t.shape[-1])

    def group(self, t: Tensor) -> Tensor:
        """``[B, G, N, X]`` as ``[B * G, N, X]``."""
        return t.reshape(self.batch * self.groups, self.keys, t.shape[-1])

    def values(self, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """:meth:`group` of the values, zeros where there is no key."""
        value = self.group(value)
        if key_lengths is None:
            return value
        inside = torch.arange(self.keys, device=value.device) < self.lengths(key_lengths).view(-1, 1)
        return torch.where(inside.repeat_interleave(self.groups, 0).unsqueeze(2), value, 0.0)

    def lengths(self, key_lengths: Tensor) -> Tensor:
        """The number of keys of each sequence, ``[B]``."""
        return key_lengths.broadcast_to(self.leading).reshape(self.batch)

    def seen(self, visible: Tensor | None) -> Tensor | None:
        """What :func:`visible_keys` returned, as ``[B * G, H / G * M, N]``."""
        if visible is None:
            return None
        shape = (self.batch, self.heads, self.queries, self.keys)
        return self.rows(visible.expand(shape))


def call_of(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, key_lengths: Tensor | None
) -> AttentionCall:
    """The sizes of a call; raises ArgumentError when they do not fit."""
    check_shapes(query, key, value, mask, key_lengths)
    leading = tuple(query.shape[:-3])
    return AttentionCall(
        leading, math.prod(leading), query.shape[-3], key.shape[-3], query.shape[-2], key.shape[-2]
    )


def check_shapes(query: Any, key: Any, value: Any, mask: Any, key_lengths: Any) -> None:
    """Raise ArgumentError where sizes do not fit that the op's check may not see."""
    leading, heads = query.shape[:-3], query.shape[-3]
    if key.shape[:-3] != leading or value.shape[:-1] != key.shape[:-1]:
        raise ArgumentError(
            f"attention: 'query' has the shape {_sizes(query)}, 'key' {_sizes(key)}, 'value' {_sizes(value)}.",
            why="They have one batch, and each key has its value.",
            fix="Give them the shapes [B, H, M, D], [B, G, N, D] and [B, G, N, C].",
        )
    if key.shape[-3] == 0 or heads % key.shape[-3]:
        raise ArgumentError(
            f"attention: 'query' has {heads} heads, and 'key' has {key.shape[-3]}.",
            why="As many heads of queries attend to each head of keys.",
            fix="Give the query a multiple of the key's heads.",
        )
    whole = (*leading, heads, query.shape[-2], key.shape[-2])
    for name, tensor, shape in (("mask", mask, whole), ("key_lengths", key_lengths, tuple(leading))):
        if tensor is None:
            continue
        sizes = tuple(tensor.shape)
        pairs = zip(reversed(sizes), reversed(shape), strict=False)
        if len(sizes) > len(shape) or any(mine not in (1, theirs) for mine, theirs in pairs):
            raise ArgumentError(
                f"attention: '{name}' has the shape {_sizes(tensor)}, which does not broadcast to {list(shape)}.",
                fix=f"Give it the shape {list(shape)}, or 1 where it is the same for all.",
            )


def _sizes(t: Any) -> str:
    return f"[{', '.join(str(size) for size in t.shape)}]"


def visible_keys(
    query: Tensor, key: Tensor, causal: bool, mask: Tensor | None, key_lengths: Tensor | None
) -> Tensor | None:
    """Which keys a query sees: bool, which broadcasts to ``[B, H, M, N]``; None when each sees all."""
    leading, (queries, keys) = tuple(query.shape[:-3]), (query.shape[-2], key.shape[-2])
    index = torch.arange(keys, device=query.device)
    seen: Tensor | None = None
    if causal:
        last = torch.arange(queries, device=query.device) + (keys - queries)
        seen = (index <= last.unsqueeze(1)).view(1, 1, queries, keys)
    if key_lengths is not None:
        lengths = key_lengths.broadcast_to(leading).reshape(-1, 1, 1, 1)
        seen = (index < lengths) if seen is None else seen & (index < lengths)
    if mask is not None:
        whole = (*leading, query.shape[-3], queries, keys)
        if mask.dim() <= 4 and (mask.dim() < 4 or mask.shape[0] == 1 or len(leading) == 1):
            mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
        else:
            mask = mask.expand(whole).reshape(-1, *whole[-3:])
        seen = mask if seen is None else seen & mask
    return seen
