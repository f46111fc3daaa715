# SPDX-License-Identifier: Apache-2.0
"""The reference leaves nothing out, and pictures are what their commands make."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import ir_core
from ir_core import env
from ir_core.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", env.ALL)
def test_every_variable_is_in_the_reference(name: str) -> None:
    assert name in (DOCS / "reference" / "environment.md").read_text()


def test_every_constant_of_env_is_a_variable_of_the_project() -> None:
    text = Path(env.__file__).read_text()
    assert set(re.findall(r'^(\w+): Final = "', text, re.MULTILINE)) == set(env.ALL)


def test_a_page_that_offers_ir_strict_links_its_one_definition() -> None:
    """A second description would drift from the first: other pages say what follows for their subject, and link."""
    for page in ("use.md", "vllm.md", "verification.md", "compare.md"):
        text = (DOCS / page).read_text()
        assert "IR_STRICT=1" in text, page
        assert re.search(r"IR_STRICT=1`[^\n]*\]\(reference/environment\.md\)", text), page


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_every_command_is_in_the_reference(command: str) -> None:
    assert f"{{command-help}} {command}\n" in (DOCS / "reference" / "commands.md").read_text()


@pytest.mark.parametrize("name", sorted(set(ir_core.__all__) - {"__version__", "errors", "ops"}))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    if name in ("IrError", "IrWarning"):  # from the docstrings of ir_core.errors
        return
    text = (DOCS / "reference" / "api.md").read_text()
    assert re.search(rf"ir_core\.(lowering\.)?{name}$", text, re.MULTILINE), f"{name} is not in api.md"


def test_the_picture_is_what_its_command_draws() -> None:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "pictures" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == (DOCS / "pictures" / "five-verbs.svg").read_text()


def test_every_page_is_reachable() -> None:
    pages = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in DOCS.glob("**/*.md")
        if "_build" not in page.parts
    }
    listed = {"index"}
    for index in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(index.parent / name).relative_to(DOCS).as_posix() for name in names}
    assert listed == pages
