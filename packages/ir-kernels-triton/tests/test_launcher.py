# SPDX-License-Identifier: Apache-2.0
"""A kernel's device: it is compiled there, asked for there, and launched there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ir_kernels_triton import compat, launcher
from ir_kernels_triton.kernel_spec import KernelSpec

SPEC = KernelSpec("module", "kernel", (("x", "*bf16"), ("rows", "i32")), (), num_warps=4)


class Seen:
    """What happened, in order: ``current`` and ``prepare`` with a device, ``compile``, ``launch`` with its values."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []


@pytest.fixture(params=[True, False], ids=["pointers", "tensors"])
def seen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Seen:
    found = Seen()

    class Compiled:
        takes_pointers = request.param

        def prepare(self, arrange: object, device: int) -> Any:
            found.events.append(("prepare", device))
            return lambda programs, *values: found.events.append(("launch", programs, *values))

    def launch(spec: KernelSpec) -> Compiled:
        assert spec is SPEC
        found.events.append(("compile",))
        return Compiled()

    @contextlib.contextmanager
    def current(device: int | torch.device) -> Iterator[None]:
        found.events.append(("current", device if isinstance(device, int) else device.index))
        yield

    monkeypatch.setattr(compat, "launch", launch)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(launcher, "current_device", lambda: 1)
    return found


@pytest.mark.parametrize(("index", "switch"), [(0, [("current", 0)]), (1, [])])
def test_a_gpu_kernel_is_compiled_and_launched_on_its_device(
    seen: Seen, index: int, switch: list[tuple[str, int]]
) -> None:
    kernel = launcher.Kernel(SPEC, torch.device("cuda", index))
    launch = kernel.prepare(("x", "rows"), {})
    assert seen.events == [("current", index), ("compile",), ("prepare", index)]
    seen.events.clear()
    launch(3, 4096, 2)
    assert seen.events == [*switch, ("launch", 3, 4096, 2)]


def test_a_cpu_kernel_switches_nothing(seen: Seen) -> None:
    kernel = launcher.Kernel(SPEC, torch.device("cpu"))
    kernel.prepare_here(("x", "rows"), {})(3, 4096, 2)
    assert seen.events == [("compile",), ("prepare", 0), ("launch", 3, 4096, 2)]
    kernel = launcher.Kernel(SPEC, torch.device("cpu", 0))  # an index, and still no GPU
    seen.events.clear()
    kernel.prepare(("x", "rows"), {})(3, 4096, 2)
    assert seen.events == [("prepare", 0), ("launch", 3, 4096, 2)]


def test_a_launch_is_given_addresses_or_tensors(seen: Seen) -> None:
    kernel = launcher.Kernel(SPEC, torch.device("cpu"))
    x = torch.zeros(4)
    if kernel.takes_pointers:
        assert kernel.pointer(x) == x.data_ptr()
    else:
        assert kernel.pointer(x) is x


@pytest.mark.parametrize(("capability", "has"), [((8, 9), False), ((9, 0), True), ((10, 0), True)])
def test_dependent_launch_needs_sm_90(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    assert launcher.dependent_launch(torch.device("cuda", 1)) is has
    assert asked == [torch.device("cuda", 1)]
    assert launcher.dependent_launch(torch.device("cpu")) is False
