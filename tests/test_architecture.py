# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE.md names every room there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
# What every package has, and what needs no word.
UNSPOKEN = {"__init__.py", "__main__.py", "version.py", "py.typed", "__pycache__"}


def rows(section: str) -> list[str]:
    """First column of the table under this heading, without backquotes."""
    body = TEXT.split(f"### {section}\n")[1].split("\n#")[0]
    return [
        name
        for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", body, re.MULTILINE)
        for name in re.findall("`(.+?)`", cell)
    ]


@pytest.mark.parametrize("dist", ["ir-core", "ir-platform", "ir-kernels-triton", "ir-vllm-adapter"])
def test_every_module_has_a_row(dist: str) -> None:
    source = ROOT / "packages" / dist / "src" / dist.replace("-", "_")
    there = {path.name + "/" * path.is_dir() for path in source.iterdir() if path.name not in UNSPOKEN}
    there = {name for name in there if not name.startswith(".")}
    said = rows(dist)
    assert len(said) == len(set(said)), f"{dist}: a module has two rows"
    assert set(said) - there == set(), f"{dist}: rows without a module"
    assert there - set(said) == set(), f"{dist}: modules without a row in ARCHITECTURE.md"


def test_what_is_around_them_exists() -> None:
    missing = [name for name in rows("Around them") if not (ROOT / name).exists()]
    assert not missing


def test_named_modules_exist() -> None:
    sources = [path for path in ROOT.glob("packages/*/src/*/**/*") if path.suffix == ".py" or path.is_dir()]
    known = {part for path in sources for part in (path.name, f"{path.parent.name}/{path.name}")}
    prose = TEXT.split("## Rooms")[0] + TEXT.split("## Where does")[1]
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+(?:\.py|/))`", prose)}
    missing = {name for name in named if name not in known and not (ROOT / name).exists()}
    assert not missing, sorted(missing)


def test_the_five_verbs_are_said_alike() -> None:
    verbs = "register ──▶ discover ──▶ select ──▶ call / lower ──▶ verify"
    assert verbs in TEXT
    assert verbs in (ROOT / "README.md").read_text()
