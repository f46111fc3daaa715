# SPDX-License-Identifier: Apache-2.0
"""``ir-core audit``: exit codes, JSON, pictures, and files of digests that another run is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ir_core.auditing.digests import digests
from ir_core.cli import main

MODELS = """
import torch

def clean():
    return torch.neg, torch.arange(64.0).view(16, 4)

def varies():
    def few(x):
        return x * (3.1 * 1.7) if len(x) > 4 else x * 3.1 * 1.7
    return few, (torch.randn(16, 64, generator=torch.Generator().manual_seed(0)),)

def scaled(by=2.0):
    return (lambda x: torch.tanh(x * by)), (torch.ones(16, 4),)

def other_kernel():
    def model(x):
        y = x * 2
        return y + torch.sigmoid(y)
    return model, (torch.ones(16, 4),)

def text():
    return "no model"
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A file of factories."""
    path = tmp_path / "models_of_the_test.py"
    path.write_text(MODELS)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one audit."""
    with pytest.raises(SystemExit) as stop:
        main(["audit", *words])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_nothing_varies(capsys: pytest.CaptureFixture[str], models: str) -> None:
    code, out, _ = run(capsys, f"{models}:clean")
    assert code == 0
    assert out.startswith(
        "nothing varies (16 rows against 1, 2, 8 of them, on cpu, 1 of 1 operations compared)"
    )


def test_something_varies(capsys: pytest.CaptureFixture[str], models: str, tmp_path: Path) -> None:
    picture = tmp_path / "where.png"
    code, out, _ = run(capsys, f"{models}:varies", "--json", "--picture", str(picture))
    data = json.loads(out)
    assert code == 1
    assert data["varies"]
    assert [(found["op"], found["kind"], found["begins"]) for found in data["findings"]] == [
        ("aten.mul", "path", 5)
    ]
    assert data["findings"][0]["place"]["file"] == models
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, f"{models}:varies")
    assert code == 1
    assert "aten.mul" in out and "another way" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["models"], 2, "MODULE:FACTORY"),
        (["no_such_module_anywhere:made"], 3, "gives no model"),
        (["{models}:no_such_factory"], 3, "gives no model"),
        (["{models}:text"], 3, "returns no callable"),
        (["{models}:clean", "--rows", "one"], 2, "no list of numbers"),
        (["{models}:clean", "--rows", "16"], 3, "No part of 16 rows"),
        (["{models}:clean", "--compiled", "--record", "x"], 2, "give one"),
        (["{models}:clean", "--compare", "{models}"], 3, "no file of digests"),
    ],
)
def test_bad_usage_says_what_to_do(
    capsys: pytest.CaptureFixture[str], models: str, words: list[str], code: int, says: str
) -> None:
    found, _, err = run(capsys, *(word.format(models=models) for word in words))
    assert found == code
    assert says in " ".join(err.split())


def test_a_run_against_its_own_digests(
    capsys: pytest.CaptureFixture[str], models: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "digests.json")
    assert run(capsys, f"{models}:other_kernel", "--record", file)[0] == 0
    code, out, _ = run(capsys, f"{models}:other_kernel", "--compare", file)
    assert code == 0
    assert "nothing varies (16 rows against the file, on cpu, 3 of 3 operations compared)" in out


def test_another_kernel_elsewhere_is_named(
    capsys: pytest.CaptureFixture[str], models: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "digests.json")
    run(capsys, f"{models}:other_kernel", "--record", file)
    library = torch.library.Library("aten", "IMPL")
    library.impl("sigmoid", lambda x: torch.nextafter(1 / (1 + (-x).exp()), torch.ones_like(x) * 2), "CPU")
    try:
        code, out, _ = run(capsys, f"{models}:other_kernel", "--compare", file, "--json")
    finally:
        library._destroy()
    data = json.loads(out)
    assert code == 1
    # The addition gets other inputs, and is not judged.
    assert [(found["op"], found["varied"]) for found in data["findings"]] == [("aten.sigmoid", 1)]
    assert data["judged"] == 2


def test_other_inputs_are_said_to_be_others(
    capsys: pytest.CaptureFixture[str], models: str, tmp_path: Path
) -> None:
    file = tmp_path / "digests.json"
    run(capsys, f"{models}:scaled", "--record", str(file))
    data = json.loads(file.read_text())
    for step in data["steps"]:
        step["inputs"] = [["0"] for _ in step["inputs"]]
    file.write_text(json.dumps(data))
    code, out, _ = run(capsys, f"{models}:scaled", "--compare", str(file))
    assert code == 1
    assert "inputs or weights are others" in " ".join(out.split())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_a_digest_sees_every_bit_and_no_layout(dtype: torch.dtype) -> None:
    x = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    assert digests(x) == digests(x.t().contiguous().t())
    assert len(digests(x)) == 5
    for row in range(5):
        changed = x.clone()
        changed[row, 3] = changed[row, 3] == 0 if dtype == torch.bool else changed[row, 3] + 1
        differing = [a != b for a, b in zip(digests(x), digests(changed), strict=True)]
        assert differing == [i == row for i in range(5)]
    swapped = x[:, [1, 0, 2, 3, 4, 5, 6]]
    assert torch.equal(swapped, x) or digests(swapped) != digests(x)
    assert digests(torch.zeros(2)) != digests(-torch.zeros(2))
