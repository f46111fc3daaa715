# SPDX-License-Identifier: Apache-2.0
"""A worker's life: take over the layers, agree with the other ranks, say what runs, and check that it ran."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ir_vllm_adapter import (
    aten_seam,
    compat,
    counters,
    evidence,
    fusion,
    layer_seam,
    linear_seam,
    log,
    moe_seam,
    parts,
    state,
    status,
)
from ir_vllm_adapter.attachment import ATTACHED


def around_init_device(
    original: Callable[..., Any], *, attach: Callable[[], None], attach_lowering: Callable[[], None]
) -> Callable[..., Any]:
    """WorkerWrapperBase.init_device: the last moment before, and the first after, the worker has its device.

    Args:
        original: vLLM's own.
        attach: wraps what a worker has imported by then.
        attach_lowering: wraps vLLM's lowering pass, for a worker that compiles.
    """

    def init_device(self: Any) -> Any:
        log.guarded("attach to vLLM", attach)
        log.guarded(
            "attach to vLLM's compiler",
            lambda: attach_lowering() if parts.is_compiled(self.vllm_config) else None,
        )
        state.STATE.index = getattr(getattr(self, "worker", None), "local_rank", 0)
        log.guarded("take over the norm layers", layer_seam.install)
        log.guarded("take over the linear layers", linear_seam.install)
        log.guarded("stand behind vLLM's ATen overrides", aten_seam.install)
        log.guarded("switch fusions off", lambda: _settle_fusions(self.vllm_config))
        result = original(self)
        log.guarded("start in the worker", lambda: _start(self))
        return result

    return init_device


def _settle_fusions(vllm_config: Any) -> None:
    fusion.settle(vllm_config.compilation_config.pass_config, chosen_by="the platform")


def _start(wrapper: Any) -> None:
    from ir_core import set_default_torch_wrap
    from ir_vllm_adapter import agreement

    worker = wrapper.worker
    state.STATE.started, state.STATE.index = True, getattr(worker, "local_rank", 0)
    state.STATE.worker = worker
    _vouch()
    # Layers call ir-core eagerly only; graphs go through vLLM's ops or ours. The torch op would cost 2 us a call.
    set_default_torch_wrap(False)
    ATTACHED.on_undo(lambda: set_default_torch_wrap(True))
    _wrap_method(worker, "load_model", after=lambda: _loaded(worker))
    _wrap_method(worker, "compile_or_warm_up_model", before=lambda: _announce(worker), after=_check_warm_up)
    _check_lock()
    agreement.check(_tensor_parallel_group(), lambda: agreement.ballot(state.STATE.index))


def _check_lock() -> None:
    """With IR_LOCK, hold what each op would run against the lock file: a graph calls it without asking ir-core again.

    Raises:
        LockError: it differs.
    """
    from ir_core import current, env, get_op, lock_file
    from ir_core.catalog import op_names
    from ir_vllm_adapter.standing import order, target_here

    if not env.text(env.IR_LOCK) or current().disabled:
        return
    for name in op_names():
        op = get_op(name)
        for provider in order(op, current(), target_here(state.STATE.index))[:1]:
            lock_file.check(op.impls[provider])


def _vouch() -> None:
    """Answer for `native` in batch-invariant mode if vLLM has replaced ATen's reductions by invariant ones."""
    from ir_core import current

    policy = current()
    if policy.batch_invariant and compat.reductions_overridden() and "*" not in policy.vouched:
        ATTACHED.change_policy(lambda p: replace(p, vouched=p.vouched | {"rms_norm", "fused_add_rms_norm"}))


def _tensor_parallel_group() -> Any:
    from vllm.distributed.parallel_state import get_tp_group

    return get_tp_group()


def _wrap_method(
    worker: Any,
    name: str,
    *,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Wrap a method of this one worker object; its class, and other workers, stay as they are."""
    original = getattr(worker, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            log.guarded(f"act before {name}", before)
        result = original(*args, **kwargs)
        if after is not None:
            log.guarded(f"act after {name}", after)
        return result

    setattr(worker, name, wrapped)


def _loaded(worker: Any) -> None:
    """Take the census of the model's norm-like and linear layers."""
    model = worker.model_runner.get_model()
    state.STATE.loaded, state.STATE.layers = True, census(model)
    state.STATE.linears = linear_seam.census(model)
    log.guarded("give the experts their tiles", moe_seam.install)
    state.STATE.compiled = parts.is_compiled(worker.vllm_config)
    if state.STATE.collecting or ATTACHED.layers or status.anything_named():
        state.STATE.parts = parts.census(model, worker.model_runner, worker.vllm_config)


def census(model: Any) -> Counter[str]:
    """Norm-like layers by class name; ours under the name of the vLLM class that they replace."""
    ours = {layer: name for name, layer in ATTACHED.layers.items()}
    found: Counter[str] = Counter()
    for module in model.modules():
        kind = type(module)
        if "Norm" in kind.__name__:
            found[ours.get(kind, kind.__name__)] += 1
    return found


def _announce(worker: Any) -> None:
    """The start table, once an engine; with IR_STRICT=1 the end of the start where a part is not answered for."""
    if getattr(worker, "rank", 0) == 0 and (ATTACHED.layers or status.anything_named()):
        log.info(status.render(status.collect()))
    if log.strict() and not state.STATE.collecting:
        check_evidence()


def check_evidence() -> None:
    """In batch-invariant mode, refuse a model with a part that is refuted on this device or was not checked.

    Raises:
        RefusedError: there is one.
    """
    from ir_core import current
    from ir_vllm_adapter.standing import target_here

    policy = current()
    if policy.batch_invariant and not policy.disabled:
        evidence.require(status.parts(target_here(state.STATE.index)))


def _check_warm_up() -> None:
    if missing():
        _check_at_first_pass()


def missing() -> dict[str, str]:
    """Kinds of layers of the loaded model that should have called ir-core, and of which no call came; with how many.

    A kind is the prefix of the counters of its ops.
    """
    norms = {name: state.STATE.layers[name] for name in ATTACHED.layers if state.STATE.layers[name]}
    linears = {name: count for name, count in state.STATE.linears.items() if name.startswith(linear_seam.OP)}
    kinds = {"norm": (norms, ("rms_norm", "fused_add_rms_norm")), "linear": (linears, (linear_seam.OP,))}
    return {
        kind: ", ".join(f"{count} {name}" for name, count in layers.items())
        for kind, (layers, ops) in kinds.items()
        if layers and not counters.called(ops)
    }


def _check_at_first_pass() -> None:
    """A worker may warm nothing up (eager on a CPU): look again after the first real pass."""
    import sys

    base = sys.modules["vllm.v1.worker.worker_base"].WorkerWrapperBase

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if restore is not None and (not missing() or not _was_empty(args)):
                restore()
                log.guarded("check the first pass", check_calls)
            return result

        return execute_model

    restore = ATTACHED.wrap(base, "execute_model", around)


def _was_empty(args: tuple[Any, ...]) -> bool:
    return bool(args) and not getattr(args[0], "total_num_scheduled_tokens", 1)


def check_calls() -> None:
    """Warn if the model has layers that should have called us, and none did."""
    for kind, layers in missing().items():
        log.warn(
            f"The model has {layers}, and not one call of a {kind} went through ir-core: something replaced them "
            "after ir-vllm-adapter set them up. `python -m ir_vllm_adapter status` shows what was set up."
        )
