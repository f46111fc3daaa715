# SPDX-License-Identifier: Apache-2.0
"""The parts of a forward pass of the loaded model: every kind of kernel, who runs it, and what is known of it here.

A part is one kind of kernel, run by one piece of code, over all modules that use it. What lies between modules
(residual additions, views, splits) is no part: ``audit`` sees it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from ir_vllm_adapter import code, compat, kinds
from ir_vllm_adapter.attachment import ATTACHED

Verdict: TypeAlias = Literal["certified", "refuted", "not checked", "by construction"]
GRAPH: Final = "Inductor"
FLOWS: Final = ("attention", "linear", "moe", "norm", "activation", "rotary", "embedding", "glue", "graph", "sampler",
                "all-reduce")  # fmt: skip
"""The order of the table: what costs most comes first."""


@dataclass(frozen=True)
class Part:
    """One kind of kernel, as this model and this engine run it.

    Args:
        kind: see ``kinds.Found``; ``sampler``, ``all-reduce`` and ``graph`` (what Inductor makes) beside.
        runs: the kernel by its own name; where ir-core selects, the provider.
        by: ``ir-core`` or ``vLLM``.
        home: the distribution that brings it, with its version.
        count: how many modules of the model use it.
        op: the op of ir-core, where it is one.
        order: the order of the op in which it computes; empty if none is named.
        configuration: everything that decides its bits beside code and device.
        uuid: digest of the code and the configuration: a certificate counts for exactly that.
        verdict, date, detail: the evidence on this device.
    """

    kind: str
    runs: str
    by: Literal["ir-core", "vLLM"]
    home: str
    count: int
    op: str = ""
    order: str = ""
    configuration: dict[str, Any] = field(default_factory=dict)
    uuid: str = ""
    verdict: Verdict = "not checked"
    date: str = ""
    detail: str = ""

    @property
    def name(self) -> str:
        """The part in one word for messages and certificates: ``vllm.attention``, or the op."""
        return self.op or f"vllm.{self.kind}"

    @property
    def answered_for(self) -> bool:
        """Whether batch-invariant mode may rely on it."""
        return self.verdict in ("certified", "by construction")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass
class _Group:
    found: kinds.Found
    count: int = 0
    shapes: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[int, Any] = field(default_factory=dict)


def census(model: Any, runner: Any, vllm_config: Any) -> list[Part]:
    """The parts of a loaded model, without evidence.

    Args:
        model: the module that vLLM's runner calls.
        runner: vLLM's model runner, for its sampler.
        vllm_config: vLLM's configuration.
    """
    compiled = is_compiled(vllm_config)
    groups: dict[tuple[str, str], _Group] = {}
    for found in _found(model):
        # Plain PyTorch in a compiled model is no kernel of its own: Inductor makes one of it and its neighbours.
        if (
            compiled
            and not found.ops
            and found.kind not in ("attention", "linear", "moe")
            and kinds.is_native(found)
        ):
            found = kinds.Found("graph", GRAPH, objects=found.objects, shape={"module": found.runs})
        group = groups.setdefault((found.kind, found.runs), _Group(found))
        group.count += 1
        if found.shape not in group.shapes:
            group.shapes.append(found.shape)
        group.objects.update({id(o): o for o in found.objects})
    setting = _setting(vllm_config)
    if compiled and ("graph", GRAPH) not in groups:  # residual additions and views are always left to it
        groups["graph", GRAPH] = _Group(kinds.Found("graph", GRAPH))
    made = [part for group in groups.values() for part in _parts(group, setting)]
    rest = [*_sampler(runner, setting), *_all_reduce(setting)]
    if not compiled:
        rest.append(_glue(model, setting))
    made += [part if part.op else _with_uuid(part, objects) for part, objects in rest]
    place = {kind: index for index, kind in enumerate(FLOWS)}
    return sorted(made, key=lambda part: (place.get(part.kind, len(FLOWS)), part.runs))


def is_compiled(vllm_config: Any) -> bool:
    """Whether the model runs compiled."""
    mode = vllm_config.compilation_config.mode
    return getattr(mode, "value", mode) not in (0, None)


def _found(model: Any) -> Iterator[kinds.Found]:
    heads = {
        id(head) for name, head in model.named_modules(remove_duplicate=False) if name.endswith("lm_head")
    }
    outer: dict[str, str] = {}
    for name, module in model.named_modules():
        found = kinds.of(module)
        if found is not None:
            outer[name] = found.kind
            if outer.get(name.rpartition(".")[0]) == found.kind:
                continue  # a piece of the module around it, which calls it or its function
        if found is not None:
            yield found
        tied = id(module) in heads and (found is None or found.kind == "embedding")
        if tied and (head := kinds.as_head(module)) is not None:  # an lm_head that is the embedding too
            yield head


def _setting(vllm_config: Any) -> dict[str, Any]:
    """What of the configuration decides bits for every part."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    return {
        "vllm": compat.host().version,
        "batch_invariant": kinds.host_is_invariant(),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "block_size": cache.block_size,
        "tensor_parallel": vllm_config.parallel_config.tensor_parallel_size,
    }


def _parts(group: _Group, setting: dict[str, Any]) -> list[Part]:
    found = group.found
    shapes = sorted(group.shapes, key=lambda shape: json.dumps(shape, sort_keys=True, default=str))
    configuration = {**setting, "shapes": shapes}
    if found.ops:
        return [_ours(found.kind, op, group.count, configuration) for op in found.ops]
    part = Part(found.kind, found.runs, "vLLM", _home(group), group.count, configuration=configuration)
    return [_with_uuid(part, tuple(group.objects.values()))]


def _home(group: _Group) -> str:
    from ir_core.distributions import of_module

    if group.found.kind == "graph":
        import torch

        return f"torch {torch.__version__}"
    for each in group.found.objects:
        top = str(each.__module__).partition(".")[0]
        if top not in ("vllm", "functools"):
            name, version = of_module(str(each.__module__))
            return f"{name} {version}".strip()
    return f"vLLM {compat.host().version}"


def _ours(kind: str, name: str, count: int, configuration: dict[str, Any]) -> Part:
    from ir_core import current, get_op
    from ir_vllm_adapter import state
    from ir_vllm_adapter.standing import order, target_here

    op = get_op(name)
    provider = next(iter(order(op, current(), target_here(state.STATE.index))), "")
    if not provider:
        return Part(kind, "nothing", "ir-core", "", count, name, configuration=configuration)
    impl = op.impls[provider]
    home = f"{impl.distribution} {impl.version}"
    return Part(kind, provider, "ir-core", home, count, name, impl.order or "", configuration, impl.uuid())


def _with_uuid(part: Part, objects: tuple[Any, ...]) -> Part:
    from dataclasses import replace

    text = json.dumps([part.kind, part.runs, part.configuration], sort_keys=True, default=str)
    digest = hashlib.sha256(f"{text}\n{code.digest(part.kind, objects)}".encode()).hexdigest()
    return replace(part, uuid=digest)


def _sampler(runner: Any, setting: dict[str, Any]) -> Iterator[tuple[Part, tuple[Any, ...]]]:
    """Log-probabilities, and the choice of a token where it is drawn."""
    sampler = getattr(runner, "sampler", None)
    if sampler is None:  # not the last pipeline stage, or a model that is no generator
        return
    second = ".v1.worker.gpu." in type(sampler).__module__  # the runner that samples with Triton kernels
    taken = ATTACHED.takeovers.get("log_softmax")
    if second:
        runs = "compute_token_logprobs"
    elif taken is not None and taken.runs:
        yield _ours("sampler", "log_softmax", 1, setting), ()
        return
    else:
        ours = kinds.host_is_invariant() and compat.reductions_overridden() and setting_is_cuda()
        runs = "log_softmax of batch_invariant" if ours else "aten.log_softmax"
    home = f"vLLM {compat.host().version}"
    configuration = {
        **setting,
        "sampler": type(sampler).__qualname__,
        "mode": str(getattr(sampler, "logprobs_mode", "")),
    }
    yield Part("sampler", runs, "vLLM", home, 1, configuration=configuration), (type(sampler),)


def _glue(model: Any, setting: dict[str, Any]) -> tuple[Part, tuple[Any, ...]]:
    """What a model that is not compiled computes between its modules, as torch operations."""
    import torch

    runs = f"torch operations of {type(model).__name__}"
    configuration = {**setting, "hidden_size": getattr(getattr(model, "config", None), "hidden_size", None)}
    return Part("glue", runs, "vLLM", f"torch {torch.__version__}", 1, configuration=configuration), (
        type(model),
    )


def setting_is_cuda() -> bool:
    """Whether vLLM's platform here is CUDA or ROCm."""
    import sys

    platforms = sys.modules.get("vllm.platforms")
    return platforms is not None and bool(platforms.current_platform.is_cuda_alike())


def _all_reduce(setting: dict[str, Any]) -> Iterator[tuple[Part, tuple[Any, ...]]]:
    """The sum over tensor-parallel ranks; a lone rank has none."""
    import sys

    state = sys.modules.get("vllm.distributed.parallel_state")
    if state is None or setting["tensor_parallel"] < 2:
        return
    group = state.get_tp_group()
    communicator = getattr(group, "device_communicator", None)
    label = type(communicator).__name__ if communicator is not None else "torch.distributed"
    part = Part(
        "all-reduce", f"{label}.all_reduce", "vLLM", f"vLLM {setting['vllm']}", 1, configuration=dict(setting)
    )
    yield part, (() if communicator is None else (type(communicator),))
