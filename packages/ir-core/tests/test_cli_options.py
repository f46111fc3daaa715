# SPDX-License-Identifier: Apache-2.0
"""Names of options do not depend on typer, and a core without its command line says what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from ir_core.cli.app import app

COMMAND: Any = typer.main.get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    yield "", COMMAND
    yield from COMMAND.commands.items()


def test_every_option_has_the_name_of_its_parameter_in_lower_case() -> None:
    """typer 0.27.0 to 0.27.2 name an option after its metavar where the two differ in case only: --DEVICE."""
    seen = 0
    for command, made in commands():
        for parameter in made.params:
            if parameter.param_type_name == "option":
                names = [*parameter.opts, *parameter.secondary_opts]
                assert all(name == name.lower() for name in names), (command, names)
                seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("explain", {"--shape", "--dtype", "--weight-dtype", "--device", "--prefer", "--arg", "--json"}),
        ("verify", {"--budget", "--device", "--case", "--report", "--export", "--import", "--seed"}),
        ("bench", {"--shape", "--dtype", "--device", "--provider", "--seconds", "--output", "--plot"}),
        ("freeze", {"--output", "--check", "--shape", "--dtype", "--device"}),
        ("audit", {"--rows", "--batch-dim", "--compiled", "--record", "--compare", "--picture"}),
        ("doctor", {"--strict", "--device"}),
    ],
)
def test_the_documented_options_are_there(command: str, options: set[str]) -> None:
    made = dict(commands())[command]
    assert options <= {name for parameter in made.params for name in parameter.opts}


@pytest.mark.parametrize("missing", ["rich", "typer"])
def test_without_its_extra_the_command_says_what_to_install(missing: str) -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)\n"
        "from ir_core.cli import main\n"
        "main(['list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert missing in done.stderr and "ir-core[cli]" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
