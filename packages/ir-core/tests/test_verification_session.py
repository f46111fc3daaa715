# SPDX-License-Identifier: Apache-2.0
"""Whole verifications: the real finds, the budget, the command, the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mutants
import pytest
import torch

from ir_core import ops
from ir_core.cli import main
from ir_core.errors import CertificateError, UnknownProviderError
from ir_core.verification import Case, evidence, heatmap, reproduce, shrinker, verify
from ir_core.verification.calls import Call
from ir_core.verification.session import implementations, target_for, why_not
from ir_core.verification.subject import Subject, threads

LONE = Call("float32", 65536, rows=1)


@pytest.fixture
def scratch() -> Any:
    yield mutants.register()
    mutants.unregister()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("IR_CACHE_DIR", str(tmp_path / "cache"))
    evidence.refresh()
    yield
    monkeypatch.undo()
    evidence.refresh()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def differs(subject: Subject, number: int) -> list[Case]:
    """The first lone row, of so many, that gets other bits than in a batch of 2."""
    found = []
    for start in range(number):
        case = Case("rows", LONE.but(start=start), LONE.but(rows=2, start=start))
        if subject.compare(case) is not None:
            found.append(case)
            break
    return found


@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm"])
def test_eager_native_is_refuted_at_one_row_of_65536(op: str) -> None:
    """torch splits a lone reduction over its threads; with one thread it does not."""
    with threads(2):
        subject = Subject(implementations([f"{op}/native"])[0], target_for("cpu"))
        found = differs(subject, 48)
        assert found
        assert "torch splits a reduction over a lone row over its 2 threads" in shrinker.mechanism(
            subject, found[0]
        )
        again = reproduce(subject.impl, found[0], device="cpu")
        assert again is not None and "elements in 1 row differ" in again
    with threads(1):
        assert not differs(Subject(subject.impl, target_for("cpu")), 12)


def test_portable_is_not_refuted_there() -> None:
    with threads(2):
        assert not differs(Subject(implementations(["rms_norm/portable"])[0], target_for("cpu")), 12)


def test_a_budget_is_kept_and_too_little_is_inconclusive() -> None:
    start = time.monotonic()
    report = verify(implementations(["rms_norm/portable"]), budget=1.0, fresh_process=False, save=False)
    (certificate,) = report.certificates
    assert certificate.verdict == "inconclusive"
    assert any(note.startswith("not reached") for note in certificate.skipped)
    assert not report.failed
    assert time.monotonic() - start < 30


def test_what_cannot_run_here_is_said() -> None:
    impl = implementations(["rms_norm/portable"])[0]
    assert why_not(impl, target_for("cpu")) == ""
    with pytest.raises(UnknownProviderError):
        implementations(["rms_norm/nobody"])


def test_selection_acts_on_what_was_found(scratch: dict[str, Any]) -> None:
    impl = scratch["scratch_norm/static_output"]
    with threads(1):
        report = verify([impl], budget=60, fresh_process=False, stop="first", device="cpu")
    assert report.failed and report.files[0].exists()
    with threads(1):
        found = evidence.evidence_for(impl, target_for("cpu"))
    assert found is not None and found.verdict == "refuted" and "overwritten" in found.detail


def test_command_json_and_exit_codes(scratch: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--setup", mutants.SETUP, "--device", "cpu")
    assert run("verify", "scratch_norm/scales_weight", "--budget", "2s", "--json", *options) == 1
    data = json.loads(capsys.readouterr().out)
    (certificate,) = data["certificates"]
    assert data["failed"] and certificate["verdict"] == "refuted"
    finding = certificate["findings"][0]
    assert finding["probe"] == "inputs" and "--case" in finding["command"]

    case = json.dumps(finding["case"])
    assert run("verify", "scratch_norm/scales_weight", "--case", case, *options) == 1
    assert "weight" in capsys.readouterr().out
    assert run("verify", "scratch_norm/canonical", "--case", case, *options) == 0
    assert "Nothing differs" in capsys.readouterr().out
    assert run("verify", "scratch_norm", "--case", case, *options) == 2
    assert run("verify", "scratch_norm/canonical", "--case", "nonsense", *options) == 3
    assert run("verify", "--budget", "soon") == 2


def test_command_carries_certificates(
    scratch: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("verify", "scratch_norm/returns_input", "--budget", "2s", "--setup", mutants.SETUP)
    bundle = tmp_path / "bundle.json"
    assert run("verify", "--export", str(bundle)) == 0
    monkeypatch.setenv("IR_CACHE_DIR", str(tmp_path / "elsewhere"))
    evidence.refresh()
    capsys.readouterr()
    assert run("verify", "--import", str(bundle), "--json") == 0
    (taken,) = json.loads(capsys.readouterr().out)
    assert taken == {"label": "scratch_norm/returns_input", "verdict": "refuted", "counts": True, "why": ""}
    assert evidence.evidence_for(scratch["scratch_norm/returns_input"], target_for("cpu")) is not None

    data = json.loads(bundle.read_text())
    data["certificates"][0]["device"]["name"] = "another"
    bundle.write_text(json.dumps(data))
    assert run("verify", "--import", str(bundle)) == 3  # changed by hand


def test_heat_map_counts(scratch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(1):
        made = heatmap.measure(
            Subject(scratch["scratch_norm/two_pass_for_one_row"], target_for("cpu")), seconds=2.0
        )
    rows = dict(zip(made.rows, made.differing, strict=True))
    assert rows[1][0] == 0
    assert any(count for count in rows[8] if count)
    json.dumps(made.to_dict())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CertificateError, match="matplotlib"):
        heatmap.draw(made, tmp_path / "map.png")


def test_heat_map_is_drawn(scratch: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with threads(1):
        made = heatmap.measure(Subject(scratch["scratch_norm/token_bucket"], target_for("cpu")), seconds=1.0)
    heatmap.draw(made, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_asking_for_evidence_imports_little() -> None:
    code = (
        "import sys, torch, ir_core; ir_core.ops.rms_norm(torch.ones(2, 8), None, 1e-6); "
        "bad = {'pytest', 'rich', 'typer', 'matplotlib', 'ir_core.verification.session', 'ir_core.testing'}; "
        "sys.exit(', '.join(sorted(bad & set(sys.modules))) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_op_of_the_core_can_be_verified() -> None:
    for op in (ops.rms_norm, ops.fused_add_rms_norm):
        subject = Subject(op.impls["portable"], target_for("cpu"))
        assert subject.compare(Case("rows", Call("float32", 33, rows=5), Call("float32", 33, rows=2))) is None
        assert torch.is_tensor(subject.run(Call("bfloat16", 33, rows=3))[0])
