# SPDX-License-Identifier: Apache-2.0
"""The public API and the contract with ir-core."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

import ir_platform
from ir_platform import cpu, rocm, torch_devices
from ir_platform.errors import UnknownDeviceError

Driver = Callable[..., Any]


def test_the_entry_point_loads_and_fulfils_the_contract(driver: Driver) -> None:
    driver("H100")
    (point,) = (
        point for point in entry_points(group="ir_core.platforms") if point.dist.name == "ir-platform"
    )
    provider = point.load()
    assert provider.PLATFORM_API == ir_platform.PLATFORM_API == 1
    described = provider.describe_devices()
    assert [data["device"] for data in described] == ["cuda:0", "cpu"]
    assert json.loads(json.dumps(described)) == described


def test_ir_core_reads_every_key(driver: Driver) -> None:
    target = pytest.importorskip("ir_core.target")
    driver("T4", "H200-MIG")
    for data in ir_platform.describe_devices():
        assert target.Target.from_mapping(data).to_dict() == data


def test_two_cards_give_two_answers(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("T4", "H100")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert (ir_platform.target("cuda:0").capability, ir_platform.target("cuda:1").capability) == (
        "7.5",
        "9.0",
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert (ir_platform.target("cuda:0").capability, ir_platform.target("cuda:1").capability) == (
        "9.0",
        "7.5",
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device.capability for device in ir_platform.devices()] == ["9.0", None]


def test_what_hides_devices_is_in_the_notes(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.device for device in ir_platform.devices()] == ["cpu"]
    assert ir_platform.notes() == ("CUDA_VISIBLE_DEVICES is empty, which hides every device.",)


def test_target_says_what_there_is(driver: Driver) -> None:
    driver("T4")
    assert ir_platform.target("cpu").kind == "cpu"
    assert ir_platform.target("cuda") == ir_platform.target("cuda:0")
    with pytest.raises(UnknownDeviceError) as caught:
        ir_platform.target("cuda:1")
    assert "There is no device cuda:1. The program sees cuda:0 (Tesla T4), SM 7.5, cpu" in str(caught.value)


def test_a_missing_device_is_explained_by_the_notes(driver: Driver) -> None:
    driver("T4", fail={"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH})
    with pytest.raises(UnknownDeviceError, match="different versions"):
        ir_platform.target("cuda:0")


def test_target_takes_a_torch_device(driver: Driver) -> None:
    torch = pytest.importorskip("torch")
    driver("T4")
    assert ir_platform.target(torch.device("cuda", 0)).name == "Tesla T4"
    assert ir_platform.target(torch.device("cpu")).kind == "cpu"


def test_a_bare_cuda_is_the_current_device(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("T4", "H100")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    cuda = SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert ir_platform.target("cuda").device == "cuda:1"


def test_the_interpreter_is_a_feature_of_the_cpu(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver()
    assert ir_platform.target("cpu").features == ()
    for value, features in (
        ("1", ("triton_interpreter",)),
        ("0", ()),
        ("", ()),
        ("True", ("triton_interpreter",)),
    ):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert ir_platform.target("cpu").features == features


def test_the_cpu_has_a_name_where_linux_tells_none(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    driver()
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(cpu.platform, "processor", lambda: "arm")
    assert ir_platform.target("cpu").name == "arm"
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC: 9\n")
    assert ir_platform.target("cpu").name == "AMD EPYC: 9"


def test_a_torch_without_cuda_is_noted(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("H100")
    version = SimpleNamespace(cuda=None, hip=None, __version__="2.13.0+cpu")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=version))
    assert "torch 2.13.0+cpu is built without CUDA and cannot use the NVIDIA devices." in ir_platform.notes()


def fake_torch(**parts: Any) -> SimpleNamespace:
    version = SimpleNamespace(cuda=None, hip=parts.pop("hip", None), __version__="0")
    mps = SimpleNamespace(is_available=lambda: parts.get("mps", False))
    xpu = SimpleNamespace(device_count=lambda: parts.get("xpu", 0))
    return SimpleNamespace(version=version, backends=SimpleNamespace(mps=mps), xpu=xpu)


@pytest.mark.usefixtures("driver")
def test_intel_and_apple_devices_are_counted_by_torch(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver()
    monkeypatch.setitem(sys.modules, "torch", fake_torch(xpu=2, mps=True))
    monkeypatch.setattr(torch_devices, "has_intel_gpu", lambda: True)
    monkeypatch.setattr(sys, "platform", "darwin")
    found = ir_platform.devices()
    assert [(device.device, device.kind, device.vendor) for device in found[:-1]] == [
        ("xpu:0", "xpu", "intel"),
        ("xpu:1", "xpu", "intel"),
        ("mps:0", "mps", "apple"),
    ]
    assert ir_platform.target("mps") == found[2]
    assert found[0].batch_invariant_reason == "batch-invariant kernels are not verified on xpu (xpu:0)"


def test_an_intel_render_node_is_looked_for(tmp_path: Any) -> None:
    assert not torch_devices.has_intel_gpu(tmp_path)
    for number, vendor in ((128, "0x1002"), (129, "0x8086")):
        node = tmp_path / f"renderD{number}" / "device"
        node.mkdir(parents=True)
        (node / "vendor").write_text(vendor + "\n")
    assert torch_devices.has_intel_gpu(tmp_path)


NODES = {
    0: "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n",
    1: "simd_count 1216\nsimd_per_cu 4\nlds_size_in_kb 64\ngfx_target_version 90402\nunique_id 11\n",
    2: "simd_count 440\nsimd_per_cu 4\nlds_size_in_kb 64\ngfx_target_version 90010\nunique_id 12\n",
    10: "simd_count 192\nsimd_per_cu 2\nlds_size_in_kb 64\ngfx_target_version 110000\nunique_id 13\n",
}


@pytest.fixture
def amd(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> list[rocm.Agent]:
    """A machine with three AMD cards, and no NVIDIA driver unless the test adds one."""
    for number, text in NODES.items():
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(text)
    (tmp_path / "3").mkdir()  # a node that the container hides
    found = rocm.agents(tmp_path)
    monkeypatch.setattr(rocm, "agents", lambda: found)
    return found


def test_amd_devices_come_from_sysfs(amd: list[rocm.Agent], driver: Driver) -> None:
    driver(fail={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
    *found, last = ir_platform.devices()
    assert [(device.device, device.kind, device.arch) for device in found] == [
        ("cuda:0", "rocm", "gfx942"),
        ("cuda:1", "rocm", "gfx90a"),
        ("cuda:2", "rocm", "gfx1100"),
    ]
    assert found[0].properties == {"multiprocessors": 304, "shared_memory_per_block": 65536}
    assert found[0].uuid == "GPU-000000000000000b"
    assert found[0].capability is None
    assert not found[0].batch_invariant
    assert last.notes == ()  # that there is no NVIDIA driver is no news there


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [11, 12, 13]),
        ({"ROCR_VISIBLE_DEVICES": "2,0"}, [13, 11]),
        ({"HIP_VISIBLE_DEVICES": "1"}, [12]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [12]),
        ({"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "1"}, [13]),
        ({"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "1"}, [11]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000000000000000C, 0"}, [12, 11]),
        ({"HIP_VISIBLE_DEVICES": "0,7,1"}, [11]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_amd_visible_devices(amd: list[rocm.Agent], environ: dict[str, str], expected: list[int]) -> None:
    assert [device.uuid for device in rocm.devices(amd, environ)] == [f"GPU-{uid:016x}" for uid in expected]


@pytest.mark.parametrize(
    ("number", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (90008, "gfx908"), (100300, "gfx1030"), (120001, "gfx1201")],
)
def test_gfx_names(number: int, name: str) -> None:
    assert rocm.gfx_name(number) == name


def test_a_machine_with_both_follows_the_torch_that_runs(
    amd: list[rocm.Agent], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("H100")
    assert ir_platform.target("cuda:0").kind == "cuda"
    monkeypatch.setitem(sys.modules, "torch", fake_torch(hip="6.4"))
    assert ir_platform.target("cuda:0").kind == "rocm"
