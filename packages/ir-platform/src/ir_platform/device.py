# SPDX-License-Identifier: Apache-2.0
"""``Device``: what this package says of one device, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ir_platform import sm
from ir_platform.version import SOURCE


@dataclass(frozen=True)
class Device:
    """One device that the program will see; the fields are the keys that ir-core reads.

    Args:
        device: torch's name for it: ``"cuda:0"``, ``"cpu"``.
        kind: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"xpu"`` or ``"mps"``.
        vendor: ``"nvidia"``, ``"amd"``, ...
        name: marketing name; empty when unknown.
        capability: SM of a CUDA device, ``"9.0"``.
        arch: generation of a CUDA device, ``"Hopper"``; gfx name of a ROCm device, ``"gfx942"``.
        features: what kernels ask about.
        properties: ``multiprocessors``, a count, and ``shared_memory_per_block``, bytes, where known.
        batch_invariant: whether batch-invariant kernels are supported on it.
        batch_invariant_reason: why, quoting both values.
        override: ``"IR_TARGET=sm90"`` when the user said what the device is.
        source: who says all this.
        uuid: the driver's identifier of the card or MIG instance.
        notes: what a person should know about this answer.
    """

    device: str
    kind: str
    vendor: str = ""
    name: str = ""
    capability: str | None = None
    arch: str | None = None
    features: tuple[str, ...] = ()
    properties: dict[str, int] = field(default_factory=dict, hash=False)
    batch_invariant: bool = False
    batch_invariant_reason: str = ""
    override: str | None = None
    source: str = field(default_factory=SOURCE)
    uuid: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The device as JSON-compatible data."""
        data = asdict(self)
        data["features"], data["notes"] = list(self.features), list(self.notes)
        return data

    def __str__(self) -> str:
        """One line for a person; an override is always shown."""
        what = f"SM {self.capability}" if self.capability else self.arch or ""
        parts = [_label(self.device, self.name), *([what] if what else [])]
        return ", ".join(parts) + (f" [{self.override}]" if self.override else "")


def cuda_device(
    device: str,
    capability: sm.SM,
    *,
    name: str = "",
    multiprocessors: int | None = None,
    uuid: str | None = None,
    override: str | None = None,
    notes: tuple[str, ...] = (),
) -> Device:
    """An NVIDIA device of that SM: features and sizes come from the tables in ``ir_platform.sm``."""
    known = capability in sm.GENERATIONS
    if not known:
        notes += (f"SM {sm.format_sm(capability)} is not known to {SOURCE()}: it has no sizes for it.",)
    properties = {
        "multiprocessors": multiprocessors,
        "shared_memory_per_block": sm.SHARED_MEMORY_PER_BLOCK.get(capability),
    }
    invariant, reason = sm.batch_invariant(capability, _label(device, name))
    return Device(
        device=device,
        kind="cuda",
        vendor="nvidia",
        name=name,
        capability=sm.format_sm(capability),
        arch=sm.GENERATIONS.get(capability),
        features=tuple(sorted(sm.features(capability))),
        properties={key: value for key, value in properties.items() if value},
        batch_invariant=invariant,
        batch_invariant_reason=f"{reason} [{override}]" if override else reason,
        override=override,
        uuid=uuid,
        notes=notes,
    )


def other_device(
    device: str,
    kind: str,
    vendor: str,
    *,
    name: str = "",
    arch: str | None = None,
    properties: dict[str, int] | None = None,
    uuid: str | None = None,
    override: str | None = None,
    notes: tuple[str, ...] = (),
) -> Device:
    """An accelerator that is not NVIDIA's; its architecture name is one of its features."""
    return Device(
        device=device,
        kind=kind,
        vendor=vendor,
        name=name,
        arch=arch,
        features=(arch,) if arch else (),
        properties=properties or {},
        batch_invariant_reason=f"batch-invariant kernels are not verified on {kind} ({device})",
        override=override,
        uuid=uuid,
        notes=notes,
    )


def _label(device: str, name: str) -> str:
    return f"{device} ({name})" if name else device
