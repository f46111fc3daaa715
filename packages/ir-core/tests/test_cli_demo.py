# SPDX-License-Identifier: Apache-2.0
"""The main job on few tokens: what it records, what it compares, and that it can fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import ir_core
from ir_core.cli import demo, main
from ir_core.cli.demo_model import Decoder, Norm


@pytest.fixture(autouse=True)
def core_alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("IR_PACKS", "")
    ir_core.refresh()
    yield
    monkeypatch.undo()
    ir_core.refresh()


def test_every_norm_of_the_model_is_recorded() -> None:
    model = Decoder(1, torch.float32)
    logits, record = model(torch.arange(5), record=True)
    assert logits.shape == (5, 256)
    assert set(record) == set(model.norms())
    assert len(record) == 5
    given, got = record["layers.0.q_norm"]
    assert given[0].shape == got[0].shape == (5, 16, 128)
    given, got = record["layers.0.post_attention_norm"]
    assert [t.shape for t in (*given, *got)] == [(5, 1024)] * 4
    assert torch.equal(got[1], given[0] + given[1])
    again, empty = model(torch.arange(5))
    assert torch.equal(again, logits)
    assert empty == {}


def test_a_norm_that_changes_its_bits_is_found() -> None:
    """The record of another batch than the one compared with stands for an implementation that is not invariant."""
    norm = Norm(64, "here")
    given = (torch.randn(8, 64),)
    with ir_core.scope(batch_invariant=True):
        got = demo.call(norm, given)
        wrong = (got[0].clone(),)
        wrong[0][3, 7] += 1e-6
        good = demo.compare("here", norm, (given, got), (given, got), rows=8)
        bad = demo.compare("here", norm, (given, wrong), (given, got), rows=8)
    assert good["holds"]
    assert not bad["holds"]
    assert bad["alone_against"]["eager run"] == {"rows": 8, "different": 1}
    assert bad["alone_against"]["compiled run"]["different"] == 0


def test_portable_keeps_a_lone_row() -> None:
    found = demo.lone_row(batch=2)
    assert found["portable"]["different_rows"] == 0


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"The main job, on real input.")
    with pytest.raises(SystemExit) as stop:
        main(["demo", str(text), "--layers", "1", "--rows", "8", "--json"])
    assert not stop.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["holds"]
    assert result["tokens"] == 28
    assert result["lowered"] in (
        "fused_add_rms_norm: portable*1; rms_norm: portable*4",
        "as the compile cache has it",
    )
    assert {site["op"] for site in result["norms"]} == {"rms_norm", "fused_add_rms_norm"}
    assert all(site["provider"] == "portable" for site in result["norms"])
    assert all(
        set(site["alone_against"]) == {"2", "64", "300", "eager run", "compiled run"}
        for site in result["bits"]
    )
