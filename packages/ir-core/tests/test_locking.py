# SPDX-License-Identifier: Apache-2.0
"""IR_LOCK: exactly the implementations of the file run, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ir_core
from ir_core import lock_file, ops
from ir_core.errors import LockError

pytestmark = pytest.mark.usefixtures("alone")
X = torch.zeros(2, 4)


@pytest.fixture(autouse=True)
def forget():
    yield
    lock_file.refresh()


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``locked({"rms_norm": {...}})``: put a lock file in force."""
    file = tmp_path / "ir.lock"

    def lock(wanted: object, text: str | None = None) -> Path:
        file.write_text(json.dumps({"format": 1, "ops": wanted}) if text is None else text)
        monkeypatch.setenv("IR_LOCK", str(file))
        ir_core.refresh()
        return file

    return lock


def call() -> torch.Tensor:
    return ops.rms_norm(X, None, 1e-6)


def test_what_is_locked_runs(locked):
    locked({"rms_norm": lock_file.describe(ops.rms_norm.impls["portable"])})
    with ops.rms_norm.set_priority(["portable"]):
        call()
        call()
    with pytest.raises(LockError, match=r"provider: locked 'portable', here 'native'"):
        call()


@pytest.mark.parametrize("key", ["provider", "distribution", "version", "digest"])
def test_any_difference_is_an_error_that_quotes_both(locked, key: str):
    wanted = lock_file.describe(ops.rms_norm.impls["native"])
    locked({"rms_norm": {**wanted, key: "other"}})
    for _ in range(2):
        with pytest.raises(LockError, match=f"{key}: locked 'other', here '{wanted[key]}'") as caught:
            call()
    assert "ir-core freeze" in str(caught.value)


def test_an_op_that_is_not_in_the_file(locked):
    locked({})
    with pytest.raises(LockError, match="'rms_norm' is not in the lock file"):
        call()


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "{}", '{"format": 2, "ops": {}}', '{"format": 1}', '{"format": 1, "ops": 3}'],
)
def test_files_that_cannot_be_read(locked, text: str):
    locked(None, text)
    with pytest.raises(LockError, match="cannot be read"):
        call()


def test_no_such_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("IR_LOCK", str(tmp_path / "nope"))
    ir_core.refresh()
    with pytest.raises(LockError, match="nope"):
        call()


@pytest.mark.parametrize("value", ["", "  "])
def test_unset_and_empty_lock_nothing(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("IR_LOCK", value)
    ir_core.refresh()
    call()


def test_the_digest_covers_the_source(tmp_path: Path):
    impl = ops.rms_norm.impls["portable"]
    assert impl.uuid() == impl.uuid()
    assert impl.uuid() != ops.rms_norm.impls["native"].uuid()
    assert set(lock_file.describe(impl)) == {"order", "provider", "distribution", "version", "digest"}
    native = ops.rms_norm.impls["native"]
    assert set(lock_file.describe(native)) == {"provider", "distribution", "version", "digest"}
