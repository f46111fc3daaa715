# SPDX-License-Identifier: Apache-2.0
"""Two tiny models as a folder with only a config.json, and the random weights that the worker gives them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

CONFIGS: dict[str, dict[str, Any]] = {
    # Qwen3: RMSNorm with and without residual, and qk-norm over head_dim on a strided view of the qkv tensor.
    "qwen3": _COMMON
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "attention_bias": False,
    },
    # Gemma 3: GemmaRMSNorm (1 + weight, in float32) in the same places, and four norms a layer.
    "gemma3": _COMMON
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
}


def write_model(name: str, folder: Path, *, dtype: str = "float32") -> Path:
    """Write `folder`/config.json of the model `name` ("qwen3", "gemma3"); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(CONFIGS[name] | {"torch_dtype": dtype}, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter values that depend on its name and shape only.

    vLLM's dummy weights are within 1e-3 of zero, which makes all logits nearly equal and hides small differences;
    these keep activations near unit size, so that one changed bit in a norm is seen in the logprobs.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.dim() > 1:
            values *= parameter.shape[-1] ** -0.5
        else:
            values = 1.0 + 0.1 * values
        parameter.data.copy_(values)
