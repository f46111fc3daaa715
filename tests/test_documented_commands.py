# SPDX-License-Identifier: Apache-2.0
"""Every command and example in the documentation is run, or at least exists.

A ``console`` block holds commands behind ``$ ``. What is cheap is executed from the root of the repository;
what installs or takes minutes is checked for the sessions, files and options it names. A command of a kind
that nothing here knows is a failure: teach this file how to check it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "packages/*/README.md", "constraints/*.md", "changes/README.md", "docs/**/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)
FENCE = re.compile(r"^```(?P<kind>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
# Subcommands of ir-core that take minutes or many cores, or write a folder; their options are checked against --help.
LONG = {"bench", "demo", "new-pack", "verify"}


def blocks(kind: str) -> list[tuple[Path, int, str]]:
    """Page, line and text of every fenced block of this kind."""
    return [
        (page.relative_to(ROOT), text.count("\n", 0, match.start()) + 2, match["body"])
        for page in PAGES
        for text in [page.read_text()]
        for match in FENCE.finditer(text)
        if match["kind"] == kind
    ]


COMMANDS = [
    pytest.param(line.removeprefix("$ "), id=f"{page}:{start + offset}")
    for page, start, body in blocks("console")
    for offset, line in enumerate(body.splitlines())
    if line.startswith("$ ")
]
EXAMPLES = [pytest.param(body, id=f"{page}:{start}") for page, start, body in blocks("python")]


@cache
def sessions() -> tuple[frozenset[str], frozenset[str]]:
    """Names of the nox sessions, with and without parameters, and their tags."""
    command = [sys.executable, "-m", "nox", "--list"]  # --json would leave out what is not run by default
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^[*-] (\S+?)(?: \[(.*?)\])? ->", listed, re.MULTILINE)
    names = {name for full, _ in found for name in (full, full.split("(")[0])}
    return frozenset(names), frozenset(tag.strip() for _, tags in found for tag in tags.split(",") if tag)


def check_nox(words: list[str]) -> None:
    """The sessions behind -s and the tags behind -t exist."""
    names, tags = sessions()
    known = {"-s": names, "-t": tags}
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word
            if word == "--":
                return
        elif flag in known:
            assert word in known[flag], f"no {word} among {sorted(known[flag])}"


def check_paths(words: list[str]) -> None:
    """Whatever looks like a path of this repository is one."""
    for word in words:
        if "/" in word and "://" not in word:
            assert (ROOT / word.split("[")[0]).exists(), f"no {word} in the repository"


def check_help(module: str, words: list[str]) -> None:
    """The subcommand exists, and so does each of its options."""
    shown = execute(shlex.join([sys.executable, "-m", module, words[0], "--help"]), COLUMNS="200")
    missing = [word for word in words[1:] if word.startswith("--") and word.split("=")[0] not in shown]
    assert not missing, f"{words[0]} has no {missing}"


def execute(command: str, **env: str) -> str:
    """Run the command from the root with this interpreter first on PATH; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "NO_COLOR": "1", **env, "PATH": path}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def check(command: str) -> None:
    """Check one command, without what it is chained to."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case ["python3" | "python", "-m", "nox", *rest] | ["nox", *rest]:
            check_nox(rest)
        case ["python3" | "python", "-m", "pip", "install", *rest] | ["pip", "install", *rest]:
            check_paths(rest)
        case ["ir-core" as name, sub, *_] | ["python3" | "python", "-m", "ir_core" as name, sub, *_]:
            if sub in LONG:
                check_help("ir_core", words[words.index(name) + 1 :])
            else:
                execute(command)
        case ["python3" | "python", "-m", "ir_vllm_adapter", *rest] if (
            "MODEL_FOLDER" in rest
        ):  # starts an engine
            check_help("ir_vllm_adapter", rest)
        case ["python3" | "python", "-m", "ir_vllm_adapter", *_]:
            execute(command)
        case ["git" | "cd" | "pre-commit" | "vllm", *_]:
            pass
        case [".ci/run", *_]:
            check_paths(words)
        case ["python3" | "python", script, *_] if not script.startswith("-"):
            check_paths([script])
        case _:
            pytest.fail(f"nothing here knows how to check: {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    for part in re.split(r" (?:&&|\|\|) ", command):
        check(part)


@pytest.mark.parametrize("source", EXAMPLES)
def test_example(source: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(source)
    execute(shlex.join([sys.executable, str(script)]))


def test_the_two_commands_are_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for session in ("demo", "tests"):
        assert f"$ python3 -m pip install nox && python3 -m nox -s {session}\n" in text
