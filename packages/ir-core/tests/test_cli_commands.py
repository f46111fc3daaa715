# SPDX-License-Identifier: Apache-2.0
"""The command line: data on stdout, talk on stderr, JSON for all, and exit codes that scripts can use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ir_core
from ir_core.cli import main, options

COMMANDS = ("list", "explain", "doctor", "bench", "freeze", "demo", "new-pack")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    code = stop.value.code
    return (0 if code is None else int(code)), captured.out, captured.err


def data(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command prints with --json."""
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(autouse=True)
def core_alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No pack that happens to be installed takes part."""
    monkeypatch.setenv("IR_PACKS", "")
    ir_core.refresh()
    yield
    monkeypatch.undo()
    ir_core.refresh()


def test_help_and_completion_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from ir_core.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    for words in (["--help"], ["explain", "--help"], ["--version"]):
        subprocess.run(
            [sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL, timeout=120
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_root_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    assert all(command in out for command in COMMANDS)
    assert "Exit codes" in out


def test_completion_knows_the_core_ops() -> None:
    from ir_core import catalog

    assert sorted(options.CORE_OPS) == catalog.op_names()
    assert "rms_norm" in options.complete_op("rms")
    assert options.complete_dtype("b") == ["bfloat16"]


def test_completion_knows_implementations_and_continues_a_priority() -> None:
    assert options.complete_implementation("rms_norm/p") == ["rms_norm/portable"]
    assert "rms_norm" in options.complete_implementation("rms")
    assert options.complete_priority("nat") == ["native"]
    assert options.complete_priority("native,")[0].startswith("native,")
    assert "native,portable" in options.complete_priority("native,po")
    assert not any(done.endswith(",native") for done in options.complete_priority("native,n"))


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("ir-core verify rms_norm/po", "2", "rms_norm/portable"),
        ("ir-core explain rms_norm --prefer nat", "4", "native"),
    ],
)
def test_shells_complete_implementations(words: str, position: str, expected: str) -> None:
    env = {**os.environ, "_IR_CORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
    done = subprocess.run(
        [sys.executable, "-m", "ir_core"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert expected in done.stdout.split(), done.stderr


def test_shell_completion_is_offered() -> None:
    env = {**os.environ, "_IR_CORE_COMPLETE": "complete_bash", "COMP_WORDS": "ir-core ex", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ir_core"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["explain"], done.stderr


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    ops = {entry["op"]: entry for entry in data(capsys, "list")["ops"]}
    assert set(options.CORE_OPS) <= set(ops)
    portable = next(i for i in ops["rms_norm"]["implementations"] if i["provider"] == "portable")
    assert portable["batch_invariant"]
    assert portable["distribution"] == "ir-core"
    _, out, err = run(capsys, "list", "rms_norm")
    assert "portable" in out and "fused_add_rms_norm" not in out
    assert "verify" in err


def test_explain_gives_every_candidate_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = data(
        capsys, "explain", "rms_norm", "--shape", "4x4096", "--dtype", "bfloat16", "--batch-invariant"
    )
    assert found["provider"] == "portable"
    assert {c["provider"] for c in found["candidates"]} == {"native", "portable"}
    assert all(c["reason"] for c in found["candidates"])
    assert found["arguments"]["x"] == "bfloat16[4x4096]"
    assert data(capsys, "explain", "rms_norm", "--any")["provider"] == "native"


def test_explain_takes_arguments_apart(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "2x3x128", "--dtype", "bf16", "--weight-dtype", "float32", "--arg", "epsilon=0.5")
    found = data(capsys, "explain", "rms_norm", *words, "--arg", "variance_size=64")["arguments"]
    assert found == {
        "x": "bfloat16[2x3x128]",
        "weight": "float32[128]",
        "epsilon": "0.5",
        "variance_size": "64",
    }
    assert data(capsys, "explain", "rms_norm", "--arg", "weight=none")["arguments"]["weight"] == "None"


def test_explain_shows_the_override(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IR_TARGET", "sm90")
    ir_core.refresh()
    _, out, _ = run(capsys, "explain", "rms_norm", "--device", "cuda")
    assert "cuda:0, SM 9.0 [IR_TARGET=sm90]" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("explain", "no_such_op"), 3),
        (("explain", "rms_norm", "--prefer", "nobody"), 3),
        (("explain", "rms_norm", "--shape", "4by4"), 2),
        (("explain", "rms_norm", "--dtype", "float17"), 2),
        (("explain", "rms_norm", "--arg", "nonsense=1"), 2),
        (("explain", "rms_norm", "--arg", "epsilon=abc"), 2),
        (("explain", "rms_norm", "--device", "toaster"), 2),
        (("demo", "--dtype", "int8"), 2),
        (("bench", "--dtype", "int8"), 3),
        (("bench", "--output", "/no/such/folder/out.json"), 3),
        (("bench", "--plot", "plot.without_a_meaning"), 3),
        (("freeze", "--output", "/no/such/folder/lock.json"), 3),
        (("nonsense",), 2),
    ],
)
def test_exit_codes(words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    found, out, err = run(capsys, *words)
    assert found == code
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_nothing_qualifies_is_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IR_PRIORITY", "rms_norm=deny:portable,native")
    ir_core.refresh()
    code, out, err = run(capsys, "explain", "rms_norm", "--batch-invariant")
    assert code == 1
    assert "denied by the policy" in out
    assert "No implementation qualifies" in err


def test_an_error_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "explain", "no_such_op", "--json")
    assert code == 3
    assert json.loads(out)["error"]["type"] == "UnknownOpError"
    assert "no_such_op" in err


def test_a_bug_is_70(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ir_core import catalog

    def broken(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(catalog, "get_op", broken)
    code, _, err = run(capsys, "explain", "rms_norm")
    assert code == 70
    assert "Traceback" in err and "bug" in err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    report = data(capsys, "doctor")
    assert {"Python", "torch", "triton", "vllm"} <= set(report["versions"])
    assert any(device["device"] == "cpu" for device in report["devices"])
    assert report["environment"]["VLLM_BATCH_INVARIANT"] == "1"
    assert report["selected"]["rms_norm"]["any"]["provider"] == "native"
    assert report["selected"]["rms_norm"]["batch_invariant"]["provider"] == "portable"
    assert report["broken"] == []
    code, out, _ = run(capsys, "doctor", "--strict")
    assert code == 0
    assert "rms_norm" in out


def test_doctor_names_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ir_core import catalog
    from ir_core.failure import Failure

    failure = Failure("acme", "1.0", "acme = acme:PACK", "load the pack", "OSError: no", "Traceback: here")
    monkeypatch.setattr(catalog, "failures", lambda: (failure,))
    code, out, _ = run(capsys, "doctor", "--strict")
    assert code == 1
    assert "acme 1.0" in out and "Traceback: here" in out
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["broken"][0]["distribution"] == "acme"


def test_freeze_and_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from ir_core.errors import LockError

    lock = tmp_path / "ir.lock"
    code, out, err = run(capsys, "freeze", "--batch-invariant", "--output", str(lock))
    assert code == 0, err
    assert "portable" in out and "IR_LOCK" in err
    assert json.loads(lock.read_text())["ops"]["rms_norm"]["provider"] == "portable"
    assert run(capsys, "freeze", "--batch-invariant", "--check", str(lock))[0] == 0
    code, out, _ = run(capsys, "freeze", "--any", "--check", str(lock))
    assert code == 1
    assert "rms_norm: provider: locked 'portable', here 'native'" in out

    monkeypatch.setenv("IR_LOCK", str(lock))
    ir_core.refresh()
    x = torch.randn(2, 8)
    with ir_core.scope(batch_invariant=True):
        ir_core.ops.rms_norm(x, None, 1e-6)
    with pytest.raises(LockError, match="differs from the lock file"):
        ir_core.ops.rms_norm(x, None, 1e-6)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format": 2, "ops": {}}', '{"format": 1, "ops": {"rms_norm": 3}}']
)
def test_a_lock_file_that_is_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "ir.lock"
    lock.write_text(content)
    code, out, err = run(capsys, "freeze", "--check", str(lock))
    assert (code, out) == (3, "") and str(lock) in err

    monkeypatch.setenv("IR_LOCK", str(lock))
    ir_core.refresh()
    code, out, err = run(capsys, "explain", "rms_norm", "--json")
    assert code == 3 and str(lock) in err
    assert str(lock) in json.loads(out)["lock"]
    code, out, _ = run(capsys, "doctor", "--strict")
    assert code == 1 and str(lock) in out
    code, _, err = run(capsys, "freeze", "--output", str(lock))  # the way out
    assert code == 0, err
    ir_core.refresh()
    assert data(capsys, "explain", "rms_norm")["lock"] is None


@pytest.mark.filterwarnings("ignore:IR_PACKS names")  # said there too
def test_doctor_names_what_ir_packs_misspells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IR_PACKS", "no-such-pack")
    ir_core.refresh()
    assert data(capsys, "doctor")["allowed_but_absent"] == ["no-such-pack"]
    assert "IR_PACKS allows no-such-pack" in run(capsys, "doctor")[1]


def test_without_torch_it_says_so() -> None:
    """Also where only the command is installed, as in an environment that was made without dependencies."""
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError('no torch', name='torch')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from ir_core.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for command in ("list", "explain rms_norm", "doctor", "verify", "bench", "freeze", "demo"):
        words = [sys.executable, "-c", code, *command.split(), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 3, f"{command}: {done.stderr}"
        assert "torch is not installed" in done.stderr
        assert json.loads(done.stdout)["error"]["what"].startswith("torch")


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no SIGPIPE on this system")
def test_a_reader_that_leaves_and_closed_streams() -> None:
    ours = f"{sys.executable} -m ir_core"
    for command in ("list", "explain rms_norm --json"):
        script = (
            f"{ours} {command} 2>/dev/null | true; echo ${{PIPESTATUS[0]}}; {ours} {command} >&-; echo $?"
        )
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout.split() == ["141", "0"], done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:IR_PACKS names")  # where the core is alone
def test_a_list_fits_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("IR_PACKS", "ir-kernels-triton")
    ir_core.refresh()
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in ir_core.ops.rms_norm.impls:
        assert f"  {name} " in out


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "bench.json"
    words = ("bench", "rms_norm", "--shape", "2x64", "--seconds", "0.01", "--output", str(saved))
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "portable" in out and "GB/s" in out
    cases = json.loads(saved.read_text())["cases"]
    assert {case["provider"] for case in cases} == {"native", "portable"}
    assert all(case["microseconds"] > 0 and case["share_of_copy"] > 0 for case in cases)


def test_bench_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ir_core.cli import bench_plot

    case = {"shape": [2, 64], "provider": "native", "microseconds": 1.0}
    case |= {"gigabytes_per_second": 1.0, "share_of_copy": 0.5}
    result = {"op": "rms_norm", "dtype": "float32", "machine": {"target": "cpu"}, "cases": [case]}
    bench_plot.draw(result, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_no_colours_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "explain", "rms_norm")
    assert "\x1b" not in out + err


def test_verify_is_mounted_when_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ir_core.cli.verify_cmd")
    code, out, _ = run(capsys, "verify", "--help")
    assert code == 0
    assert "--json" in out


def test_logs_obey_torch_logs_and_there_is_no_handler_of_our_own() -> None:
    code = (
        "import logging, torch, ir_core\n"
        "ir_core.refresh(); assert logging.getLogger('ir_core').handlers == HANDLERS\n"
        "with ir_core.scope(batch_invariant=True):\n"
        "    ir_core.ops.rms_norm(torch.randn(2, 8), None, 1e-6)\n"
        "print(logging.getLogger('ir_core').level)"
    )
    env = {key: value for key, value in os.environ.items() if key != "TORCH_LOGS"}
    quiet = subprocess.run(
        [sys.executable, "-c", code.replace("HANDLERS", "[]")],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert quiet.returncode == 0, quiet.stderr
    told = subprocess.run(
        [sys.executable, "-c", code.replace("== HANDLERS", "is not None")],
        env={**env, "TORCH_LOGS": "+ir_core"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "10"
    assert "portable" in told.stderr


def test_what_the_generator_takes_can_be_given_too(capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of a weight are no parameter of linear; its input generator takes them."""
    found = data(capsys, "explain", "linear", "--shape", "8x64", "--arg", "out=48", "--batch-invariant")
    assert found["arguments"]["weight"] == "bfloat16[48x64]" and found["arguments"]["bias"] == "None"
    assert run(capsys, "explain", "linear", "--arg", "outs=48")[0] == 2
