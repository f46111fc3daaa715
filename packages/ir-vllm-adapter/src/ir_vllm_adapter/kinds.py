# SPDX-License-Identifier: Apache-2.0
"""What kind of kernel a module of vLLM runs, and which one: asked of the module as it was built.

vLLM's classes are told apart by their names and those of their bases: a class has moved between releases more often
than it was renamed, and this module must not import vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ir_vllm_adapter.attachment import ATTACHED

ELEMENT_WISE: Final = ("activation", "rotary", "embedding")
"""Kinds whose every output element is a function of a few inputs of its own row: there is no sum to regroup."""
NORM_OPS: Final = ("rms_norm", "fused_add_rms_norm")
"""What a norm layer that we took over calls, without and with a residual."""
REDUCING_ACTIVATIONS: Final = frozenset({"GeluAndMulSparse", "XIELU"})
ACTIVATIONS: Final = "vllm.model_executor.layers.activation"

CLAIMS: Final[dict[str, Callable[[Any], str | None]]] = {}
"""By kind, a function that names the op of ir-core which a module runs, or answers ``None``. A seam that takes modules
over without replacing their classes enters itself here."""


@dataclass(frozen=True)
class Found:
    """What a module runs.

    Args:
        kind: ``norm``, ``linear``, ``attention``, ``moe``, ``activation``, ``rotary``, ``embedding``, or ``other``.
        runs: the kernel or the function, by vLLM's own name.
        ops: the ops of ir-core that it calls, where ir-core selects what runs.
        objects: classes and functions whose code decides the bits.
        shape: what decides it beside: sizes, windows, versions of a library.
    """

    kind: str
    runs: str
    ops: tuple[str, ...] = ()
    objects: tuple[Any, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)


INSIDE: Final = frozenset({"RoutedExperts"})
"""Classes that hold weights and are called by the module around them, not as modules."""


def of(module: Any) -> Found | None:
    """What a module runs; ``None`` for a container, which has no kernel of its own."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if names & INSIDE:
        return None
    for kind, ask in _KINDS.items():
        if (found := ask(module, names)) is not None:
            return _claimed(kind, module, found)
    has_own = any(True for _ in module.parameters(recurse=False))
    if has_own or "CustomOp" in names:
        return _claimed("other", module, _custom_op("other", module))
    return None


def _claimed(kind: str, module: Any, found: Found) -> Found:
    op = CLAIMS[kind](module) if kind in CLAIMS else None
    return found if op is None else Found(kind, op, (op,), shape=found.shape)


def _norm(module: Any, names: set[str]) -> Found | None:
    if "Norm" not in type(module).__name__:
        return None
    if type(module) in ATTACHED.layers.values():
        return Found("norm", "rms_norm", NORM_OPS, shape=_norm_shape(module))
    return _custom_op("norm", module, _norm_shape(module))


def _norm_shape(module: Any) -> dict[str, Any]:
    weight = getattr(module, "weight", None)
    return {} if weight is None else {"row": weight.shape[-1]}


def _linear(module: Any, names: set[str]) -> Found | None:
    return linear(module) if names & {"LinearBase", "ParallelLMHead"} else None


def as_head(module: Any) -> Found | None:
    """What multiplies where an embedding is used as lm_head."""
    found = linear(module)
    return None if found is None else _claimed("linear", module, found)


def linear(module: Any) -> Found | None:
    """What multiplies for a linear layer, or for an embedding that is used as one, if no seam claims it."""
    method = getattr(module, "quant_method", None)
    if method is None:
        return None
    run = linear_function(method)
    weight = getattr(module, "weight", None)
    shape: dict[str, Any] = {"class": type(method).__name__}
    if weight is not None:
        shape |= {
            "N": weight.shape[0],
            "K": weight.shape[-1],
            "bias": getattr(module, "bias", None) is not None,
        }
    label = type(method).__name__ if run is None else run.__name__
    return Found("linear", label, objects=(type(method), *((run,) if run else ())), shape=shape)


def head(model: Any) -> Found | None:
    """What multiplies for a model's lm_head, which vLLM calls through its ``LogitsProcessor``."""
    for name, module in model.named_modules(remove_duplicate=False):
        if name.rpartition(".")[2] == "lm_head":
            return as_head(module)
    return None


def linear_function(method: Any) -> Callable[..., Any] | None:
    """The function that multiplies for a linear layer without quantisation; ``None`` for another layer."""
    import sys

    if type(method).__name__ not in ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"):
        return None
    home = sys.modules[type(method).__module__]
    platform = sys.modules["vllm.platforms"].current_platform
    own = getattr(home, "linear_batch_invariant", None)
    if own is not None and host_is_invariant() and (platform.is_cuda_alike() or platform.is_xpu()):
        return own  # type: ignore[no-any-return]
    run = getattr(method, "_gemm_impl", None)
    if run is None:
        run = sys.modules["vllm.model_executor.layers.utils"].dispatch_unquantized_gemm()
    return getattr(run, "func", run)  # type: ignore[no-any-return]


def host_is_invariant() -> bool:
    """Whether vLLM itself is in batch-invariant mode, as it reads the variable."""
    import sys

    return bool(getattr(sys.modules.get("vllm.envs"), "VLLM_BATCH_INVARIANT", False))


def _attention(module: Any, names: set[str]) -> Found | None:
    impl = getattr(module, "impl", None)
    if impl is None or not (hasattr(module, "attn_backend") or "Attention" in type(module).__name__):
        return None
    backend = getattr(module, "attn_backend", None)
    label = backend.get_name() if backend is not None else type(impl).__name__
    version = getattr(impl, "vllm_flash_attn_version", None)
    shape: dict[str, Any] = {"impl": type(impl).__name__}
    for name in (
        "num_heads",
        "num_kv_heads",
        "head_size",
        "sliding_window",
        "kv_cache_dtype",
        "logits_soft_cap",
    ):
        shape[name] = getattr(impl, name, None)
    if version is not None:
        label, shape["version"] = f"{label} (FA{version})", version
    return Found("attention", label, objects=(type(impl), *((backend,) if backend else ())), shape=shape)


def _moe(module: Any, names: set[str]) -> Found | None:
    if not names & {"FusedMoE", "MoERunner", "MoERunnerInterface"}:
        return None
    method = getattr(module, "quant_method", None) or getattr(module, "_quant_method", None)
    kernel = getattr(method, "moe_kernel", None) or getattr(method, "kernel", None)
    experts = getattr(kernel, "fused_experts", None)
    label = type(experts if experts is not None else method if method is not None else module).__name__
    shape: dict[str, Any] = {"method": type(method).__name__}
    config = getattr(module, "moe_config", None)
    for name in ("num_experts", "experts_per_token", "hidden_dim", "intermediate_size_per_partition"):
        if isinstance(value := getattr(config, name, None), int):
            shape[name] = value
    return Found(
        "moe", label, objects=tuple(type(o) for o in (module, method, experts) if o is not None), shape=shape
    )


def _rotary(module: Any, names: set[str]) -> Found | None:
    if not names & {"RotaryEmbedding", "RotaryEmbeddingBase", "ApplyRotaryEmb"}:
        return None
    return _custom_op("rotary", module)


def _activation(module: Any, names: set[str]) -> Found | None:
    kind = type(module)
    if kind.__module__ != ACTIVATIONS or kind.__name__ == "ScaledActivation":
        return None
    return _custom_op("activation", module)


def _embedding(module: Any, names: set[str]) -> Found | None:
    if not names & {"VocabParallelEmbedding", "Embedding"}:
        return None
    return Found("embedding", "F.embedding", objects=(type(module),), shape={"class": type(module).__name__})


def _custom_op(kind: str, module: Any, shape: dict[str, Any] | None = None) -> Found:
    """A module that vLLM dispatches by platform: which of its forms was chosen when it was built."""
    method = getattr(module, "_forward_method", None)
    name = getattr(method, "__name__", "forward")
    cls = type(module)
    if name == "forward_oot" and "forward_oot" not in vars(cls) and not hasattr(cls, "_ir_weights"):
        name = "forward_native"  # what vLLM's base class does there
    return Found(kind, f"{cls.__name__}.{name}", objects=(cls,), shape=dict(shape or {}))


def is_native(found: Found) -> bool:
    """Whether it is plain PyTorch, which a compiled model hands to Inductor."""
    return found.runs.endswith((".forward_native", ".forward"))


_KINDS: Final[dict[str, Callable[[Any, set[str]], Found | None]]] = {
    "norm": _norm,
    "moe": _moe,
    "attention": _attention,
    "linear": _linear,
    "rotary": _rotary,
    "activation": _activation,
    "embedding": _embedding,
}
