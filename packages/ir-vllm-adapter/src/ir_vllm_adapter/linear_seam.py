# SPDX-License-Identifier: Apache-2.0
"""The linear seam (all versions): every unquantised linear layer and lm_head runs ir-core's ``linear``.

==========================================  ====================================================================
``UnquantizedLinearMethod.apply``           every linear layer without quantisation, tensor-parallel shards too
``UnquantizedEmbeddingMethod.apply``        lm_head, also tied to the embedding
``utils.default_unquantized_gemm``          what calls vLLM's product without a layer (routers, transforms)
==========================================  ====================================================================

The first two are where vLLM itself turns to its batch-invariant product, and the outermost points that every version
has: LoRA and the model-specific methods derived from them end there as well. Weights stay as vLLM keeps them. Called
eagerly, ``linear`` selects by the facts of the call; a graph holds ``ir_vllm::linear``, which selects at the call, so
that a graph from a cache is never stale. Either way it is opaque: a tile is chosen by the rows of the call, and nothing
is frozen when a graph is traced.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from ir_vllm_adapter import graph_ops, kinds, takeover
from ir_vllm_adapter.attachment import ATTACHED, is_wrapped
from ir_vllm_adapter.counters import CALLS

OP: Final = "linear"
LINEAR: Final = "vllm.model_executor.layers.linear"
EMBEDDING: Final = "vllm.model_executor.layers.vocab_parallel_embedding"
UTILS: Final = "vllm.model_executor.layers.utils"
METHODS: Final = ((LINEAR, "UnquantizedLinearMethod"), (EMBEDDING, "UnquantizedEmbeddingMethod"))

_KEY: Final = "_ir_linear_key"  # where a layer keeps the counter of its calls


def decision() -> takeover.Takeover:
    """Which dtypes of ``linear`` are taken over on this device; nothing is changed."""
    import torch

    from ir_core.ops import linear

    if not takeover.wanted(OP):
        return takeover.Takeover(OP, ())
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    samples = [(torch.empty(1, 64, dtype=d), torch.empty(8, 64, dtype=d), None) for d in dtypes]
    return takeover.decide(linear, samples)


def install() -> None:
    """Take the product over, for layers built before and after. Idempotent."""
    if OP in ATTACHED.takeovers or not takeover.wanted(OP):
        return
    from vllm.model_executor.layers import linear as _linear  # noqa: F401
    from vllm.model_executor.layers import vocab_parallel_embedding as _embedding  # noqa: F401
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return  # there vLLM packs the weights for kernels of its own, and has no batch-invariant mode
    found = decision()
    seams: list[str] = []
    if found.runs:
        for module, name in METHODS:
            method = getattr(sys.modules[module], name, None)
            if method is not None and ATTACHED.wrap(method, "apply", functools.partial(_apply, found)):
                seams.append(f"{module}.{name}.apply")
        if ATTACHED.wrap(sys.modules[UTILS], "default_unquantized_gemm", functools.partial(_gemm, found)):
            seams.append(f"{UTILS}.default_unquantized_gemm")
    ATTACHED.takeovers[OP] = found.at(*seams)
    if seams:
        kinds.CLAIMS[OP] = _claim
        ATTACHED.on_undo(functools.partial(kinds.CLAIMS.pop, OP, None))


def _claim(module: Any) -> str | None:
    """``linear`` where a module's product is ours: what the table of parts shows."""
    found = ATTACHED.takeovers.get(OP)
    ours = is_wrapped(getattr(type(getattr(module, "quant_method", None)), "apply", None))
    return OP if found is not None and ours and _dtype(module) in found.runs else None


def _dtype(module: Any) -> str:
    return str(getattr(getattr(module, "weight", None), "dtype", "")).removeprefix("torch.")


def _apply(found: takeover.Takeover, original: Callable[..., Any]) -> Callable[..., Any]:
    """``apply(self, layer, x, bias)`` of a quantisation method that quantises nothing."""
    run, taken = _call(), takeover.dtypes_of(found)

    def apply(self: Any, layer: Any, x: Any, bias: Any = None) -> Any:
        if layer.weight.dtype in taken:
            return run(layer, x, layer.weight, bias)
        return original(self, layer, x, bias)

    return apply


def _gemm(found: takeover.Takeover, original: Callable[..., Any]) -> Callable[..., Any]:
    """``default_unquantized_gemm(layer, x, weight, bias)``."""
    run, taken = _call(), takeover.dtypes_of(found)

    def default_unquantized_gemm(layer: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        if weight.dtype in taken and weight.dim() == 2 and x.dtype == weight.dtype:
            return run(layer, x, weight, bias)
        return original(layer, x, weight, bias)

    return default_unquantized_gemm


def _call() -> Callable[..., Any]:
    """``run(layer, x, weight, bias)``: counted, and one opaque node while a graph is traced."""
    import torch

    from ir_core.ops import linear

    in_graph = torch.compiler.is_compiling
    graph_linear = graph_ops.selecting(linear)

    def run(layer: Any, x: Any, weight: Any, bias: Any) -> Any:
        if in_graph():
            return graph_linear(x, weight, bias)
        CALLS[layer.__dict__.get(_KEY) or _key(layer, x, weight, bias)] += 1
        return linear(x, weight, bias)

    return run


def _key(layer: Any, x: Any, weight: Any, bias: Any) -> str:
    """The counter of a layer's calls: the provider that ir-core selects for it, asked once a layer."""
    from ir_core.ops import linear

    key = f"layer:{OP}/{linear.dispatch(x, weight, bias).provider}"
    layer.__dict__[_KEY] = key
    return key


def census(model: Any) -> Counter[str]:
    """Linear layers of a model: ours as ``linear/<dtype>``, others by the class of what computes them.

    A layer counts where it has a quantisation method with ``apply`` that multiplies, or is torch's own; the experts of
    a mixture are none.
    """
    import torch

    layers = sys.modules[LINEAR]
    heads = sys.modules[EMBEDDING]
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, (layers.LinearBase, heads.ParallelLMHead)):
            ours = _claim(module) is not None
            found[f"{OP}/{_dtype(module)}" if ours else type(module.quant_method).__name__] += 1
        elif isinstance(module, torch.nn.Linear):
            found["torch.nn.Linear"] += 1
    return found
