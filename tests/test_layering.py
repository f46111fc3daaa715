# SPDX-License-Identifier: Apache-2.0
"""The layer rule, read from the sources: who imports whom, what ruff forbids, and what an import drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Distribution -> what its sources never import. The reasons are in each package's ruff.toml.
FORBIDDEN = {
    "ir-core": {"ir_platform", "ir_kernels_triton", "ir_vllm_adapter", "vllm", "triton", "pynvml"},
    "ir-platform": {"ir_core", "ir_kernels_triton", "ir_vllm_adapter", "vllm", "triton"},
    "ir-kernels-triton": {"ir_vllm_adapter", "vllm"},
    "ir-vllm-adapter": {"ir_kernels_triton"},
}
# Module -> what importing it must not have imported: an import changes nothing and costs little.
LIGHT = {
    "ir_core": {
        "ir_platform",
        "ir_kernels_triton",
        "ir_vllm_adapter",
        "triton",
        "typer",
        "rich",
        "pytest",
        "vllm",
    },
    "ir_platform": {"torch", "pynvml", "ir_core"},
    "ir_kernels_triton": {"torch", "triton", "ir_core", "ir_platform"},
    "ir_kernels_triton.pack": {"torch", "triton", "ir_core", "ir_platform"},
    "ir_vllm_adapter": {"vllm", "torch", "ir_kernels_triton"},
}


def imported(source: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import statement in a file, nested ones included."""
    for node in ast.walk(ast.parse(source.read_text(), str(source))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, str(node.module).split(".")[0]


@pytest.mark.parametrize("dist", FORBIDDEN)
def test_sources_import_no_higher_layer(dist: str) -> None:
    sources = sorted((ROOT / "packages" / dist / "src").rglob("*.py"))
    assert sources, f"{dist} has no sources"
    found = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in sources
        for line, name in imported(source)
        if name in FORBIDDEN[dist]
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("dist", FORBIDDEN)
def test_ruff_teaches_the_same_rule(dist: str) -> None:
    config = tomllib.loads((ROOT / "packages" / dist / "ruff.toml").read_text())
    tidy = config["lint"]["flake8-tidy-imports"]
    assert set(tidy["banned-api"]) == FORBIDDEN[dist]
    assert all(len(entry["msg"]) > 40 for entry in tidy["banned-api"].values()), (
        "a ban says what to do instead"
    )


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    code = (
        f"import sys, threading, {module}\n"
        f"heavy = sorted(set(sys.modules) & {LIGHT[module]!r})\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "torch = sys.modules.get('torch')\n"
        "assert torch is None or not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
