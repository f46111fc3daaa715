# SPDX-License-Identifier: Apache-2.0
"""Schemas (no kernels) of the `_C` ops that vLLM's compile passes name while they build their patterns.

A CPU machine has no CUDA `_C` library. The passes only need the overloads to exist; none is ever called, and the tests
would fail loudly if one were, because nothing implements them.
"""

from __future__ import annotations

import torch

_SCHEMAS = """\
rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, bool is_neox, \
int rope_dim_offset=0, bool inverse=False) -> ()
rms_norm(Tensor! result, Tensor input, Tensor? weight, float epsilon) -> ()
fused_add_rms_norm(Tensor! input, Tensor! residual, Tensor? weight, float epsilon) -> ()
rms_norm_static_fp8_quant(Tensor! result, Tensor input, Tensor weight, Tensor scale, float epsilon) -> ()
fused_add_rms_norm_static_fp8_quant(Tensor! result, Tensor input, Tensor! residual, Tensor weight, Tensor scale, \
float epsilon) -> ()
rms_norm_dynamic_per_token_quant(Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, \
Tensor? scale_ub, Tensor!? residual) -> ()
rms_norm_per_block_quant(Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, \
Tensor? scale_ub, Tensor!? residual, int group_size, bool is_scale_transposed) -> ()
silu_and_mul(Tensor! result, Tensor input) -> ()
silu_and_mul_quant(Tensor! result, Tensor input, Tensor scale) -> ()
fused_qk_norm_rope(Tensor! qkv, int num_heads_q, int num_heads_k, int num_heads_v, int head_dim, float eps, \
Tensor q_weight, Tensor k_weight, Tensor cos_sin_cache, bool is_neox, Tensor position_ids, \
int forced_token_heads_per_warp=-1) -> ()
static_scaled_fp8_quant(Tensor! result, Tensor input, Tensor scale, int[]? group_shape=None) -> ()
dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()
dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()
"""

_LIBRARY: list[torch.library.Library] = []


def define() -> None:
    """Define every schema that the process does not have yet. Idempotent."""
    if _LIBRARY:
        return
    library = torch.library.Library("_C", "FRAGMENT")
    for schema in _SCHEMAS.splitlines():
        if not hasattr(torch.ops._C, schema.partition("(")[0]):
            library.define(schema)
    _LIBRARY.append(library)
