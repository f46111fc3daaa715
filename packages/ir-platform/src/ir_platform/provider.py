# SPDX-License-Identifier: Apache-2.0
"""What this package offers: the devices that the program will see.

ir-core finds this module through the entry point group ``ir_core.platforms`` and calls ``describe_devices``.
Otherwise the hardware is asked once a process, and the environment is read at every call.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

from ir_platform import cpu, detect, rocm, torch_devices
from ir_platform.device import Device, cuda_device
from ir_platform.errors import DriverError, DriverNotFoundError, UnknownDeviceError
from ir_platform.override import apply, override
from ir_platform.sm import multiprocessors
from ir_platform.visible import CUDA_DEVICE_ORDER, CUDA_VISIBLE_DEVICES, Slot, visible

PLATFORM_API: Final = 1
"""Version of the contract with ir-core."""


def describe_devices() -> list[dict[str, Any]]:
    """``devices()`` as plain data, the hardware asked anew: ir-core keeps the answer.

    The notes of the CPU, which is the last one, concern the machine.

    Raises:
        OverrideError: ``IR_TARGET`` or ``IR_BATCH_INVARIANT_MIN_SM`` is malformed.
    """
    refresh()
    return [device.to_dict() for device in devices()]


def devices() -> tuple[Device, ...]:
    """Every device that the program will see: the accelerators in torch's order, then the CPU.

    A driver that gives no answer costs its devices, not the answer: the reason is in ``notes()``.

    Raises:
        OverrideError: ``IR_TARGET`` or ``IR_BATCH_INVARIANT_MIN_SM`` is malformed.
    """
    wanted = override()
    accelerators, notes = _accelerators()
    if wanted is None:
        return (*accelerators, cpu.device(notes=notes))
    notes += (f"{wanted.text} says what the devices are.",)
    return (
        *apply(wanted, accelerators),
        cpu.device(override=wanted.text if wanted.kind == "cpu" else None, notes=notes),
    )


def target(device: object = "cuda") -> Device:
    """The device of that name: ``"cuda:1"``, ``"cuda"``, ``"cpu"``, or a ``torch.device``.

    Raises:
        UnknownDeviceError: the program will not see such a device.
        OverrideError: as ``devices()``.
    """
    name = str(device)
    if name == "cuda":
        name = f"cuda:{torch_devices.current_cuda_index()}"
    elif name in ("xpu", "mps"):
        name += ":0"
    found = devices()
    for candidate in found:
        if candidate.device == name:
            return candidate
    raise UnknownDeviceError(
        f"There is no device {name}.",
        why=f"The program sees {', '.join(map(str, found))}.",
        fix=" ".join(found[-1].notes) or "Ask for one of these.",
    )


def notes() -> tuple[str, ...]:
    """What a person should know that concerns no single device: missing drivers, hidden cards, overrides."""
    return devices()[-1].notes


def refresh() -> None:
    """Forget the hardware; the next call asks again."""
    _nvidia.cache_clear()
    _amd.cache_clear()


@cache
def _nvidia() -> detect.Snapshot | DriverError:
    """The NVIDIA cards, or why there is no answer. Plain data: a forked child may keep it."""
    try:
        return detect.query()
    except DriverError as error:
        return error


@cache
def _amd() -> tuple[rocm.Agent, ...]:
    return tuple(rocm.agents())


def _accelerators() -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """The real accelerators in torch's order, and notes about the machine."""
    found: tuple[Device, ...] = ()
    notes: tuple[str, ...] = ()
    if not torch_devices.hip_build():
        found, notes = _cuda()
    if not found:  # both are cuda:N to torch, and one torch serves one of them
        found = tuple(rocm.devices(list(_amd()), os.environ))
    return found + tuple(torch_devices.devices()), notes


def _cuda() -> tuple[tuple[Device, ...], tuple[str, ...]]:
    snapshot = _nvidia()
    if isinstance(snapshot, DriverError):
        if isinstance(snapshot, DriverNotFoundError) and _amd():
            return (), ()
        return (), (str(snapshot),)
    seen = visible(snapshot.cards, os.environ.get(CUDA_VISIBLE_DEVICES), os.environ.get(CUDA_DEVICE_ORDER))
    notes = snapshot.notes + seen.notes
    if not snapshot.cards:
        notes += (f"The NVIDIA driver {snapshot.driver} sees no card.",)
    without = torch_devices.cuda_missing_from()
    if seen.slots and without:
        notes += (f"torch {without} is built without CUDA and cannot use the NVIDIA devices.",)
    return tuple(_device(index, slot, snapshot) for index, slot in enumerate(seen.slots)), notes


def _device(index: int, slot: Slot, snapshot: detect.Snapshot) -> Device:
    card, instance = slot.card, slot.instance
    memory = (instance or card).memory
    about = [f"driver {snapshot.driver}"] if snapshot.driver else []
    about += [f"CUDA {snapshot.cuda}"] if snapshot.cuda else []
    about += [f"{memory / 2**30:.1f} GiB"] if memory else []
    about += [f"MIG instance of {card.name} ({card.uuid})"] if instance else []
    return cuda_device(
        f"cuda:{index}",
        card.capability,
        name=instance.name if instance else card.name,
        multiprocessors=instance.multiprocessors
        if instance
        else multiprocessors(card.capability, card.cores),
        uuid=slot.uuid,
        notes=(", ".join(about),),
    )
