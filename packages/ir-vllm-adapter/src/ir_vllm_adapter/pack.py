# SPDX-License-Identifier: Apache-2.0
"""vLLM's own kernels as implementations of ops, as strings: what a trainer runs to have the bits of the engine.

A policy asks for them by name, ``IR_PRIORITY="attention=order:vllm_unified"``; nothing here is ever a default.
"""

from typing import Any, Final

_UNIFIED: Final = (
    "What the Triton kernel of the installed vLLM's TRITON_ATTN backend computes in batch-invariant mode: keys in "
    "tiles of one size from the start of the sequence, a running maximum, exponentials by exp2, sums by tl.dot and "
    "tl.sum. Its bits are those of that vLLM, Triton and device; the same in prompts, chunks and single tokens."
)

_SAMPLER: Final = (
    "What the Triton kernel of the installed vLLM's sampler computes: the maximum, exponentials and their sum in "
    "blocks of 1024 logits by tl.exp and tl.sum, and logit - maximum - log(sum), in float32."
)

PACK: Final[dict[str, Any]] = {
    "api": 1,
    "name": "vllm",
    "orders": {
        "attention": {"vllm_unified": {"arithmetic": _UNIFIED, "reference": "vllm_triton"}},
        "log_softmax": {"vllm_sampler": {"arithmetic": _SAMPLER, "reference": "vllm_triton"}},
    },
    "implementations": [
        {
            "op": "attention",
            "provider": "vllm_triton",
            "impl": "ir_vllm_adapter.engine_attention:attention",
            "supports_args": "ir_vllm_adapter.engine_attention:supports",
            "batch_invariant": True,
            "opaque": True,
            "order": "vllm_unified",
            "requires": "sm>=8.0 | cpu,triton_interpreter",
        },
        {
            "op": "log_softmax",
            "provider": "vllm_triton",
            "impl": "ir_vllm_adapter.engine_logprobs:log_softmax",
            "supports_args": "ir_vllm_adapter.engine_logprobs:supports",
            "batch_invariant": True,
            "opaque": True,
            "order": "vllm_sampler",
            "requires": "sm>=8.0 | cpu,triton_interpreter",
        },
    ],
}
