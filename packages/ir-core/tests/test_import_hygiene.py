# SPDX-License-Identifier: Apache-2.0
"""Importing ir_core changes nothing: no CUDA, no thread, no entry point, no environment read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ir_core


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


QUIET = """
import logging, sys, threading, time, warnings
import torch
warnings.simplefilter("error")
before = threading.active_count(), set(torch.ops.__dict__), logging.root.handlers[:], logging.getLogger().level
loaded = set(sys.modules)
import importlib.metadata, importlib_metadata

def never(*args, **kwargs):
    raise AssertionError("asked for entry points")

importlib.metadata.entry_points = importlib_metadata.entry_points = never
start = time.perf_counter()
import ir_core
from ir_core import IrOp, ops, register_op, scope, select
print(round((time.perf_counter() - start) * 1e3, 1))
assert "rms_norm" in IrOp.registry and "fused_add_rms_norm" in IrOp.registry
assert threading.active_count() == before[0]
assert not torch.cuda.is_initialized()
assert logging.root.handlers[:] == before[2] and logging.getLogger().level == before[3]
new = set(sys.modules) - loaded
heavy = {"triton", "torch._inductor", "torch._dynamo.convert_frame", "typer", "rich", "vllm", "pynvml",
         "ir_kernels_triton", "ir_platform", "matplotlib", "numpy.testing"}
assert not heavy & new, heavy & new
"""


def test_nothing_happens(capsys: pytest.CaptureFixture[str]):
    milliseconds = run(QUIET)
    with capsys.disabled():  # shown, not judged: it depends on what else the machine does
        print(f"\nimport ir_core with its ops, over torch: {milliseconds.strip()} ms")


def test_the_environment_is_read_by_the_first_call_not_by_the_import():
    """A bad value does not break the import, and a later change counts after a refresh."""
    run(
        "import os, ir_core, torch\n"
        "from ir_core import ops\n"
        "call = lambda: ops.rms_norm(torch.zeros(1, 4), None, 1e-6)\n"
        "try:\n    call()\n"
        "except ir_core.errors.EnvError as error:\n    assert 'IR_STRICT' in str(error)\n"
        "else:\n    raise AssertionError\n"
        "os.environ['IR_STRICT'] = '1'\n"
        "call()\n"
        "assert ir_core.current().strict\n"
        "os.environ['IR_STRICT'] = '0'\n"
        "assert ir_core.current().strict\n"
        "ir_core.refresh()\n"
        "assert not ir_core.current().strict\n",
        IR_STRICT="perhaps",
    )


MODULES = sorted(
    ".".join(file.relative_to(Path(ir_core.__path__[0]).parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )
    for file in Path(ir_core.__path__[0]).rglob("*.py")
    if file.stem != "__main__" and not {"cli", "lowering", "testing", "verification"} & set(file.parts)
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_every_module_can_be_the_first():
    """No import cycle depends on which module comes first: each in a process that has imported torch only."""
    assert len(MODULES) > 20
    run(
        "import importlib, os, sys, torch\n"
        f"for name in {MODULES!r}:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            importlib.import_module(name)\n"
        "            os._exit(0)\n"
        "        finally:\n"
        "            sys.excepthook(*sys.exc_info())\n"
        "            os._exit(1)\n"
        "    assert os.waitpid(child, 0)[1] == 0, name\n"
    )


def test_the_process_ends_cleanly():
    """Torch's tables are not taken down in a wrong order at exit, ops and overloads of every kind included."""
    out = run(
        "import ir_core, torch\n"
        "from torch import Tensor\n"
        "def f(x: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:\n    return x + 1, x2 + 1\n"
        "op = ir_core.register_op(f, allow_inplace=True)\n"
        "op.register_impl('a')(f)\nop.register_impl('b', inplace=True)(f)\n"
        "print(len(torch.ops.ir_core.f.overloads()), float(op(torch.zeros(1), torch.zeros(1))[0]))\n"
    )
    assert out.split() == ["7", "1.0"]
