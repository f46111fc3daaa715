# SPDX-License-Identifier: Apache-2.0
"""``IR_TARGET``: the user says what the device is, for cross-compilation and for work without one.

It takes ``sm90``, ``9.0`` or ``cuda:sm90`` (a CUDA device of that SM), ``gfx942`` or ``rocm:gfx942``,
``xpu``, ``mps``, and ``cpu`` (no accelerator). What it names replaces every accelerator; the CPU stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ir_platform import env, sm
from ir_platform.device import Device, cuda_device, other_device
from ir_platform.env import IR_TARGET
from ir_platform.errors import OverrideError

_GFX: Final = re.compile(r"gfx[0-9]{1,2}[0-9a-f]{2}")
_VENDORS: Final = {"rocm": "amd", "xpu": "intel", "mps": "apple"}
_NAMES: Final = {"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0", "mps": "mps:0"}
"""torch's name for the first device of a kind; ROCm builds of torch call theirs cuda."""


@dataclass(frozen=True, slots=True)
class Override:
    """What ``IR_TARGET`` says.

    Args:
        kind: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"xpu"`` or ``"mps"``.
        capability: of kind cuda.
        arch: of kind rocm.
        text: ``"IR_TARGET=sm90"``, shown wherever the target is shown.
    """

    kind: str
    capability: sm.SM | None
    arch: str | None
    text: str


def override() -> Override | None:
    """Read ``IR_TARGET``; unset and empty say nothing.

    Raises:
        OverrideError: the value names no target.
    """
    value = env.text(IR_TARGET)
    if not value:
        return None
    text, lowered = f"{IR_TARGET}={value}", value.lower()
    if lowered in ("cpu", "xpu", "mps"):
        return Override(lowered, None, None, text)
    kind, colon, what = lowered.rpartition(":")
    capability = sm.parse_sm(what)
    if capability and (kind, colon) in (("", ""), ("cuda", ":")):
        return Override("cuda", capability, None, text)
    if _GFX.fullmatch(what) and (kind, colon) in (("", ""), ("rocm", ":")):
        return Override("rocm", None, what, text)
    raise OverrideError(
        f"{text} names no target.",
        why="It takes sm90, 9.0, cuda:sm90, gfx942, xpu, mps or cpu.",
        fix="Correct it, or unset it to use the devices that are there.",
    )


def apply(what: Override, real: Sequence[Device]) -> list[Device]:
    """The accelerators under an override: the real ones of its kind, changed, or one that is made up."""
    if what.kind == "cpu":
        return []
    alike = [device for device in real if device.kind == what.kind]
    return [_pretend(what, device) for device in alike] or [_made_up(what)]


def _pretend(what: Override, real: Device) -> Device:
    """Keep who it is, drop what was measured on it."""
    really = f"SM {real.capability}" if real.capability else real.arch or real.kind
    note = f"{what.text} overrides what it really is: {really}."
    return _device(what, real.device, name=real.name, uuid=real.uuid, notes=(note,))


def _made_up(what: Override) -> Device:
    note = f"{what.text} makes this device up: no {what.kind} device is visible."
    return _device(what, _NAMES[what.kind], notes=(note,))


def _device(
    what: Override, device: str, *, name: str = "", uuid: str | None = None, notes: tuple[str, ...]
) -> Device:
    if what.capability:
        return cuda_device(device, what.capability, name=name, uuid=uuid, override=what.text, notes=notes)
    return other_device(
        device,
        what.kind,
        _VENDORS[what.kind],
        name=name,
        arch=what.arch,
        uuid=uuid,
        override=what.text,
        notes=notes,
    )
