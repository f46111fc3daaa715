# SPDX-License-Identifier: Apache-2.0
"""Every entry point and script that a pyproject declares is installed, and loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import importlib_metadata
import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = {
    path.parent.name: tomllib.loads(path.read_text())["project"]
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
DECLARED = [
    pytest.param(dist, group, name, value, id=f"{dist}:{group}:{name}")
    for dist, project in PROJECTS.items()
    for group, points in project.get("entry-points", {}).items()
    for name, value in points.items()
]
SCRIPTS = [
    pytest.param(dist, name, id=name)
    for dist, project in PROJECTS.items()
    for name in project.get("scripts", {})
]


def test_the_three_doors_exist() -> None:
    groups = {group for project in PROJECTS.values() for group in project.get("entry-points", {})}
    assert {"ir_core.kernels", "ir_core.platforms", "vllm.general_plugins"} <= groups


@pytest.mark.parametrize(("dist", "group", "name", "value"), DECLARED)
def test_entry_point_loads(dist: str, group: str, name: str, value: str) -> None:
    points = importlib_metadata.distribution(dist).entry_points.select(group=group, name=name)
    assert [point.value for point in points] == [value], f"{dist} is installed from another pyproject"
    (point,) = points
    assert point.load() is not None


@pytest.mark.parametrize(("dist", "name"), SCRIPTS)
def test_script_answers(dist: str, name: str) -> None:
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    assert script, f"{dist} declares {name}, but it is not beside {sys.executable}"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
