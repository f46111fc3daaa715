# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA cards of this machine, asked of the driver's management library (NVML).

NVML talks to the kernel module and creates no CUDA context, so a process that asked can still fork workers
that use CUDA. It is initialised and shut down within each query: no handle outlives a call, and a forked
child inherits none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ir_platform import errors
from ir_platform.driver_errors import missing, translate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Instance:
    """One MIG compute instance, which CUDA presents as a device.

    Args:
        uuid: ``MIG-...`` as ``nvidia-smi -L`` prints it.
        gpu_instance: id of the GPU instance that it belongs to.
        compute_instance: id within the GPU instance.
        multiprocessors: number of them; 0 when the driver does not say.
    """

    uuid: str
    name: str
    gpu_instance: int
    compute_instance: int
    multiprocessors: int
    memory: int


@dataclass(frozen=True, slots=True)
class Card:
    """One physical card.

    Args:
        uuid: ``GPU-...`` as ``nvidia-smi -L`` prints it.
        bus_id: PCI bus id, ``00000000:3B:00.0``.
        capability: (major, minor) of its SM.
        cores: number of CUDA cores; 0 when the driver does not say.
        clock: highest clock of the multiprocessors in MHz; 0 when the driver does not say.
        memory: bytes.
        mig: whether it is in MIG mode; then CUDA sees its instances and never the card.
        instances: MIG instances in the driver's order.
    """

    uuid: str
    bus_id: str
    name: str
    capability: tuple[int, int]
    cores: int
    clock: int
    memory: int
    mig: bool = False
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the driver said.

    Args:
        driver: driver version, ``"580.95.05"``.
        cuda: newest CUDA version that the driver runs, ``"13.0"``; empty when it does not say.
        cards: in PCI bus order.
        notes: what went wrong with single cards.
    """

    driver: str
    cuda: str
    cards: tuple[Card, ...]
    notes: tuple[str, ...] = ()


def query() -> Snapshot:
    """Ask the driver for every card; a card that cannot be asked becomes a note.

    Raises:
        DriverError: the driver as a whole gives no answer.
    """
    with _nvml() as nvml:
        cards, notes = [], []
        for index in range(_ask(nvml, nvml.nvmlDeviceGetCount)):
            try:
                cards.append(_card(nvml, _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)))
            except errors.DriverError as error:
                notes.append(f"Card {index} is left out. {error}")
        return Snapshot(
            driver=_optional(nvml, "", nvml.nvmlSystemGetDriverVersion),
            cuda=_cuda_version(_optional(nvml, 0, nvml.nvmlSystemGetCudaDriverVersion)),
            cards=tuple(sorted(cards, key=lambda card: card.bus_id)),
            notes=tuple(notes),
        )


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML bindings, initialised; shut down again whatever happens inside."""
    try:
        import pynvml
    except ImportError as error:
        raise errors.DriverNotFoundError(
            "NVIDIA cards cannot be asked for.",
            why=f"The NVML bindings do not import: {error}.",
            fix="Install nvidia-ml-py.",
        ) from error
    _ask(pynvml, pynvml.nvmlInit)
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):  # an error of the body is the one to report
            pynvml.nvmlShutdown()


def _card(nvml: Any, handle: Any) -> Card:
    instances = tuple(_instances(nvml, handle))
    mig_mode, _ = _optional(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, handle)
    return Card(
        uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, handle),
        bus_id=_text(_ask(nvml, nvml.nvmlDeviceGetPciInfo, handle).busId),
        name=_ask(nvml, nvml.nvmlDeviceGetName, handle),
        capability=_ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle),
        cores=_optional(nvml, 0, nvml.nvmlDeviceGetNumGpuCores, handle),
        clock=_optional(nvml, 0, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory=_memory(nvml, handle),
        mig=mig_mode == nvml.NVML_DEVICE_MIG_ENABLE,
        instances=instances,
    )


def _instances(nvml: Any, handle: Any) -> Iterator[Instance]:
    for index in range(_optional(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        mig = _optional(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if mig is None:  # a free slot
            continue
        attributes = _optional(nvml, None, nvml.nvmlDeviceGetAttributes, mig)
        yield Instance(
            uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, mig),
            name=_ask(nvml, nvml.nvmlDeviceGetName, mig),
            gpu_instance=_ask(nvml, nvml.nvmlDeviceGetGpuInstanceId, mig),
            compute_instance=_ask(nvml, nvml.nvmlDeviceGetComputeInstanceId, mig),
            multiprocessors=attributes.multiprocessorCount if attributes else 0,
            memory=_memory(nvml, mig),
        )


def _memory(nvml: Any, handle: Any) -> int:
    info = _optional(nvml, None, nvml.nvmlDeviceGetMemoryInfo, handle)
    return info.total if info else 0


def _text(value: str | bytes) -> str:
    """Fields of NVML's structures are bytes in some versions of the bindings."""
    return value.decode() if isinstance(value, bytes) else value


def _cuda_version(number: int) -> str:
    """12040 as ``"12.4"``."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _ask(nvml: Any, function: Callable[..., T], *args: Any) -> T:
    """Call NVML; its errors become ours."""
    try:
        return function(*args)
    except nvml.NVMLError as error:
        raise translate(nvml, error, function.__name__) from error


def _optional(nvml: Any, default: T, function: Callable[..., T], *args: Any) -> T:
    """Call NVML for what older drivers and smaller cards do not answer."""
    try:
        return function(*args)
    except nvml.NVMLError as error:
        if error.value in missing(nvml):
            return default
        raise translate(nvml, error, function.__name__) from error
