# SPDX-License-Identifier: Apache-2.0
"""Intel and Apple devices, asked of torch, by the few questions that initialise nothing.

torch is imported for that only where such a device can be: on macOS, and where Linux lists a render node of
Intel's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from ir_platform.device import Device, other_device

RENDER_NODES: Final = Path("/sys/class/drm")
INTEL: Final = "0x8086"
"""PCI vendor id."""


def devices() -> list[Device]:
    """``xpu:N`` and ``mps:0``, as torch counts them; names and sizes would initialise the device."""
    found: list[Device] = []
    if has_intel_gpu() and (torch := _torch()) and hasattr(torch, "xpu"):
        for index in range(torch.xpu.device_count()):
            found.append(other_device(f"xpu:{index}", "xpu", "intel"))
    if sys.platform == "darwin" and (torch := _torch()) and torch.backends.mps.is_available():
        found.append(other_device("mps:0", "mps", "apple"))
    return found


def has_intel_gpu(nodes: Path = RENDER_NODES) -> bool:
    """Whether Linux lists a render node of Intel's."""
    for vendor in nodes.glob("renderD*/device/vendor"):
        try:
            if vendor.read_text(encoding="ascii").strip().lower() == INTEL:
                return True
        except OSError:
            continue
    return False


def hip_build() -> bool:
    """Whether the torch of this process was built for ROCm, whose devices it calls cuda. Imports nothing."""
    return bool(getattr(getattr(sys.modules.get("torch"), "version", None), "hip", None))


def cuda_missing_from() -> str | None:
    """The version of a torch already imported that was built without CUDA, else ``None``."""
    version = getattr(sys.modules.get("torch"), "version", None)
    if version is None or version.cuda or getattr(version, "hip", None):
        return None
    return str(version.__version__)


def current_cuda_index() -> int:
    """The device that a bare ``"cuda"`` means: torch's current one once it is initialised, else the first."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_device())
    return 0


def _torch() -> ModuleType | None:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None
