# SPDX-License-Identifier: Apache-2.0
"""One version, one licence, one set of pins: what is written twice in the repository agrees."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
VERSION = Version((ROOT / "VERSION").read_text().strip())
DISTS = ("ir-core", "ir-platform", "ir-kernels-triton", "ir-vllm-adapter")


def pyproject(dist: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / dist / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, Version]:
    """Package -> version in a constraints file and those it includes."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints" / name).read_text().splitlines():
        if line.startswith("-c "):
            found |= pins(line.removeprefix("-c ").strip())
        elif line and not line.startswith("#"):
            package, version = line.split("==")
            found[package] = Version(version)
    return found


def test_the_root_is_no_distribution() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "project" not in config
    assert config["tool"]["hatch"]["envs"]["default"]["skip-install"] is True


@pytest.mark.parametrize("dist", DISTS)
def test_distributions_are_alike(dist: str) -> None:
    config = pyproject(dist)
    assert config["build-system"]["build-backend"] == "hatchling.build"
    project = config["project"]
    assert project["name"] == dist
    assert project["dynamic"] == ["version"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert project["license"] == "Apache-2.0"
    assert config["tool"]["hatch"]["version"]["path"] == "../../VERSION"
    folder = ROOT / "packages" / dist
    assert (folder / "README.md").is_file()
    assert (folder / "src" / dist.replace("-", "_") / "py.typed").is_file()
    assert list((folder / "tests").glob("test_*.py"))
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("dist", DISTS)
def test_siblings_are_ranges_that_hold_this_version(dist: str) -> None:
    for text in pyproject(dist)["project"].get("dependencies", []):
        requirement = Requirement(text)
        if requirement.name in DISTS:
            assert VERSION in requirement.specifier, text
            assert {spec.operator for spec in requirement.specifier} == {">=", "<"}, text


def test_minimums_are_the_lower_bounds() -> None:
    lowest = pins("minimums.txt")
    seen = {"numpy"}  # no dependency of ours: the one that the lowest matplotlib fits
    for dist in DISTS:
        project = pyproject(dist)["project"]
        extras = project.get("optional-dependencies", {}).values()
        for text in itertools.chain(project.get("dependencies", []), *extras):
            requirement = Requirement(text)
            if requirement.name in DISTS:
                continue
            (bound,) = [Version(spec.version) for spec in requirement.specifier if spec.operator == ">="]
            pin = lowest[requirement.name]
            assert pin.release[: len(bound.release)] == bound.release, (
                f"{dist} promises {text}, tested is {pin}"
            )
            seen.add(requirement.name)
    assert seen == lowest.keys()


def test_everyday_pins_every_tool() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    names = {entry for entries in groups.values() for entry in entries if isinstance(entry, str)}
    assert names <= pins("everyday.txt").keys()


def test_pre_commit_runs_the_pinned_tools() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    used = re.findall(r"\[(\w+)==([\w.]+)\]", text)
    assert used
    everyday = pins("everyday.txt")
    assert all(Version(version) == everyday[name] for name, version in used), used


def test_citation_names_this_version() -> None:
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert Version(cited) == VERSION


def test_trios_are_the_ones_in_the_table() -> None:
    rows = re.findall(
        r"^\| (\d\S+).*? \| (\S+) \| (\S+) \|$", (ROOT / "constraints/README.md").read_text(), re.MULTILINE
    )
    files = sorted((ROOT / "constraints").glob("vllm-*.txt"))
    assert [f"vllm-{vllm}.txt" for vllm, _, _ in rows] == [path.name for path in files]
    for vllm, torch, triton in rows:
        trio = {"vllm": Version(vllm), "torch": Version(torch), "triton": Version(triton)}
        assert pins(f"vllm-{vllm}.txt") == trio
