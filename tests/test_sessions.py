# SPDX-License-Identifier: Apache-2.0
"""The sessions of the noxfile reach every test that is written for them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def constant(name: str) -> object:
    """The value of a constant of the noxfile, which is read and not run."""
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert node.value is not None
            return ast.literal_eval(node.value)
    raise AssertionError(f"noxfile.py has no constant {name}")


def marks_gpu(path: Path) -> bool:
    """Whether a file marks a test ``gpu``."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "gpu" and ast.unparse(node.value) == "pytest.mark"
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_the_gpu_session_runs_every_gpu_test_once() -> None:
    paths = constant("GPU_TESTS")
    assert isinstance(paths, tuple)
    folders = [ROOT / path for path in paths]
    marked = [
        path
        for part in ("packages", "tests", "examples")
        for path in (ROOT / part).rglob("*.py")
        if not {".venv", ".nox", "build"} & set(path.relative_to(ROOT).parts) and marks_gpu(path)
    ]
    assert len(marked) >= 4
    for path in marked:
        assert sum(folder in path.parents for folder in folders) == 1, f"{path} is run by no or by two paths"
