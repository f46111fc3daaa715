# SPDX-License-Identifier: Apache-2.0
"""The layer seam (all versions): RMSNorm and GemmaRMSNorm through vLLM's own out-of-tree hook.

In eager mode vLLM's RMSNorm bypasses the IR: with VLLM_BATCH_INVARIANT=1 it calls kernels of its own. The classes
made here call ir-core instead, which selects as the IR seam does. In a graph they use vLLM's IR op where there is one,
so that vLLM's passes see what they expect, and ``ir_vllm::<op>`` where there is none.

They are made when they are installed: their base classes are vLLM's, and importing this module must not import it.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from ir_vllm_adapter import compat, graph_ops, log
from ir_vllm_adapter.attachment import ATTACHED
from ir_vllm_adapter.counters import CALLS

LAYERS: Final = {"RMSNorm": "rms_norm", "GemmaRMSNorm": "gemma_rms_norm"}
"""Layer classes that are taken over, and the names under which `custom_ops` switches them."""

_NORM: Final = "_ir_norm_key"  # where a layer keeps the counter of its calls without and with a residual
_ADD: Final = "_ir_add_key"


def wanted() -> bool:
    """Whether the layers should run what ir-core selects: in batch-invariant mode, or when a provider is named."""
    from ir_core import current

    policy = current()
    if policy.disabled:
        return False
    ops = ("rms_norm", "fused_add_rms_norm")
    return any(policy.invariant(op) or policy.for_op(op).named for op in ops) or bool(policy.prefer)


def install() -> None:
    """Take the layers over for models built from now on, unless another plug-in did. Idempotent."""
    if not wanted():
        return
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers import layernorm

    for name, switch in LAYERS.items():
        base = getattr(layernorm, name, None)
        if name in ATTACHED.layers or base is None:
            continue
        there = custom_op.op_registry_oot.get(name)
        if there is not None:
            log.warn(
                f"{name} is already taken over by {there.__module__}.{there.__qualname__}; it is left alone."
            )
            continue
        layer = _rms_norm(base) if name == "RMSNorm" else _gemma_rms_norm(base)
        custom_op.CustomOp.register_oot(name=name)(layer)
        # register_oot names the class after the layer; `custom_ops=["+rms_norm"]` must keep switching it.
        layer.name = switch
        ATTACHED.layers[name] = layer
        ATTACHED.on_undo(functools.partial(_give_back, name, layer))


def _give_back(name: str, layer: type) -> None:
    """Let vLLM build its own class again, for models built from now on."""
    from vllm.model_executor import custom_op

    if custom_op.op_registry_oot.get(name) is layer:
        del custom_op.op_registry_oot[name]


def _rms_norm(base: Any) -> Any:
    """vLLM's RMSNorm with ir-core behind it."""
    import torch

    from ir_core.ops import fused_add_rms_norm, rms_norm

    in_graph = torch.compiler.is_compiling
    graph_norm, graph_add = _graph_calls()
    donate = fused_add_rms_norm.maybe_inplace

    class IrRMSNorm(base):  # type: ignore[misc]
        def _ir_weights(self, residual: Any) -> Any:
            which = "pass_weight" if residual is None else "pass_weight_add"
            return self.weight if getattr(self, which, self.has_weight) else None

        def forward_native(self, x: Any, residual: Any = None) -> Any:
            if not in_graph():
                return self.forward_cuda(x, residual)
            weight, eps, size = self._ir_weights(residual), self.variance_epsilon, self.variance_size_override
            if residual is None:
                return graph_norm(x, weight, eps, size)
            return graph_add(x, residual, weight, eps, size)

        def forward_cuda(self, x: Any, residual: Any = None) -> Any:
            if in_graph():
                return self.forward_native(x, residual)
            weight, eps, size = self._ir_weights(residual), self.variance_epsilon, self.variance_size_override
            if residual is None:
                CALLS[self.__dict__.get(_NORM) or _key(self, _NORM, rms_norm, x, weight, eps, size)] += 1
                return rms_norm(x, weight, eps, size)
            args = (x, residual, weight, eps, size)
            CALLS[self.__dict__.get(_ADD) or _key(self, _ADD, fused_add_rms_norm, *args)] += 1
            return donate(*args)

        forward_hip = forward_xpu = forward_cpu = forward_oot = forward_tpu = forward_cuda

    return _named(IrRMSNorm, base)


def _gemma_rms_norm(base: Any) -> Any:
    """vLLM's GemmaRMSNorm with ir-core behind it: the weight is 1 + w, in float32.

    The sum is made in every call, as vLLM does: weights may be replaced in place while the engine runs.
    """
    import torch

    from ir_core.ops import fused_add_rms_norm, rms_norm

    in_graph = torch.compiler.is_compiling
    graph_norm, graph_add = _graph_calls(donate=False)

    class IrGemmaRMSNorm(base):  # type: ignore[misc]
        def forward_native(self, x: Any, residual: Any = None) -> Any:
            if not in_graph():
                return self.forward_cuda(x, residual)
            weight, eps = self.weight.float() + 1.0, self.variance_epsilon
            if residual is None:
                return graph_norm(x, weight, eps, None)
            return graph_add(x, residual, weight, eps, None)

        def forward_cuda(self, x: Any, residual: Any = None) -> Any:
            if in_graph():
                return self.forward_native(x, residual)
            weight, eps = self.weight.float() + 1.0, self.variance_epsilon
            if residual is None:
                CALLS[self.__dict__.get(_NORM) or _key(self, _NORM, rms_norm, x, weight, eps)] += 1
                return rms_norm(x, weight, eps)
            CALLS[
                self.__dict__.get(_ADD) or _key(self, _ADD, fused_add_rms_norm, x, residual, weight, eps)
            ] += 1
            # Not in place, as in vLLM: Gemma models use the layer's input again.
            return fused_add_rms_norm(x, residual, weight, eps)

        forward_hip = forward_xpu = forward_cpu = forward_oot = forward_tpu = forward_cuda

    return _named(IrGemmaRMSNorm, base)


def _named(layer: Any, base: Any) -> Any:
    layer.__module__, layer.__qualname__ = __name__, layer.__name__
    layer.__doc__ = f"vLLM's {base.__name__}, running what ir-core selects."
    return layer


def _graph_calls(*, donate: bool = True) -> tuple[Any, Any]:
    """What the layers call while a graph is traced: vLLM's IR ops, or ours where vLLM has none."""
    from ir_core.ops import fused_add_rms_norm, rms_norm

    norm: Any = graph_ops.selecting(rms_norm)
    add: Any = graph_ops.selecting(fused_add_rms_norm)
    if compat.ir_present():
        from vllm.ir.op import IrOp

        theirs = IrOp.registry
        norm = theirs.get("rms_norm", norm)
        if (found := theirs.get("fused_add_rms_norm")) is not None:
            add = found.maybe_inplace if donate else found
    return norm, add


def _key(layer: Any, slot: str, op: Any, *args: Any) -> str:
    """The counter of a layer's calls: the provider that ir-core selects for it, asked once a layer and op."""
    key = f"layer:{op.name}/{op.dispatch(*args).provider}"
    layer.__dict__[slot] = key
    return key
