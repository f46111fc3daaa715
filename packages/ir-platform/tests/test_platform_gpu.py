# SPDX-License-Identifier: Apache-2.0
"""On a real card: what NVML implies must be what the CUDA runtime says. Each question has its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import ir_platform
from ir_platform import detect
from ir_platform.errors import DriverError

pytestmark = pytest.mark.gpu

OURS = """
import json, torch, ir_platform
found = [d for d in ir_platform.devices() if d.kind == "cuda"]
assert not torch.cuda.is_initialized()
print(json.dumps([[d.name, d.capability, d.properties.get("multiprocessors"),
    d.properties.get("shared_memory_per_block")] for d in found]))
"""
THEIRS = """
import json, torch
try:
    count = torch._C._cuda_getDeviceCount()
except RuntimeError:
    count = 0
found = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps([[p.name, f"{p.major}.{p.minor}", p.multi_processor_count, p.shared_memory_per_block_optin]
    for p in found]))
"""
FORK = """
import os, torch, ir_platform
assert any(d.kind == "cuda" for d in ir_platform.devices())
assert not torch.cuda.is_initialized()
child = os.fork()
if child == 0:
    assert torch.ones(2, device="cuda").sum().item() == 2
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
RECORD = """
import json, runpy, sys
print(json.dumps(runpy.run_path(sys.argv[1])["record"]()))
"""


@pytest.fixture(scope="module")
def cards() -> tuple[detect.Card, ...]:
    """The cards of this machine; without any, a reason that is shown."""
    torch = pytest.importorskip("torch", reason="GPU tests compare with torch, which is not installed")
    if torch.version.cuda is None:
        pytest.skip(f"GPU tests need torch with CUDA; this is {torch.__version__}")
    try:
        found = detect.query().cards
    except DriverError as error:
        pytest.skip(f"GPU tests need an NVIDIA card: {error}")
    if not found:
        pytest.skip("GPU tests need an NVIDIA card: the driver sees none")
    return found


def run(program: str, *args: str, **environ: str | None) -> Any:
    given = {name: value for name, value in (os.environ | environ).items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, env=given, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else None


def test_the_devices_are_those_of_the_cuda_runtime(cards: tuple[detect.Card, ...]) -> None:
    assert run(OURS) == run(THEIRS) != []


@pytest.mark.parametrize("order", ["PCI_BUS_ID", "FASTEST_FIRST", None])
def test_the_order_is_that_of_the_cuda_runtime(cards: tuple[detect.Card, ...], order: str | None) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": None, "CUDA_DEVICE_ORDER": order}
    assert run(OURS, **environ) == run(THEIRS, **environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "0",
        " 0",
        "0 ",
        "+0",
        "-0",
        "00",
        "0x0",
        "0gpu",
        "0,0",
        "0,",
        ",0",
        "0,,",
        "-1",
        "-1,0",
        "0,-1,0",
        "0,99",
        "0,99,99",
        "0,99,0",
        "99,99",
        "0,0,99",
        "99",
        "all",
        "none",
        "{uuid}",
        "{short}",
        " {short}",
        "{uuid},{uuid}",
        "{uuid},{short}",
        "{short},0",
        "0,{short}",
        "{short}, {short}",
        "{lower}",
        "GPU-",
        "GPU-zzz",
        "MIG-",
        "{mig}",
        "{legacy}",
    ],
)
def test_visible_devices_are_mapped_as_the_cuda_runtime_maps_them(
    cards: tuple[detect.Card, ...], value: str | None
) -> None:
    if value is not None and ("{mig}" in value or "{legacy}" in value):
        instances = [(card, instance) for card in cards for instance in card.instances]
        if not instances:
            pytest.skip("no card of this machine has a MIG instance")
        card, instance = instances[-1]
        legacy = f"MIG-{card.uuid}/{instance.gpu_instance}/{instance.compute_instance}"
        value = value.format(mig=instance.uuid, legacy=legacy)
    elif value is not None:
        uuid = cards[0].uuid
        value = value.format(uuid=uuid, short=uuid[:16], lower=uuid.lower())
    environ = {"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert run(OURS, **environ) == run(THEIRS, **environ)


def test_a_process_that_asked_can_fork_workers_that_use_cuda(cards: tuple[detect.Card, ...]) -> None:
    run(FORK)


def test_the_recorder_works_here(cards: tuple[detect.Card, ...]) -> None:
    recorder = os.path.join(os.path.dirname(__file__), "record_nvml.py")
    recording = run(RECORD, recorder, CUDA_VISIBLE_DEVICES=None)
    assert [entry["name"] for entry in recording["cards"]]
    assert recording["cuda_runtime"] == [
        dict(zip(("name", "capability", "multiprocessors", "shared_memory_per_block"), entry, strict=True))
        for entry in run(OURS, CUDA_VISIBLE_DEVICES=None)
    ]


def test_devices_answer_in_this_process(cards: tuple[detect.Card, ...]) -> None:
    for device in ir_platform.devices():
        print(device, *device.notes, sep="\n  ")
