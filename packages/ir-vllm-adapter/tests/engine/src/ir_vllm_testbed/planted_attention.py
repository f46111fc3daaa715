# SPDX-License-Identifier: Apache-2.0
"""A planted attention backend: vLLM's Triton kernel, which answers otherwise once a chunk has enough tokens.

As FlashAttention 3 does on Hopper from 10 tokens on (vLLM #51902), and not only for the chunk itself: every row of the
pass is concerned. IR_TESTBED_ATTENTION says from how many tokens, and in which layer if not in all: "10", "10@1".
"""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionImpl


class PlantedImpl(TritonAttentionImpl):
    """The kernel with the plant."""

    def forward(self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any,
                output: Any, *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        result = super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        tokens, _, number = os.environ["IR_TESTBED_ATTENTION"].partition("@")
        here = not number or f".layers.{number}." in f".{layer.layer_name}."
        if here and attn_metadata is not None and attn_metadata.max_query_len >= int(tokens):
            rows = output[: attn_metadata.num_actual_tokens]
            rows.copy_(torch.nextafter(rows, torch.full_like(rows, torch.inf)))
        return result


class PlantedBackend(TritonAttentionBackend):
    """TRITON_ATTN by name: vLLM knows no other."""

    @staticmethod
    def get_impl_cls() -> type[PlantedImpl]:
        return PlantedImpl
