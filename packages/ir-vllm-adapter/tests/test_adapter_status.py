# SPDX-License-Identifier: Apache-2.0
"""`python -m ir_vllm_adapter status` where there is no vLLM, and the table's text."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from ir_vllm_adapter import __main__ as command
from ir_vllm_adapter import plugin, status
from ir_vllm_adapter.attachment import Attachment

no_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")


@no_vllm
def test_without_vllm_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status"]) == 0
    out = capsys.readouterr().out
    assert "vLLM is not installed" in out
    assert "rms_norm" in out


@no_vllm
def test_json_has_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["vllm"]["verdict"] == "absent"
    assert not data["enabled"]
    assert {row["op"] for row in data["ops"]} >= {"rms_norm", "fused_add_rms_norm"}
    assert [row["layer"] for row in data["layers"]] == ["GemmaRMSNorm", "RMSNorm"]


def test_plugins_that_vllm_may_not_load_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert not status.plugin_allowed()
    monkeypatch.setenv("VLLM_PLUGINS", "other,ir_vllm_adapter")
    assert status.plugin_allowed()
    monkeypatch.delenv("VLLM_PLUGINS")
    assert status.plugin_allowed()


def test_the_table_lines_up_and_names_exceptions() -> None:
    data = {
        "adapter": "1.2.3",
        "vllm": {"version": "0.32.0", "verdict": "tested", "line": ""},
        "enabled": True,
        "batch_invariant": True,
        "target": {"name": "cuda:0 (NVIDIA H200), SM 9.0"},
        "ops": [
            {"op": "rms_norm", "seam": "IR", "order": ["triton_batch_invariant", "portable"],
             "candidates": [{"provider": "triton_batch_invariant", "distribution": "pack", "version": "9"}]},
        ],
        "layers": [{"layer": "RMSNorm", "count": 57, "seam": "layer when eager, IR when compiled"}],
        "fusions_off": {"fuse_norm_quant": "why"},
        "not_batch_invariant": ["4 RMSNormGated: reason"],
        "counters": {"graph:rms_norm/triton_batch_invariant": 57},
    }  # fmt: skip
    lines = status.render(data).splitlines()
    assert lines[0] == (
        "ir-vllm-adapter 1.2.3 in vLLM 0.32.0: batch-invariant mode, cuda:0 (NVIDIA H200), SM 9.0"
    )
    assert "  rms_norm  IR    triton_batch_invariant (pack 9)  portable" in lines
    assert "not batch-invariant: 4 RMSNormGated: reason" in lines


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "ATTACHED", Attachment())
