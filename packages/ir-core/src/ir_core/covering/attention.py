# SPDX-License-Identifier: Apache-2.0
"""``scaled_dot_product_attention`` as the op ``attention``, whose order knows a key by its index alone.

That index is counted from the first key of a call. It is the place in the sequence where a cache holds all keys of a
sequence from its first on. It is not with left padding, where it depends on the longest sequence of the batch: such a
call is refused where reading the mask costs nothing, on a CPU outside of compiled code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ir_core import ops
from ir_core.covering.known import report
from ir_core.covering.products import matmul
from ir_core.covering.reductions import softmax
from ir_core.covering.shapes import autocast, floating
from ir_core.errors import ArgumentError


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention`.

    A mask of numbers is added to scores, so that such a call is two products and a softmax over all its keys.

    Raises:
        ArgumentError: the mask is that of left padding.
    """
    query, key, value = autocast(query, key, value)
    same = floating(query, key, value) and query.dtype == key.dtype == value.dtype
    if dropout_p > 0.0 or not same or query.dim() < 3:
        report("scaled_dot_product_attention with dropout or of other dtypes", "its op has neither")
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    heads = query.dim() > 3
    if not heads:  # [B, L, E]: one head
        query, key, value = query.unsqueeze(-3), key.unsqueeze(-3), value.unsqueeze(-3)
        attn_mask = attn_mask.unsqueeze(-3) if attn_mask is not None and attn_mask.dim() > 2 else attn_mask
    key = key.expand(*query.shape[:-3], *key.shape[-3:])
    value = value.expand(*query.shape[:-3], *value.shape[-3:])
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        result = _with_numbers(query, key, value, attn_mask, scale)
    else:
        result = _seen(query, key, value, attn_mask, is_causal, scale)
    return result if heads else result.squeeze(-3)


def _seen(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    queries, keys = query.shape[-2], key.shape[-2]
    if mask is not None:
        refuse_left_padding(mask, queries, keys)
        mask = mask.reshape(*[1] * (4 - mask.dim()), *mask.shape)
        return ops.attention(query, key, value, scale, False, mask)
    if not causal or queries == keys:
        return ops.attention(query, key, value, scale, causal)
    # torch's causal mask begins with the first query at the first key; the op's ends with the last at the last.
    if queries < keys:
        return ops.attention(query, key[..., :queries, :], value[..., :queries, :], scale, True)
    every = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    return ops.attention(query, key, value, scale, False, every[None, None])


def _with_numbers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    groups = query.shape[-3] // key.shape[-3]
    if groups > 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(query, key.mT).to(torch.promote_types(query.dtype, torch.float32)) * factor
    return matmul(softmax(scores + mask, -1).to(value.dtype), value)


def refuse_left_padding(mask: Tensor, queries: int, keys: int) -> None:
    """Raise where a prompt begins with keys that none of its queries sees.

    Raises:
        ArgumentError: with what to do.
    """
    if torch.compiler.is_compiling() or mask.device.type != "cpu" or queries != keys or mask.dim() < 3:
        return
    if type(mask) is not Tensor or mask.shape[-2] != queries or not queries:
        return
    first = mask[..., 0].any(-1)
    if not bool(first.all()) and bool((~first & mask[..., -1, :].any(-1)).any()):
        raise ArgumentError(
            "scaled_dot_product_attention: a sequence of the batch begins with keys that none of its queries "
            "sees: it is padded on the left.",
            why="Keys are added in groups by their index, and how far padding shifts a sequence depends on the "
            "longest one of the batch: its bits would too.",
            fix="Pad on the right: tokenizer.padding_side = 'right'.",
        )
