# SPDX-License-Identifier: Apache-2.0
"""The points of vLLM that are wrapped: all of them, in one place; ``attachment.py`` takes them back.

=====================================================  ===================================================
``KernelConfig.set_platform_defaults``                 front end: providers, order of the lists, fusions
``IrOpPriorityConfig.set_default`` / ``set_priority``  worker start (0.26 on) / every forward pass (0.20)
``IrOp.set_default`` / ``set_priority``                any list that reaches an op
``WorkerWrapperBase.init_device``                      a worker's life (``worker.py``)
``VllmIRLoweringPass.__call__``                        a compiled worker: neighbouring norms (``pairing.py``)
``VllmConfig._uses_breakable_cudagraph_for_...``       front end (0.32 on): compiled or not (``graph_mode.py``)
=====================================================  ===================================================

A module of vLLM that is not imported yet is left alone: the plug-in function takes milliseconds. The front end's hook
runs before anything that needs the others, and attaches them then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from ir_vllm_adapter import compat, fusion, graph_mode, ir_seam, log, pairing, worker
from ir_vllm_adapter.attachment import ATTACHED

CONFIG: Final = "vllm.config.kernel"
WHOLE_CONFIG: Final = "vllm.config.vllm"
IR: Final = "vllm.ir.op"
WORKER: Final = "vllm.v1.worker.worker_base"
LOWERING: Final = "vllm.compilation.passes.ir.lowering_pass"


def attach() -> None:
    """Wrap what is imported now. Called by the plug-in, and again by the front end's hook."""
    if module := _imported(CONFIG):
        ATTACHED.wrap(module.KernelConfig, "set_platform_defaults", _settling)
        if lists := getattr(module, "IrOpPriorityConfig", None):
            ATTACHED.wrap(lists, "set_default", _adopting)
            ATTACHED.wrap(lists, "set_priority", _adopting)
    if module := _imported(WHOLE_CONFIG):
        ATTACHED.wrap(module.VllmConfig, graph_mode.CHOICE, graph_mode.around)
    if module := _imported(IR):
        ATTACHED.wrap(module.IrOp, "set_default", _guarding)
        ATTACHED.wrap(module.IrOp, "set_priority", _guarding)
    if module := _imported(WORKER):
        ATTACHED.wrap(module.WorkerWrapperBase, "init_device", _starting)


def attach_all() -> None:
    """Import what the hooks need and wrap it: vLLM is about to do the same."""
    if compat.ir_present():
        _import(IR)
        log.guarded("offer its providers to vLLM's IR", ir_seam.prepare)
    _import(WORKER)
    attach()


def attach_lowering() -> None:
    """Wrap vLLM's lowering pass; only a worker that compiles imports it."""
    if compat.ir_present():
        _import(LOWERING)
        if module := _imported(LOWERING):
            ATTACHED.wrap(module.VllmIRLoweringPass, "__call__", pairing.around_lowering)


def _imported(name: str) -> Any:
    return sys.modules.get(name)


def _import(name: str) -> None:
    def action() -> None:
        importlib.import_module(name)

    log.guarded(f"import {name}", action)


def _settling(original: Callable[..., Any]) -> Callable[..., Any]:
    """KernelConfig.set_platform_defaults: after vLLM has appended its defaults, and before it derives fusions."""

    def set_platform_defaults(self: Any, vllm_config: Any) -> Any:
        log.guarded("attach to vLLM", attach_all)
        lists = getattr(self, "ir_op_priority", None)
        named = (
            {} if lists is None else {n: list(getattr(lists, n) or ()) for n in ir_seam._list_names(lists)}
        )
        result = original(self, vllm_config)
        if lists is not None and compat.ir_present():
            log.guarded(
                "order vLLM's IR priorities", lambda: ir_seam.settle_lists(self.ir_op_priority, named)
            )
        pass_config = vllm_config.compilation_config.pass_config
        log.guarded("switch fusions off", lambda: fusion.settle(pass_config))
        return result

    return set_platform_defaults


def _adopting(original: Callable[..., Any]) -> Callable[..., Any]:
    """IrOpPriorityConfig.set_default and .set_priority: ir-core follows the lists that vLLM installs."""

    def install(self: Any) -> Any:
        log.guarded("attach to vLLM", attach_all)
        log.guarded("follow vLLM's IR priorities", lambda: ir_seam.adopt(self))
        return original(self)

    return install


def _guarding(original: Callable[..., Any]) -> Callable[..., Any]:
    """IrOp.set_default and .set_priority: what batch-invariant mode does not allow never enters an op."""

    def install(self: Any, priority: list[str]) -> Any:
        return original(self, ir_seam.guard(self.name, priority))

    return install


def _starting(original: Callable[..., Any]) -> Callable[..., Any]:
    """WorkerWrapperBase.init_device: a worker's life begins."""
    return worker.around_init_device(original, attach=attach_all, attach_lowering=attach_lowering)
