# SPDX-License-Identifier: Apache-2.0
"""Fusions that would replace a norm: off in batch-invariant mode, refused in strict mode, untouched otherwise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import ir_core
from ir_vllm_adapter import fusion, log
from ir_vllm_adapter.attachment import Attachment
from ir_vllm_adapter.errors import RefusedError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "ATTACHED", Attachment())
    monkeypatch.setattr(log, "LINES", [])


def passes(**values: object) -> SimpleNamespace:
    return SimpleNamespace(
        **({"fuse_norm_quant": None, "fuse_act_quant": None, "fuse_allreduce_rms": None} | values)
    )


def test_asked_for_is_switched_off_with_a_line() -> None:
    config = passes(fuse_norm_quant=True)
    with ir_core.scope(batch_invariant=True):
        fusion.settle(config)
    assert config.fuse_norm_quant is False
    (line,) = log.LINES
    assert "fuse_norm_quant is switched off" in line
    assert "_C.rms_norm_*_quant" in line


def test_defaults_cannot_switch_one_on_any_more() -> None:
    """vLLM fills in what is None, after this: False stays."""
    config = passes()
    with ir_core.scope(batch_invariant=True):
        fusion.settle(config)
    assert config == passes(fuse_norm_quant=False, fuse_allreduce_rms=False)
    assert log.LINES == []
    assert set(fusion.ATTACHED.fusions_off) == {"fuse_norm_quant", "fuse_allreduce_rms"}


def test_without_the_requirement_nothing_is_touched() -> None:
    config = passes(fuse_norm_quant=True)
    with ir_core.scope(batch_invariant=False):
        fusion.settle(config)
    assert config == passes(fuse_norm_quant=True)


def test_strict_refuses_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_STRICT", "1")
    config = passes(fuse_allreduce_rms=True)
    with (
        ir_core.scope(batch_invariant=True),
        pytest.raises(RefusedError, match="fuse_allreduce_rms") as caught,
    ):
        fusion.settle(config)
    assert "-cc.pass_config.fuse_allreduce_rms=False" in str(caught.value)


def test_a_field_that_a_version_lacks_is_not_invented() -> None:
    config = SimpleNamespace(fuse_norm_quant=None)
    with ir_core.scope(batch_invariant=True):
        fusion.settle(config)
    assert vars(config) == {"fuse_norm_quant": False}
