# SPDX-License-Identifier: Apache-2.0
"""Data below, the face on top: no import circle, floors as ARCHITECTURE.md says, and its walks name what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "packages/ir-core/src/ir_core"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def imports(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of its package that it imports, inside functions and for type checking too."""
    files = {
        ".".join((package.name, *file.relative_to(package).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): file
        for file in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                found.update(full if full in files else str(node.module) for full in inner)
        # A package's own __init__ is imported with any of its modules, and names them: that is no edge.
        graph[name] = {
            other
            for other in found
            if other in files and other not in (name, package.name) and not name.startswith(f"{other}.")
        }
    return graph


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    pending = [start]
    while pending:
        for other in graph[pending.pop()] - found:
            found.add(other)
            pending.append(other)
    return found


@pytest.mark.parametrize("package", ["ir_core", "ir_platform", "ir_kernels_triton", "ir_vllm_adapter"])
def test_no_import_circle(package: str) -> None:
    graph = imports(ROOT / "packages" / package.replace("_", "-") / "src" / package)
    assert len(graph) > 10
    knot = sorted(name for name in graph if name in reached(graph, name))
    assert not knot, f"these import each other: {', '.join(knot)}"


def test_nothing_below_the_face_imports_it() -> None:
    graph = imports(CORE)
    assert "ir_core.op" in reached(graph, "ir_core.ops.layernorm")  # the check sees what it should
    below = (
        "meaning impl selection catalog resolve fast_path torch_library autograd vmap lock_file policy facts"
    )
    for name in below.split():
        assert "ir_core.op" not in reached(graph, f"ir_core.{name}"), name
    assert "ir_core.impl" not in reached(graph, "ir_core.meaning")
    assert "ir_core.catalog" not in reached(graph, "ir_core.selection")


def test_floors() -> None:
    """A module imports its own floor and those below; verification is on two floors, and is not looked at here."""
    floors = {name: int(n) for name, n in re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", TEXT, re.MULTILINE)}
    assert len(floors) > 25
    graph = imports(CORE)

    def floor(module: str) -> int | None:
        part = module.split(".")[1]
        return None if part == "verification" else floors.get(f"{part}.py", floors.get(f"{part}/"))

    for name, others in graph.items():
        mine = floor(name) if "." in name else None
        if mine is not None:
            above = {other: floor(other) for other in others if (floor(other) or 0) > mine}
            assert not above, f"{name} is on floor {mine} and imports {above}"


def names_in(file: Path) -> set[str]:
    """What a file defines: functions, classes and methods, and names that it assigns at module level."""
    tree = ast.parse(file.read_text())
    found = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_walks_name_what_exists() -> None:
    walks = TEXT.split("### One eager call")[1].split("### ir-platform")[0]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", walks)
    assert len(named) > 30
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (CORE / file).is_file() or name not in names_in(CORE / file)
    ]
    assert not missing, missing
