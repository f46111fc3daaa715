# SPDX-License-Identifier: Apache-2.0
"""The CPU, which is always there."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from ir_platform import env
from ir_platform.device import Device

CPUINFO: Final = Path("/proc/cpuinfo")


def device(*, override: str | None = None, notes: tuple[str, ...] = ()) -> Device:
    """``cpu``; it has the feature ``triton_interpreter`` when Triton kernels run in its interpreter.

    Args:
        override: ``"IR_TARGET=cpu"`` when the user asked for the CPU alone.
        notes: what concerns no single device: why a driver gave no answer, what a variable hides.
    """
    return Device(
        device="cpu",
        kind="cpu",
        name=_name(),
        arch=platform.machine() or None,
        features=("triton_interpreter",) if env.interpreted() else (),
        batch_invariant=True,
        batch_invariant_reason="batch-invariant kernels are supported on every CPU",
        override=override,
        notes=notes,
    )


def _name() -> str:
    """The model's name on Linux; what Python knows elsewhere."""
    try:
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor()
