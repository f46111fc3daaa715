# SPDX-License-Identifier: Apache-2.0
"""What a certificate is about: which device, which software. It counts where all of that is the same."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from importlib_metadata import PackageNotFoundError, version

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.target import Target


@functools.cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def software() -> dict[str, str]:
    """Versions that decide bits."""
    return {
        "torch": torch.__version__,
        "triton": _triton(),
        "cuda": torch.version.cuda or torch.version.hip or "",
    }


def device(target: Target) -> dict[str, Any]:
    """The device as far as it decides bits: two cards of one model are the same device.

    On a CPU the instruction set and the number of threads count: torch chooses kernels by the one and splits
    reductions by the other.
    """
    data: dict[str, Any] = {
        "kind": target.kind,
        "name": target.name,
        "sm": None if target.capability is None else str(target.capability),
        "arch": target.arch,
        **software(),
    }
    if target.kind == "cpu":
        data |= {
            "name": _cpu_model(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "interpreter": "triton_interpreter" in target.features,
        }
    return data


def key(impl: IrOpImpl, target: Target) -> str:
    """Name of the certificate file of an implementation on a device: 16 hexadecimal digits."""
    return key_of(impl.op.name, impl.provider, impl.uuid(), target)


def key_of(op: str, provider: str, uuid: str, target: Target) -> str:
    """The same for code with the digest ``uuid`` that need be no implementation of an op (``evidence.py``)."""
    parts = repr((op, provider, uuid, sorted(device(target).items())))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
