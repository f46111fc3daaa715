# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ir_platform

README = Path(__file__).parent.parent / "README.md"
MODULES = [
    "ir_platform",
    *(f"ir_platform.{module.name}" for module in pkgutil.iter_modules(ir_platform.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    assert "cpu" in capsys.readouterr().out


def test_the_readme_names_every_public_function() -> None:
    text = README.read_text(encoding="utf-8")
    for name in ("devices", "target", "notes", "describe_devices", "refresh", "MIN_BATCH_INVARIANT_SM"):
        assert name in ir_platform.__all__
        assert f"`{name}" in text
