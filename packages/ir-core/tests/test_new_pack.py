# SPDX-License-Identifier: Apache-2.0
"""``ir-core new-pack``: what it writes, and what it refuses. ``nox -s packs`` builds and tests what it writes."""

from __future__ import annotations

import ast
import json
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from ir_core import KernelPack
from ir_core.cli import main

FILES = {
    "pyproject.toml",
    "README.md",
    "src/wave_kernels/__init__.py",
    "src/wave_kernels/pack.py",
    "src/wave_kernels/triton_rms_norm.py",
    "src/wave_kernels/torch_rms_norm.py",
    "tests/test_contract.py",
    "tests/test_pack.py",
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr in one line."""
    with pytest.raises(SystemExit) as stop:
        main(["new-pack", *words])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, " ".join(captured.err.replace("│", " ").split())


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str]) -> Path:
    code, _, err = run(capsys, "wave-kernels")
    assert code == 0, err
    return Path("wave-kernels")


def test_it_writes_a_distribution(made: Path) -> None:
    assert {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} == FILES
    for path in made.rglob("*.py"):
        ast.parse(path.read_text())
        assert "$" not in path.read_text(), f"{path} has a word that was not filled in"
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["name"] == "wave-kernels"
    assert project["entry-points"]["ir_core.kernels"] == {"wave": "wave_kernels.pack:PACK"}
    assert "test" in project["optional-dependencies"]


def test_its_data_names_what_is_there(made: Path) -> None:
    pack = KernelPack.parse(runpy.run_path(str(made / "src/wave_kernels/pack.py"))["PACK"])
    assert [(spec.op, spec.provider) for spec in pack.implementations] == [
        ("rms_norm", "wave_triton"),
        ("rms_norm", "wave_torch"),
    ]
    for spec in pack.implementations:
        assert spec.batch_invariant
        for path in filter(None, (spec.impl, spec.supports_args)):
            module, _, name = str(path).partition(":")
            tree = ast.parse((made / "src" / f"{module.replace('.', '/')}.py").read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
def test_its_torch_implementation_keeps_the_bits_of_a_row(made: Path, n: int) -> None:
    rms_norm = runpy.run_path(str(made / "src/wave_kernels/torch_rms_norm.py"))["rms_norm"]
    x, weight = torch.randn(9, n), torch.randn(n)
    together = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(together, torch.nn.functional.rms_norm(x, (n,), weight, 1e-6))
    alone = torch.cat([rms_norm(row[None], weight, 1e-6) for row in x])
    assert torch.equal(together.view(torch.int32), alone.view(torch.int32))


def test_json_lists_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "wave.kernels", "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["folder"], data["module"]) == ("wave.kernels", "wave_kernels")
    assert set(data["files"]) == FILES


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = Path("wave-kernels")
    if kind == "folder":
        there.mkdir()
    elif kind == "file":
        there.touch()
    else:
        there.symlink_to("nowhere")
    code, _, err = run(capsys, "wave-kernels")
    assert code == 3
    assert "wave-kernels exists already." in err and "Choose another name" in err
    assert not there.is_dir() or not list(there.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../wave", "is no name for a distribution"),
        ("Wave", "is no name for a distribution"),
        ("9wave", "is no name for a distribution"),
        ("wave--kernels", "is no name for a distribution"),
        ("wave-kernels\n", "is no name for a distribution"),
        ("", "is no name for a distribution"),
        ("class", "is a keyword of Python"),
        ("json", "would bring the module json"),
        ("ir-core", "would bring the module ir_core"),
    ],
)
def test_a_name_that_cannot_be_one(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, name)
    assert code == 2
    assert says in err
    assert not list(Path().iterdir())


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = run(capsys, "wave-kernels")
    assert code == 3
    assert "wave-kernels cannot be written. No space left on device." in err
