# SPDX-License-Identifier: Apache-2.0
"""Where the adapter speaks: vLLM's log while vLLM is the host, and a record of every line for `status`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Final

LINES: Final[list[str]] = []
"""Every warning given in this process, once each, in order."""


def logger() -> logging.Logger:
    """A child of vLLM's logger where vLLM has set one up: its handlers and levels are what users configured."""
    return logging.getLogger("vllm.ir_vllm_adapter" if "vllm.logger" in sys.modules else "ir_vllm_adapter")


def info(text: str) -> None:
    """Log at INFO."""
    logger().info("%s", text)


def warn(text: str) -> None:
    """Log at WARNING and keep the line; the same line is given once a process."""
    if text not in LINES:
        LINES.append(text)
        logger().warning("%s", text)


def strict() -> bool:
    """Whether IR_STRICT asks that problems end the process. Works where ir-core itself is what is broken."""
    return os.environ.get("IR_STRICT", "").strip().lower() in ("1", "true", "yes", "on")


def guarded(what: str, action: Callable[[], None]) -> None:
    """Run ``action``; a failure becomes one line, unless IR_STRICT=1: the host goes on without us.

    Raises:
        AgreementError, LockError: always passed on; ranks that disagree, and a broken lock, must not start.
        Exception: whatever ``action`` raised, with IR_STRICT=1.
    """
    try:
        action()
    except Exception as error:
        if strict() or _is_fatal(error):
            raise
        first = str(error).partition("\n")[0]
        warn(f"ir-vllm-adapter could not {what}: {type(error).__name__}: {first}")
        logger().debug("ir-vllm-adapter could not %s", what, exc_info=True)


def _is_fatal(error: Exception) -> bool:
    from ir_vllm_adapter.errors import AgreementError

    core = sys.modules.get("ir_core.errors")  # it may be what could not be imported
    return isinstance(error, AgreementError) or (core is not None and isinstance(error, core.LockError))
