# SPDX-License-Identifier: Apache-2.0
"""What commands say of verdicts, and, in a line and before the work, of what cannot be written or imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ir_core
from ir_core.cli import main
from ir_core.verification.certificate import Certificate
from ir_core.verification.session import Report, conditional


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_lock_file_keeps_its_requirement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "ir.lock"
    for flag, wanted in (("--batch-invariant", True), ("--any", False)):
        assert run(capsys, "freeze", flag, "--output", str(lock))[0] == 0
        assert json.loads(lock.read_text())["batch_invariant"] is wanted
        assert run(capsys, "freeze", "--check", str(lock))[0] == 0
    with ir_core.scope(batch_invariant=True):
        assert run(capsys, "freeze", "--check", str(lock))[0] == 0
    assert run(capsys, "freeze", "--batch-invariant", "--check", str(lock))[0] == 1


@pytest.mark.parametrize("setup", ["nosuchmodule", "json:nosuchfunction"])
def test_a_setup_that_is_not_there(setup: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "verify", "--setup", setup)
    assert code == 3
    assert f"--setup {setup} cannot be imported" in err and "nosuch" in err and "Traceback" not in err


def test_the_certificates_folder_is_tried_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("IR_CACHE_DIR", str(file))
    ran: list[Any] = []
    monkeypatch.setattr("ir_core.verification.verify", lambda *args, **kwargs: ran.append(args))
    code, _, err = run(capsys, "verify", "rms_norm/portable")
    assert code == 3 and not ran
    assert "Certificates cannot be written" in err and "IR_CACHE_DIR" in err


def test_no_budget_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", "--budget", "0")[0] == 2
    assert run(capsys, "verify", "--budget", "0.0s")[0] == 2


def certificate(op: str, provider: str, verdict: Any) -> Certificate:
    return Certificate(op, provider, "ir-core", "0", "uuid", {"kind": "cpu"}, True, verdict)


def verify(
    found: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """``ir-core verify`` where the verification itself has found this."""
    monkeypatch.setattr("ir_core.verification.verify", lambda *args, **kwargs: found)
    return run(capsys, "verify", "rms_norm", *words)


def test_a_native_reduction_is_conditional_and_its_refutation_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conditional("rms_norm", "native") and not conditional("rms_norm", "portable")
    found = Report(
        [certificate("rms_norm", "native", "refuted"), certificate("rms_norm", "portable", "certified")]
    )
    code, out, err = verify(found, monkeypatch, capsys)
    assert code == 0 and not found.failed
    assert "conditionally" in out and "under conditions only: no failure" in " ".join(err.split())
    broken = Report([certificate("rms_norm", "portable", "refuted")])
    assert verify(broken, monkeypatch, capsys)[0] == 1 and broken.failed


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["certified"], 0), (["certified", "inconclusive"], 1), (["refuted"], 1), ([], 1)],
)
def test_require_certified_makes_anything_less_a_failure(
    verdicts: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Report([certificate("rms_norm", "native", verdict) for verdict in verdicts])
    assert verify(found, monkeypatch, capsys)[0] == 0
    assert verify(found, monkeypatch, capsys, "--require", "certified")[0] == code


def test_list_says_that_a_native_reduction_is_conditional(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        line.split()[0]: line for line in run(capsys, "list", "rms_norm")[1].splitlines() if line.split()
    }
    assert "conditional" in lines["native"] and "conditional" not in lines["portable"]


def test_the_plot_drops_nothing_silently(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ir_core.cli import bench_plot

    cases = [
        {
            "shape": [n, 64],
            "provider": "native",
            "microseconds": 1.0,
            "share_of_copy": share,
            "spread": spread,
        }
        for n, share, spread in ((1, 0.02, 0.01), (64, 0.05, 0.9), (4096, 0.03, 0.02))
    ]
    cases.append({"shape": [1, 64], "provider": "other", "reason": "needs SM >= 9.0"})
    result = {"op": "rms_norm", "dtype": "float32", "machine": {"target": "cpu"}, "cases": cases}
    bench_plot.draw(result, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "other, 1x64: not run (needs SM" in text  # and not left out
    assert ">4,096<" in text and ">64<" in text  # numbers of rows as they are, not powers of ten
    assert "spread over 50%" in text
    assert "own copy of as many bytes" not in text  # it would press lines at 5% flat


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--version"]])
def test_a_full_disk_is_said_in_a_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ir_core", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 3
    assert "Standard output cannot be written" in done.stderr and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
