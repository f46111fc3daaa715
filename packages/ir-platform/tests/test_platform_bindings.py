# SPDX-License-Identifier: Apache-2.0
"""The real bindings, against a stub of the driver's library; and the fake, against the real bindings."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stub is a Linux library")

ASK = """
import dataclasses, json, os
import ir_platform
from ir_platform import detect
try:
    told = dataclasses.asdict(detect.query())
except ir_platform.DriverError as error:
    told = {"error": type(error).__name__}
devices = [str(device) for device in ir_platform.devices()]
child = os.fork()
if child == 0:
    ir_platform.refresh()
    os._exit(0 if [str(device) for device in ir_platform.devices()] == devices else 1)
forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps({"told": told, "devices": devices, "forked": forked}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub as ``libnvidia-ml.so.1``."""
    if COMPILER is None:
        pytest.skip("no C compiler for the stub")
    folder = tmp_path_factory.mktemp("nvml")
    command = [
        COMPILER,
        "-shared",
        "-fPIC",
        str(HERE / "nvml_stub.c"),
        "-o",
        str(folder / "libnvidia-ml.so.1"),
    ]
    subprocess.run(command, check=True)
    return folder


def ask(library: Path, **environ: str) -> dict[str, Any]:
    given = os.environ | {"LD_LIBRARY_PATH": str(library)} | environ
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_card_through_the_real_bindings(library: Path, cards: dict[str, Any]) -> None:
    answer = ask(library)
    told, t4 = answer["told"], cards["T4"]
    assert (told["driver"], told["cuda"], told["notes"]) == ("535.183.01", "12.2", [])
    (card,) = told["cards"]
    assert card == {
        key: t4[key] for key in ("name", "uuid", "bus_id", "capability", "cores", "clock", "memory")
    } | {
        "mig": False,
        "instances": [],
    }
    assert answer["devices"][0] == "cuda:0 (Tesla T4), SM 7.5"
    assert answer["forked"] == 0  # a forked child asks the library anew


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "DriverNotFoundError"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "DriverMismatchError"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "DriverPermissionError"),
        (4711, "DriverError"),
    ],
)
def test_an_error_through_the_real_bindings(library: Path, code: int, error: str) -> None:
    answer = ask(library, NVML_STUB_INIT=str(code))
    assert answer["told"] == {"error": error}
    assert len(answer["devices"]) == 1


# Taken before any test puts the fake in the place of these.
REAL = {
    name: inspect.unwrap(function) for name, function in vars(pynvml).items() if inspect.isfunction(function)
}


def test_the_fake_answers_only_what_the_bindings_ask(driver: Callable[..., Any]) -> None:
    fake = type(driver())
    names = [name for name in vars(fake) if name.startswith("nvml")]
    for name in names:
        ours = list(inspect.signature(getattr(fake, name)).parameters)[1:]
        inspect.signature(REAL[name]).bind(*ours)
    assert "nvmlDeviceGetCudaComputeCapability" in names
