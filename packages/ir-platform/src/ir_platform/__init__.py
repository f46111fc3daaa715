# SPDX-License-Identifier: Apache-2.0
"""What device is this: SM capability and features of every visible device, without creating a CUDA context.

>>> import ir_platform
>>> [device.device for device in ir_platform.devices()][-1]
'cpu'
"""

from ir_platform.device import Device
from ir_platform.errors import (
    DeviceLostError,
    DriverError,
    DriverMismatchError,
    DriverNotFoundError,
    DriverPermissionError,
    OverrideError,
    PlatformError,
    UnknownDeviceError,
)
from ir_platform.provider import PLATFORM_API, describe_devices, devices, notes, refresh, target
from ir_platform.sm import MIN_BATCH_INVARIANT_SM

__all__ = [
    "MIN_BATCH_INVARIANT_SM",
    "PLATFORM_API",
    "Device",
    "DeviceLostError",
    "DriverError",
    "DriverMismatchError",
    "DriverNotFoundError",
    "DriverPermissionError",
    "OverrideError",
    "PlatformError",
    "UnknownDeviceError",
    "describe_devices",
    "devices",
    "notes",
    "refresh",
    "target",
]
