# SPDX-License-Identifier: Apache-2.0
"""The pack: what this distribution offers, as strings. Imports neither torch nor triton nor a kernel."""

from typing import Any, Final

REQUIRES: Final = "sm>=8.0 | cpu,triton_interpreter"
"""bfloat16 arithmetic needs SM 8.0; on a CPU Triton's interpreter runs the same kernels."""

RMS_KERNELS: Final = ("prepared_norm", "rms_kernel", "rms_hold_kernel")

GELU_KERNELS: Final = ("gelu_config", "gelu_kernel", "elementary")

SHARED: Final = (
    *("rms_kernel", "tree", "tile", "rows"),
    *("kernel_spec", "launch_config", "arguments", "launcher", "compat"),
)
"""Modules behind every kernel here: their text is part of each implementation's identity."""


def _implementation(
    op: str, provider: str, module: str, *kernels: str, inplace: bool = False, pair: str | None = None
) -> dict[str, Any]:
    invariant = provider == "triton_batch_invariant"
    name = f"{op}{'_batch_invariant' if invariant else ''}"
    function = f"ir_kernels_triton.{module}:{name}"
    return {
        "op": op,
        "provider": provider,
        "impl": function,
        "functional": f"{function}_functional" if inplace else None,
        "pair": f"ir_kernels_triton.{pair}:{name}_pair" if pair else None,
        "batch_invariant": invariant,
        "inplace": inplace,
        "opaque": True,
        "order": "tree" if invariant else None,
        "requires": REQUIRES,
        "supports_args": f"ir_kernels_triton.predicates:{op}",
        "sources": [
            "ir_core.ops.canonical",
            "ir_core.ops.activation",
            "ir_core.ops.elementary",
            *(f"ir_kernels_triton.{name}" for name in (module, pair, *kernels, *SHARED) if name),
        ],
    }


SM90: Final = "sm>=9.0, sm<10.0"
"""Where tensor cores have the order ``chain16`` (H100, H200). Those of other devices have another, or were not run."""

INTERPRETED: Final = "cpu, triton_interpreter"

PRODUCTS: Final = (
    *("linear", "bmm", "linear_config", "linear_stream_kernel", "linear_tile_kernel", "chain16_dot"),
    *("tree", "kernel_spec", "arguments", "launcher", "compat"),
)
"""Modules behind linear and bmm."""


def _product(
    op: str, provider: str, module: str, function: str, order: str, requires: str, prefers: str | None = None
) -> dict[str, Any]:
    return {
        "op": op,
        "provider": provider,
        "impl": f"ir_kernels_triton.{module}:{function}",
        "batch_invariant": True,
        "inplace": False,
        "opaque": True,
        "order": order,
        "requires": requires,
        "supports_args": f"ir_kernels_triton.predicates:{op}{'' if order == 'chain16' else '_fp32'}",
        "prefers_args": f"ir_kernels_triton.predicates:{prefers}" if prefers else None,
        "sources": [
            *("ir_core.ops.matmul", "ir_core.ops.batched_matmul"),
            *(
                f"ir_kernels_triton.{name}"
                for name in (*PRODUCTS, *(("cublas", "cublas_lt") if prefers else ()))
            ),
        ],
    }


ATTENTION: Final = (
    *("attention", "attention_config", "attention_kernel", "chain16_dot", "elementary"),
    *("tree", "kernel_spec", "arguments", "launcher", "compat"),
)
"""Modules behind attention."""


def _attention(provider: str, predicate: str, order: str, requires: str) -> dict[str, Any]:
    return {
        "op": "attention",
        "provider": provider,
        "impl": "ir_kernels_triton.attention:attention_batch_invariant",
        "batch_invariant": True,
        "inplace": False,
        "opaque": True,
        "order": order,
        "requires": requires,
        "supports_args": f"ir_kernels_triton.predicates:{predicate}",
        "sources": [
            *(f"ir_core.ops.{name}" for name in ("scaled_dot_product", "attention_arguments", "tiles64")),
            *("ir_core.ops.elementary", *(f"ir_kernels_triton.{name}" for name in ATTENTION)),
        ],
    }


REDUCTIONS: Final = ("softmax", "log_softmax", "logsumexp", "sum", "mean", "layer_norm")
"""Ops of ``reductions.py``."""


def _reduction(op: str) -> dict[str, Any]:
    return {
        "op": op,
        "provider": "triton_batch_invariant",
        "impl": f"ir_kernels_triton.reductions:{op}_batch_invariant",
        "batch_invariant": True,
        "inplace": False,
        "opaque": True,
        "order": "tree",
        "requires": REQUIRES,
        "supports_args": f"ir_kernels_triton.predicates:{'layer_norm' if op == 'layer_norm' else 'reduction'}",
        "sources": [
            *("ir_core.ops.canonical", "ir_core.ops.elementary"),
            *(f"ir_kernels_triton.{name}" for name in ("reductions", "reduction_config", "reduction_kernel")),
            *(f"ir_kernels_triton.{name}" for name in ("elementary", *SHARED)),
        ],
    }


SPLIT: Final = (
    *(
        "linear_split",
        "linear_split_config",
        "linear_split_kernel",
        "linear_tile_kernel",
        "linear",
        "chain16_dot",
    ),
    *("tree", "kernel_spec", "arguments", "launcher", "compat"),
)
"""Modules behind linear and linear_partial in the order ``chain16x8``."""


def _split(op: str, provider: str, function: str, wide: bool) -> dict[str, Any]:
    return {
        "op": op,
        "provider": provider,
        "impl": f"ir_kernels_triton.linear_split:{function}",
        "batch_invariant": True,
        "inplace": False,
        "opaque": True,
        "order": "chain16x8",
        "requires": REQUIRES if wide else f"{SM90} | {INTERPRETED}",
        "supports_args": f"ir_kernels_triton.predicates:{op}{'_fp32' if wide else ''}",
        "sources": [
            *("ir_core.ops.chunks", "ir_core.ops.matmul", "ir_core.ops.matmul_x8"),
            *(f"ir_kernels_triton.{name}" for name in SPLIT),
        ],
    }


PACK: Final[dict[str, Any]] = {
    "api": 1,
    "name": "triton",
    "implementations": [
        offer
        for provider in ("triton_batch_invariant", "triton")
        for offer in (
            _implementation("rms_norm", provider, "rms_norm", *RMS_KERNELS, pair="rms_pair"),
            _implementation("fused_add_rms_norm", provider, "rms_norm", *RMS_KERNELS, inplace=True),
            _implementation("gelu_and_mul_sparse", provider, "gelu_and_mul_sparse", *GELU_KERNELS),
        )
    ]
    + [_reduction(op) for op in REDUCTIONS]
    + [
        offer
        for op in ("linear", "bmm")
        for offer in (
            _product(
                op,
                "triton_batch_invariant",
                op,
                f"{op}_batch_invariant",
                "chain16",
                f"{SM90} | {INTERPRETED}",
            ),
            _product(op, "triton_fp32", op, f"{op}_batch_invariant", "fma_chain", REQUIRES),
        )
    ]
    + [_product("linear", "cublas", "cublas", "linear_chain16", "chain16", SM90, prefers="many_rows")]
    + [
        _attention("triton_batch_invariant", "attention", "tiles64", f"{SM90} | {INTERPRETED}"),
        _attention("triton_fp32", "attention_fp32", "tiles64_fma", REQUIRES),
    ]
    + [
        _split("linear", "triton_x8", "linear_x8", False),
        _split("linear", "triton_x8_fp32", "linear_x8", True),
        _split("linear_partial", "triton_batch_invariant", "linear_partial_x8", False),
        _split("linear_partial", "triton_fp32", "linear_partial_x8", True),
    ],
}
