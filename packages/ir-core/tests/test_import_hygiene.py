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
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


QUIET = """
import logging, sys, threading, warnings
import torch
warnings.simplefilter("error")
before = threading.active_count(), set(torch.ops.__dict__), logging.root.handlers[:], logging.getLogger().level
loaded = set(sys.modules)
import importlib.metadata, importlib_metadata

def never(*args, **kwargs):
    raise AssertionError("asked for entry points")

importlib.metadata.entry_points = importlib_metadata.entry_points = never
import ir_core
from ir_core import IrOp, ops, register_op, scope, select
assert "rms_norm" in IrOp.registry and "fused_add_rms_norm" in IrOp.registry
assert threading.active_count() == before[0]
assert not torch.cuda.is_initialized()
assert logging.root.handlers[:] == before[2] and logging.getLogger().level == before[3]
new = set(sys.modules) - loaded
heavy = {"triton", "torch._inductor", "torch._dynamo.convert_frame", "typer", "rich", "vllm", "pynvml",
         "ir_kernels_triton", "ir_platform", "matplotlib", "numpy.testing"}
assert not heavy & new, heavy & new
"""


def test_nothing_happens():
    run(QUIET)


def test_a_bad_variable_does_not_break_the_import_but_the_first_call():
    run(
        "import ir_core, torch\nfrom ir_core import ops\n"
        "try:\n    ops.rms_norm(torch.zeros(1, 4), None, 1e-6)\n"
        "except ir_core.errors.EnvError as error:\n    assert 'IR_STRICT' in str(error)\n"
        "else:\n    raise AssertionError",
        IR_STRICT="perhaps",
    )


@pytest.mark.parametrize("statement", ["import ir_core.errors", "import ir_core", "from ir_core import ops"])
def test_parts_can_be_imported_alone(statement: str):
    run(statement)


MODULES = sorted(
    ".".join(file.relative_to(Path(ir_core.__path__[0]).parent).with_suffix("").parts)
    for file in Path(ir_core.__path__[0]).rglob("*.py")
    if file.stem[0] != "_" and not {"cli", "lowering", "testing", "verification"} & set(file.parts)
)


def test_every_module_can_be_the_first():
    """No import cycle depends on which module comes first. One process: modules are taken out again."""
    run(
        "import importlib, sys, torch\n"
        f"for name in {MODULES!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'ir_core.op' in sys.modules:\n"
        "        for op in list(sys.modules['ir_core.op'].IrOp.registry.values()):\n"
        "            op.unregister()\n"
        "    for key in [k for k in sys.modules if k.partition('.')[0] == 'ir_core']:\n"
        "        del sys.modules[key]\n"
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


def test_the_time_over_torch_is_printed(capsys: pytest.CaptureFixture[str]):
    out = run(
        "import time, torch\nstart = time.perf_counter()\nimport ir_core\nfrom ir_core import ops\n"
        "print(f'{(time.perf_counter() - start) * 1e3:.1f}')"
    )
    with capsys.disabled():
        print(f"\nimport ir_core with its ops, over torch: {out.strip()} ms")
    assert float(out) > 0
