# SPDX-License-Identifier: Apache-2.0
"""vLLM's own Triton attention as an implementation of the op ``attention``: for a trainer beside an installed vLLM.

The engine's kernel reads keys and values from a paged cache. Here the cache is made for the call: each sequence gets
pages of its own, in order, laid out as the engine lays them out, so that the kernel is specialised as it is there. In
batch-invariant mode vLLM launches it in one form for prompts, chunks and single tokens (one program a block of
queries, keys in tiles of one size from the sequence's start), so a query has the bits that it has in the engine.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import Tensor

from ir_vllm_adapter import compat

PAGE: Final = 16
"""Tokens a page: the engine's default. A query's bits do not depend on it; the kernel's specialisation might."""


@functools.cache
def _kernel() -> Any:
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    return unified_attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """The op ``attention`` without a mask, by the kernel of vLLM's ``TRITON_ATTN`` backend."""
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    device = query.device
    cache, pages = _paged(key, value)
    out = query.new_empty((batch * queries, heads, size))
    starts = torch.arange(0, (batch + 1) * queries, queries, dtype=torch.int32, device=device)
    _kernel()(
        q=query.transpose(1, 2).reshape(batch * queries, heads, size).contiguous(),
        k=cache[..., :size],
        v=cache[..., size:],
        out=out,
        cu_seqlens_q=starts,
        max_seqlen_q=queries,
        seqused_k=torch.full((batch,), keys, dtype=torch.int32, device=device),
        max_seqlen_k=keys,
        softmax_scale=size**-0.5 if scale is None else scale,
        causal=causal,
        window_size=(-1, -1),
        block_table=pages,
        softcap=0.0,
        q_descale=None,
        k_descale=torch.ones(batch, groups, device=device),
        v_descale=torch.ones(batch, groups, device=device),
    )
    return out.view(batch, queries, heads, size).transpose(1, 2)


def _paged(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A cache ``[pages, PAGE, groups, 2 * size]`` with keys and values side by side, and each sequence's pages."""
    batch, groups, keys, size = key.shape
    pages = -(-keys // PAGE)
    cache = key.new_zeros((batch, groups, pages * PAGE, 2 * size))
    cache[:, :, :keys, :size] = key
    cache[:, :, :keys, size:] = value
    cache = (
        cache.view(batch, groups, pages, PAGE, 2 * size).transpose(1, 2).reshape(-1, groups, PAGE, 2 * size)
    )
    table = torch.arange(batch * pages, dtype=torch.int32, device=key.device).view(batch, pages)
    return cache.transpose(1, 2), table


def supports(
    query: Any,
    key: Any,
    value: Any,
    scale: float | None = None,
    causal: bool = False,
    mask: Any = None,
    key_lengths: Any = None,
) -> bool:
    """What the kernel does: no mask but the causal one, heads of one size. vLLM 0.20 has the causal form alone."""
    plain = mask is None and key_lengths is None and query.shape[-1] == value.shape[-1]
    return plain and (causal or compat.attention_without_causality())
