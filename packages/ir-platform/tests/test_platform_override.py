# SPDX-License-Identifier: Apache-2.0
"""IR_TARGET: what it may say, and that it is shown wherever the target is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import pytest

import ir_platform
from ir_platform.errors import OverrideError

Driver = Callable[..., Any]


@pytest.fixture
def no_driver(driver: Driver) -> None:
    driver(fail={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(
    ("value", "device", "kind", "capability", "arch"),
    [
        ("sm90", "cuda:0", "cuda", "9.0", "Hopper"),
        ("SM_90A", "cuda:0", "cuda", "9.0", "Hopper"),
        ("9.0", "cuda:0", "cuda", "9.0", "Hopper"),
        (" cuda:sm80 ", "cuda:0", "cuda", "8.0", "Ampere"),
        ("cuda:12.0", "cuda:0", "cuda", "12.0", "Blackwell"),
        ("gfx942", "cuda:0", "rocm", None, "gfx942"),
        ("rocm:gfx90a", "cuda:0", "rocm", None, "gfx90a"),
        ("gfx1100", "cuda:0", "rocm", None, "gfx1100"),
        ("xpu", "xpu:0", "xpu", None, None),
        ("mps", "mps:0", "mps", None, None),
    ],
)
def test_a_device_is_made_up(
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    device: str,
    kind: str,
    capability: str | None,
    arch: str | None,
) -> None:
    monkeypatch.setenv("IR_TARGET", value)
    first, cpu = ir_platform.devices()
    assert (first.device, first.kind, first.capability, first.arch) == (device, kind, capability, arch)
    assert first.override == f"IR_TARGET={value.strip()}"
    assert first.override in str(first)
    assert "makes this device up" in first.notes[0]
    assert cpu.override is None
    assert f"{first.override} says what the devices are." in cpu.notes


@pytest.mark.usefixtures("no_driver")
def test_an_architecture_is_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_TARGET", "gfx942")
    assert ir_platform.target("cuda").features == ("gfx942",)


def test_real_devices_are_changed_and_say_so(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    driver("A100", "H100")
    monkeypatch.setenv("IR_TARGET", "sm89")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    first, second, _ = ir_platform.devices()
    assert str(first) == "cuda:0 (NVIDIA A100-SXM4-80GB), SM 8.9 [IR_TARGET=sm89]"
    assert str(second) == "cuda:1 (NVIDIA H100 80GB HBM3), SM 8.9 [IR_TARGET=sm89]"
    assert first.notes == ("IR_TARGET=sm89 overrides what it really is: SM 8.0.",)
    assert first.properties == {"shared_memory_per_block": 99 * 1024}  # not what was counted on the real card
    assert not second.batch_invariant
    assert second.batch_invariant_reason.endswith("is SM 8.9 [IR_TARGET=sm89]")


def test_cpu_hides_the_accelerators(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    driver("H100")
    monkeypatch.setenv("IR_TARGET", "cpu")
    (cpu,) = ir_platform.devices()
    assert cpu.override == "IR_TARGET=cpu"
    assert "[IR_TARGET=cpu]" in str(cpu)


def test_empty_says_nothing(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    driver("H100")
    monkeypatch.setenv("IR_TARGET", " ")
    assert ir_platform.target("cuda").override is None


@pytest.mark.parametrize(
    "value",
    [
        "hopper",
        "sm9",
        "cuda",
        "rocm",
        "cuda:gfx942",
        "rocm:sm90",
        "cpu:sm90",
        "gfx",
        ":sm90",
        "90.0",
        "sm90,cpu",
    ],
)
def test_a_value_that_names_no_target(monkeypatch: pytest.MonkeyPatch, driver: Driver, value: str) -> None:
    driver("H100")
    monkeypatch.setenv("IR_TARGET", value)
    with pytest.raises(OverrideError, match=f"IR_TARGET={value} names no target. It takes sm90"):
        ir_platform.devices()
