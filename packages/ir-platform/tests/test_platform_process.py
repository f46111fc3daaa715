# SPDX-License-Identifier: Apache-2.0
"""What asking does to the process: nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import ir_platform

Driver = Callable[..., Any]

IMPORT = """
import json, sys, threading
before = set(sys.modules)
import ir_platform, ir_platform.provider
print(json.dumps({
    "modules": sorted(name.split(".")[0] for name in set(sys.modules) - before),
    "threads": threading.active_count(),
    "maps": [line.split()[-1] for line in open("/proc/self/maps") if "nvidia" in line or "libcuda" in line]
        if sys.platform == "linux" else [],
}))
"""

ASK = """
import json, sys
{torch}
import ir_platform
found = [device.kind for device in ir_platform.devices()]
torch = sys.modules.get("torch")
print(json.dumps({{"found": found, "torch": torch is not None,
    "initialized": bool(torch and torch.cuda.is_initialized()),
    "bad_fork": bool(torch and torch.cuda._is_in_bad_fork())}}))
"""


def run(program: str, **environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_initialises_nothing() -> None:
    told = run(IMPORT, IR_TARGET="nonsense", IR_BATCH_INVARIANT_MIN_SM="nonsense")  # and reads no variable
    assert not {"torch", "pynvml", "triton", "ir_core", "vllm", "numpy"} & set(told["modules"])
    assert (told["threads"], told["maps"]) == (1, [])


def test_asking_imports_no_torch() -> None:
    told = run(ASK.format(torch=""))
    assert told["found"][-1] == "cpu"
    assert not told["torch"]


def test_asking_leaves_cuda_alone() -> None:
    pytest.importorskip("torch")
    told = run(ASK.format(torch="import torch"))
    assert (told["torch"], told["initialized"], told["bad_fork"]) == (True, False, False)


def _tell(connection: Any) -> None:
    connection.send([device.device for device in ir_platform.devices()])
    connection.close()


def ask_in(method: str) -> list[str]:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=_tell, args=(there,))
    child.start()
    assert here.poll(60), "the child gave no answer"
    told = here.recv()
    child.join()
    assert child.exitcode == 0
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_answers_as_its_parent_did(driver: Driver) -> None:
    fake = driver("T4", "H100")
    parent = [device.device for device in ir_platform.devices()]
    assert fake.open == 0  # nothing is held across the fork
    assert ask_in("fork") == parent == ["cuda:0", "cuda:1", "cpu"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_may_ask_first(driver: Driver) -> None:
    fake = driver("T4")
    assert ask_in("fork") == ["cuda:0", "cpu"]
    assert fake.queries == 0
    assert [device.device for device in ir_platform.devices()] == ["cuda:0", "cpu"]


@pytest.mark.slow
def test_a_spawned_child_answers_for_itself() -> None:
    """It has the real driver, if any: the fake does not cross."""
    program = (
        "import json, multiprocessing, ir_platform\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    child = context.Process(target=ir_platform.devices)\n"
        "    child.start(); child.join()\n"
        "    print(json.dumps({'exit': child.exitcode, 'here': [d.device for d in ir_platform.devices()]}))\n"
    )
    told = run(program)
    assert told["exit"] == 0
    assert told["here"][-1] == "cpu"
