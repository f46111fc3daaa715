# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 - the names are NVML's
"""A fake NVML at the library's own boundary: the functions of ``pynvml``, answering from card data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from inspect import isfunction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

import ir_platform

FIXTURES = Path(__file__).parent / "fixtures"
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "IR_TARGET",
    "IR_BATCH_INVARIANT_MIN_SM",
    "TRITON_INTERPRET",
)
FUNCTIONS = [name for name, value in vars(pynvml).items() if name.startswith("nvml") and isfunction(value)]


class FakeNvml:
    """Stands for the driver.

    Args:
        cards: entries of ``fixtures/cards.json``, in NVML's order.
        driver: driver version.
        cuda: what ``nvmlSystemGetCudaDriverVersion`` returns.
        fail: function name, or (function name, card index), to the NVML error code that it raises.
    """

    def __init__(
        self, cards: list[dict[str, Any]], driver: str = "580.95.05", cuda: int = 13000, fail: Any = None
    ) -> None:
        self.cards, self.driver, self.cuda, self.fail = cards, driver, cuda, dict(fail or {})
        self.open = 0  # nvmlInit calls that no nvmlShutdown has answered
        self.queries = 0  # sessions begun
        self.calls: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
        for name in FUNCTIONS:
            monkeypatch.setattr(pynvml, name, self._bind(name))
        return self

    def _bind(self, name: str) -> Callable[..., Any]:
        def function(*args: Any) -> Any:
            self.calls.append(name)
            index = args[0][1] if args and isinstance(args[0], tuple) else next(iter(args), None)
            for key in (name, (name, index)):
                if key in self.fail:
                    raise pynvml.NVMLError(self.fail[key])
            if name not in ("nvmlInit", "nvmlErrorString") and not self.open:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            return getattr(self, name)(*args)

        function.__name__ = name
        return function

    def nvmlErrorString(self, code: int) -> str:
        return f"code {code}"

    def nvmlInit(self) -> None:
        self.open += 1
        self.queries += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, int, int]:
        return ("card", index, -1)

    def _data(self, handle: tuple[str, int, int]) -> dict[str, Any]:
        kind, card, instance = handle
        data = self.cards[card]
        return data if kind == "card" else data["mig"]["instances"][instance]

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return self._data(handle)["name"]

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self._data(handle)["uuid"]

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return SimpleNamespace(busId=self._data(handle)["bus_id"].encode())

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        major, minor = self._data(handle)["capability"]
        return major, minor

    def nvmlDeviceGetNumGpuCores(self, handle: Any) -> int:
        return self._data(handle)["cores"]

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        assert kind == pynvml.NVML_CLOCK_SM
        return self._data(handle)["clock"]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=self._data(handle)["memory"])

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        mig = self._data(handle)["mig"]
        if mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(mig["enabled"])] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        mig = self._data(handle)["mig"]
        return 7 if mig and mig["enabled"] else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> tuple[str, int, int]:
        instances = self._data(handle)["mig"]["instances"]
        if index >= len(instances) or instances[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return ("mig", handle[1], index)

    def nvmlDeviceGetAttributes(self, handle: Any) -> Any:
        return SimpleNamespace(multiprocessorCount=self._data(handle)["multiprocessors"])

    def nvmlDeviceGetGpuInstanceId(self, handle: Any) -> int:
        return self._data(handle)["gpu_instance"]

    def nvmlDeviceGetComputeInstanceId(self, handle: Any) -> int:
        return self._data(handle)["compute_instance"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts from an empty environment and asks the hardware anew; GPU tests keep theirs."""
    if request.node.get_closest_marker("gpu") is None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
    ir_platform.refresh()
    yield
    ir_platform.refresh()


@pytest.fixture(scope="session")
def cards() -> dict[str, dict[str, Any]]:
    """Card data by short name."""
    return json.loads((FIXTURES / "cards.json").read_text(encoding="utf-8"))["cards"]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, cards: dict[str, dict[str, Any]]) -> Callable[..., FakeNvml]:
    """``driver("T4", "H100", fail={...})`` puts a fake driver with those cards in place."""

    def install(*names: str | dict[str, Any], **options: Any) -> FakeNvml:
        data = [cards[name] if isinstance(name, str) else name for name in names]
        return FakeNvml(data, **options).install(monkeypatch)

    return install
