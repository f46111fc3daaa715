# SPDX-License-Identifier: Apache-2.0
"""The core's own ops, as a pack: strings first. The modules are imported when an op is first asked for."""

from typing import Any, Final

_PORTABLE: Final = {
    "rms_norm": "layernorm:rms_norm_portable",
    "fused_add_rms_norm": "layernorm:fused_add_rms_norm_portable",
    "gelu_and_mul_sparse": "activation:gelu_and_mul_sparse_portable",
}

_REDUCTIONS: Final = {
    "softmax": "reduction:softmax_portable",
    "log_softmax": "reduction:log_softmax_portable",
    "logsumexp": "reduction:logsumexp_portable",
    "mean": "reduction:mean_portable",
    "sum": "reduction:sum_portable",
    "layer_norm": "layernorm:layer_norm_portable",
}

_PRODUCTS: Final = {
    "linear": "matmul:linear_portable",
    "bmm": "batched_matmul:bmm_portable",
}
"""Products of matrices: each dtype has an order of its own, and ``portable`` is the reference of all of them."""

_SUMS: Final = (
    "ir_core.ops.chain16",
    "ir_core.ops.chain16_narrow",
    "ir_core.ops.chain16_wide",
    "ir_core.ops.fma_chain",
)
_CHAINS: Final = ("ir_core.ops.chunks", "ir_core.ops.matmul", *_SUMS)
_X8: Final = {"batch_invariant": True, "opaque": True, "order": "chain16x8", "sources": _CHAINS}
_ATTENTION: Final = {
    "op": "attention",
    "provider": "portable",
    "impl": "ir_core.ops.scaled_dot_product:attention_portable",
    "batch_invariant": True,
    "opaque": True,
    "sources": (
        "ir_core.ops.attention_arguments",
        "ir_core.ops.tiles64",
        "ir_core.ops.powers",
        "ir_core.ops.elementary",
        *_SUMS,
    ),
}

_POINTWISE: Final = {
    "op": "pointwise",
    "provider": "portable",
    "impl": "ir_core.ops.elementwise:pointwise_portable",
    "batch_invariant": True,
    "opaque": True,
    "sources": ("ir_core.ops.elementary",),
}

PACK: Final[dict[str, Any]] = {
    "api": 1,
    "name": "core",
    "ops": {
        "attention": "ir_core.ops.scaled_dot_product:attention",
        "bmm": "ir_core.ops.batched_matmul:bmm",
        "fused_add_rms_norm": "ir_core.ops.layernorm:fused_add_rms_norm",
        "gelu_and_mul_sparse": "ir_core.ops.activation:gelu_and_mul_sparse",
        "layer_norm": "ir_core.ops.layernorm:layer_norm",
        "linear": "ir_core.ops.matmul:linear",
        "linear_partial": "ir_core.ops.matmul_x8:linear_partial",
        "log_softmax": "ir_core.ops.reduction:log_softmax",
        "logsumexp": "ir_core.ops.reduction:logsumexp",
        "mean": "ir_core.ops.reduction:mean",
        "pointwise": "ir_core.ops.elementwise:pointwise",
        "rms_norm": "ir_core.ops.layernorm:rms_norm",
        "softmax": "ir_core.ops.reduction:softmax",
        "sum": "ir_core.ops.reduction:sum_",
    },
    "implementations": [
        {"op": op, "provider": "portable", "impl": f"ir_core.ops.{place}", "order": "tree"}
        for op, place in _PORTABLE.items()
    ]
    + [
        {
            "op": op,
            "provider": "portable",
            "impl": f"ir_core.ops.{place}",
            "order": "tree",
            "opaque": True,
            "sources": (
                *("ir_core.ops.canonical", "ir_core.ops.elementary"),
                "ir_core.ops.elementary_float64",
            ),
        }
        for op, place in _REDUCTIONS.items()
    ]
    + [
        {
            "op": op,
            "provider": "portable",
            "impl": f"ir_core.ops.{place}",
            "batch_invariant": True,
            "opaque": True,
            "sources": _SUMS,
        }
        for op, place in _PRODUCTS.items()
    ]
    + [
        {
            "op": "linear",
            "provider": "portable_x8",
            "impl": "ir_core.ops.matmul_x8:linear_portable_x8",
            **_X8,
        },
        {
            "op": "linear_partial",
            "provider": "portable",
            "impl": "ir_core.ops.matmul_x8:linear_partial_portable",
            **_X8,
        },
    ]
    + [_ATTENTION, _POINTWISE],
}
