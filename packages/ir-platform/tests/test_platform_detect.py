# SPDX-License-Identifier: Apache-2.0
"""Detection, driven through a fake NVML: the cards, and everything that a driver can get wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

import ir_platform
from ir_platform import detect, errors

Driver = Callable[..., Any]
NAMES = ["T4", "A100", "L4", "L40S", "H100", "H200", "H200-MIG", "B200", "RTX5090", "GB300"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card(driver: Driver, cards: dict[str, Any], name: str) -> None:
    driver(name)
    first, cpu = ir_platform.devices()
    expect, data = cards[name]["expect"], cards[name]
    assert first.device == "cuda:0"
    assert first.kind == "cuda"
    assert first.vendor == "nvidia"
    assert first.capability == "{}.{}".format(*data["capability"])
    assert first.arch == expect["arch"]
    assert list(first.features) == expect["features"]
    assert first.properties == {key: expect[key] for key in ("multiprocessors", "shared_memory_per_block")}
    assert first.batch_invariant is expect["batch_invariant"]
    assert first.source == cpu.source == f"ir-platform {_version()}"
    assert first.override is None
    assert any("driver 580.95.05, CUDA 13.0" in note for note in first.notes)


def test_a_mig_instance_is_the_device_and_names_its_card(driver: Driver, cards: dict[str, Any]) -> None:
    driver("H200-MIG")
    first = ir_platform.devices()[0]
    assert first.name == "NVIDIA H200 MIG 3g.71gb"
    assert first.uuid == cards["H200-MIG"]["mig"]["instances"][0]["uuid"]
    assert f"MIG instance of NVIDIA H200 ({cards['H200-MIG']['uuid']})" in first.notes[0]


def test_every_query_shuts_nvml_down_again(driver: Driver) -> None:
    fake = driver("T4", "H100")
    detect.query()
    assert (fake.open, fake.queries) == (0, 1)
    fake.fail["nvmlDeviceGetCount"] = pynvml.NVML_ERROR_UNKNOWN
    with pytest.raises(errors.DriverError):
        detect.query()
    assert (fake.open, fake.queries) == (0, 2)


def test_a_shutdown_that_fails_does_not_hide_the_answer(driver: Driver) -> None:
    driver("T4", fail={"nvmlShutdown": pynvml.NVML_ERROR_UNKNOWN})
    assert len(detect.query().cards) == 1


def test_cards_come_in_pci_order(driver: Driver) -> None:
    driver("GB300", "H100", "T4")
    assert [card.name for card in detect.query().cards] == [
        "Tesla T4",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA GB300",
    ]


DRIVER_FAILURES = {
    "no library": (
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        errors.DriverNotFoundError,
        "NVIDIA_DRIVER_CAPABILITIES",
    ),
    "not loaded": (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, errors.DriverNotFoundError, "is not loaded"),
    "mismatch": (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, errors.DriverMismatchError, "reboot or reload"),
    "old driver": (
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        errors.DriverMismatchError,
        "Install a newer driver",
    ),
    "new driver": (
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        errors.DriverMismatchError,
        "Install the nvidia-ml-py of the driver's release",
    ),
    "permission": (pynvml.NVML_ERROR_NO_PERMISSION, errors.DriverPermissionError, "/dev/nvidia"),
    "lost": (pynvml.NVML_ERROR_GPU_IS_LOST, errors.DeviceLostError, "fallen off the bus"),
    "reset": (pynvml.NVML_ERROR_RESET_REQUIRED, errors.DeviceLostError, "gpu-reset"),
    "unknown": (pynvml.NVML_ERROR_UNKNOWN, errors.DriverError, "nvidia-smi"),
    "from the future": (4711, errors.DriverError, "nvidia-smi"),
}


@pytest.mark.parametrize("case", DRIVER_FAILURES)
@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_without_an_answer(driver: Driver, case: str, function: str) -> None:
    code, kind, advice = DRIVER_FAILURES[case]
    driver("H100", fail={function: code})
    with pytest.raises(errors.DriverError, match=advice) as caught:
        detect.query()
    assert type(caught.value) is kind
    assert f"{function} said: " in str(caught.value)
    ir_platform.refresh()
    (cpu,) = ir_platform.devices()  # the stack goes on with the CPU
    assert cpu.device == "cpu"
    assert ir_platform.notes() == (str(caught.value),)


@pytest.mark.parametrize("case", ["lost", "reset", "permission", "unknown"])
@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"])
def test_a_card_without_an_answer_costs_that_card(driver: Driver, case: str, function: str) -> None:
    code, _, advice = DRIVER_FAILURES[case]
    driver("A100", "H100", "B200", fail={(function, 1): code})
    assert [device.capability for device in ir_platform.devices()[:-1]] == ["10.0", "8.0"]
    assert any(note.startswith("Card 1 is left out.") and advice in note for note in ir_platform.notes())


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetNumGpuCores",
        "nvmlDeviceGetMaxClockInfo",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlSystemGetCudaDriverVersion",
        "nvmlSystemGetDriverVersion",
    ],
)
@pytest.mark.parametrize(
    "code",
    [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION],
)
def test_what_old_drivers_and_small_cards_do_not_answer_is_left_out(
    driver: Driver, function: str, code: int
) -> None:
    driver("H100", fail={function: code})
    first = ir_platform.devices()[0]
    assert (first.capability, first.batch_invariant) == ("9.0", True)
    assert ("multiprocessors" in first.properties) is (function != "nvmlDeviceGetNumGpuCores")


def test_a_driver_without_a_card(driver: Driver) -> None:
    driver()
    assert [device.device for device in ir_platform.devices()] == ["cpu"]
    assert ir_platform.notes() == ("The NVIDIA driver 580.95.05 sees no card.",)


def test_bindings_that_do_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert [device.device for device in ir_platform.devices()] == ["cpu"]
    assert "Install nvidia-ml-py." in ir_platform.notes()[0]


def test_a_card_newer_than_the_tables(driver: Driver, cards: dict[str, Any]) -> None:
    driver(cards["B200"] | {"name": "NVIDIA X1", "capability": [13, 0]})
    first = ir_platform.devices()[0]
    assert first.capability == "13.0"
    assert "tma" in first.features
    assert first.arch is None
    assert first.properties == {}
    assert any("SM 13.0 is not known to ir-platform" in note for note in first.notes)


def test_the_hardware_is_asked_once_until_refresh(driver: Driver) -> None:
    fake = driver("H100")
    ir_platform.devices()
    ir_platform.target("cuda:0")
    assert fake.queries == 1
    ir_platform.refresh()
    ir_platform.devices()
    assert fake.queries == 2
    ir_platform.describe_devices()  # ir-core keeps what this says until its own refresh()
    assert fake.queries == 3


def test_a_card_that_vanishes_is_gone_after_a_refresh(driver: Driver) -> None:
    fake = driver("H100")
    assert [data["device"] for data in ir_platform.describe_devices()] == ["cuda:0", "cpu"]
    fake.fail["nvmlDeviceGetHandleByIndex", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    (cpu,) = ir_platform.describe_devices()
    assert "fallen off the bus" in cpu["notes"][0]


RECORDED = sorted((Path(__file__).parent / "fixtures").glob("recorded_*.json"))


@pytest.mark.skipif(not RECORDED, reason="no recording of a real card is committed yet: see record_nvml.py")
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recording_of_a_real_machine(driver: Driver, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """What NVML said there gives, replayed, what the CUDA runtime said there."""
    recording = json.loads(path.read_text(encoding="utf-8"))
    for name, value in recording["environment"].items():
        monkeypatch.setenv(name, value)
    driver(*recording["cards"], driver=recording["driver"], cuda=recording["cuda"])
    found = [device for device in ir_platform.devices() if device.kind == "cuda"]
    assert [
        {"name": device.name, "capability": device.capability, **device.properties} for device in found
    ] == recording["cuda_runtime"]


def _version() -> str:
    from importlib.metadata import version

    return version("ir-platform")
