# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls: the function behind the entry point ``vllm.general_plugins``.

vLLM calls it in the front end, in the engine core and in every worker, forked or spawned, once or more. It wraps what
of vLLM is imported already and returns; it imports nothing heavy, asks no device and starts no thread.
"""

from __future__ import annotations

from ir_vllm_adapter import compat, log
from ir_vllm_adapter.attachment import ATTACHED


def register() -> None:
    """Attach to the vLLM of this process. Idempotent.

    Raises:
        Exception: only with IR_STRICT=1; otherwise a failure is one line in the log, and vLLM goes on without us.
    """
    if ATTACHED.registered:
        return
    ATTACHED.registered = True
    log.guarded("attach to vLLM", _attach)


def _attach() -> None:
    host = compat.host()
    if not host.supported:
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
    """Undo :func:`register` and all that followed from it; models built before stay as they are."""
    ATTACHED.undo()
