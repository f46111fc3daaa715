# SPDX-License-Identifier: Apache-2.0
"""NVML's error codes as errors that say what to do."""

from __future__ import annotations

from typing import Any, Final

from ir_platform import errors

_NOT_FOUND: Final = (
    "Install the driver of your NVIDIA card, or give the container the driver's utilities"
    " (NVIDIA_DRIVER_CAPABILITIES=compute,utility). Without an NVIDIA card, nothing is missing."
)
_TABLE: Final[dict[str, tuple[type[errors.DriverError], str, str]]] = {
    "LIBRARY_NOT_FOUND": (
        errors.DriverNotFoundError,
        "No NVIDIA driver library (libnvidia-ml) was found.",
        _NOT_FOUND,
    ),
    "DRIVER_NOT_LOADED": (
        errors.DriverNotFoundError,
        "The NVIDIA driver is not loaded.",
        _NOT_FOUND,
    ),
    "LIB_RM_VERSION_MISMATCH": (
        errors.DriverMismatchError,
        "The NVIDIA driver's kernel module and its library are of different versions.",
        "After an upgrade, reboot or reload the module; restart containers that mount the library.",
    ),
    "FUNCTION_NOT_FOUND": (
        errors.DriverMismatchError,
        "The NVIDIA driver is older than nvidia-ml-py.",
        "Install a newer driver, or an older nvidia-ml-py.",
    ),
    "ARGUMENT_VERSION_MISMATCH": (
        errors.DriverMismatchError,
        "The NVIDIA driver and nvidia-ml-py disagree on an argument.",
        "Install the nvidia-ml-py of the driver's release.",
    ),
    "NO_PERMISSION": (
        errors.DriverPermissionError,
        "This user may not ask the NVIDIA driver.",
        "Allow reading and writing /dev/nvidia*; in a container, by its device rules.",
    ),
    "GPU_IS_LOST": (
        errors.DeviceLostError,
        "It has fallen off the bus.",
        "Look for Xid in the kernel's log, and reboot; until then name the other cards by UUID.",
    ),
    "RESET_REQUIRED": (
        errors.DeviceLostError,
        "It waits for a reset.",
        "Reset it (nvidia-smi --gpu-reset), or reboot.",
    ),
}
"""Code without its prefix: class, what happened, what to do."""

_MISSING: Final = ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NOT_FOUND", "INVALID_ARGUMENT", "NO_PERMISSION")


def translate(nvml: Any, error: Any, function: str) -> errors.DriverError:
    """Our error for an ``NVMLError`` that ``function`` raised."""
    for code, (kind, what, fix) in _TABLE.items():
        if getattr(nvml, f"NVML_ERROR_{code}", None) == error.value:
            return kind(what, why=f"{function} said: {str(error).rstrip('.')}.", fix=fix)
    return errors.DriverError(
        "The NVIDIA driver gave no answer.",
        why=f"{function} said: {str(error).rstrip('.')}.",
        fix="Compare with what nvidia-smi says.",
    )


def missing(nvml: Any) -> frozenset[int]:
    """The codes by which older drivers and smaller cards say that they have no answer."""
    return frozenset(getattr(nvml, f"NVML_ERROR_{code}") for code in _MISSING)
