# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls: the function behind the entry point ``vllm.general_plugins``.

vLLM calls it in the front end, in the engine core and in every worker, forked or spawned, once or more. It wraps what
of vLLM is imported already and returns; it imports nothing heavy, asks no device and starts no thread.
"""

from __future__ import annotations

from ir_vllm_adapter import compat, log

_registered = False


def register() -> None:
    """Attach to the vLLM of this process. Idempotent.

    Raises:
        Exception: only with IR_STRICT=1; otherwise a failure is one line in the log, and vLLM goes on without us.
    """
    global _registered
    if _registered:
        return
    _registered = True
    log.guarded("attach to vLLM", _attach)


def _attach() -> None:
    host = compat.host()
    if host.behaviour is None:
        log.warn(host.line)
        return
    from ir_core import current

    if current().disabled:
        log.warn("IR_DISABLE is set: ir-vllm-adapter does nothing.")
        return
    if host.line:
        log.info(host.line)
    import vllm.config.kernel  # noqa: F401  imported by vLLM before it calls plug-ins

    from ir_vllm_adapter import hooks

    hooks.attach()


def unregister() -> None:
    """Undo :func:`register`: vLLM's methods, IR and layer classes are its own again. Models built before stay."""
    global _registered
    from ir_vllm_adapter import fusion, hooks, ir_seam, layer_seam

    hooks.undo()
    ir_seam.undo()
    layer_seam.undo()
    fusion.OFF.clear()
    _registered = False
