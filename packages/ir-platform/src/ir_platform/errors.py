# SPDX-License-Identifier: Apache-2.0
"""The errors of this package: what happened, why, and what to do next.

None of those that concern the driver stops the stack: ``ir_platform.devices()`` turns them into notes and
answers with the CPU. They are raised by ``ir_platform.detect.query``, which asks the driver and nothing else.
"""

from __future__ import annotations


class PlatformError(Exception):
    """Base of all errors of this package.

    Args:
        what: what happened, naming the thing.
        why: the values that led to it.
        fix: the next step for the reader.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(" ".join(part for part in (what, why, fix) if part))


class DriverError(PlatformError, RuntimeError):
    """NVML gave no answer, for a reason that has no class of its own."""


class DriverNotFoundError(DriverError):
    """There is no NVIDIA driver, it is not loaded, or the container hides it."""


class DriverMismatchError(DriverError):
    """The driver's module and its library, or the driver and nvidia-ml-py, are of different versions."""


class DriverPermissionError(DriverError):
    """This user may not ask the driver."""


class DeviceLostError(DriverError):
    """A device has fallen off the bus, or waits for a reset."""


class OverrideError(PlatformError, ValueError):
    """``IR_TARGET`` or ``IR_BATCH_INVARIANT_MIN_SM`` has a value that names no device and no capability."""


class UnknownDeviceError(PlatformError, LookupError):
    """The program will not see a device of that name."""
