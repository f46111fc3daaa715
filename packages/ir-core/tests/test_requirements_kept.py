# SPDX-License-Identifier: Apache-2.0
"""A requirement that is set and cannot hold, or is misspelt, is said; one for the process holds in every thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ir_core
from ir_core import env, ops, platforms, policy
from ir_core.errors import EnvError, IrWarning, PolicyError, StrictError

ARGS = (torch.ones(2, 8), None, 1e-6)


def invariant() -> bool:
    return ir_core.current().batch_invariant


# -- disabled and batch-invariant ------------------------------------------------------------------------------


def test_disabled_and_batch_invariant_is_a_warning_that_names_both(environment):
    with pytest.warns(IrWarning, match="VLLM_BATCH_INVARIANT=1 and IR_DISABLE=1 contradict each other"):
        environment(VLLM_BATCH_INVARIANT="1", IR_DISABLE="1")
    assert ops.rms_norm.dispatch(*ARGS).provider == "native"
    chosen = ir_core.select(
        ops.rms_norm,
        ir_core.current(),
        platforms.target_of(torch.device("cpu")),
        ops.rms_norm.apply_arg_defaults(ARGS),
    )
    assert "requirement: batch-invariant, NOT MET: ops are disabled (IR_DISABLE)" in chosen.explain()
    assert "IR_DISABLE" in chosen.to_dict()["unmet"]


def test_disabled_and_batch_invariant_is_an_error_in_strict_mode(environment, monkeypatch):
    with pytest.raises(EnvError, match="VLLM_BATCH_INVARIANT=1 and IR_DISABLE=1") as caught:
        environment(VLLM_BATCH_INVARIANT="1", IR_DISABLE="1", IR_STRICT="1")
    assert "Unset IR_DISABLE" in str(caught.value)


def test_in_code_a_strict_policy_raises_when_an_op_is_called():
    with (
        ir_core.scope(batch_invariant=True, strict=True, disabled=True),
        pytest.raises(StrictError, match="must be batch-invariant and is disabled"),
    ):
        ops.rms_norm(*ARGS)
    with ir_core.scope(strict=True, disabled=True):
        assert ops.rms_norm(*ARGS).shape == (2, 8)


# -- threads ---------------------------------------------------------------------------------------------------


def test_enable_holds_in_every_thread_and_undo_takes_back_that_alone():
    go, results = threading.Event(), []

    def late() -> None:
        go.wait(30)
        results.append((invariant(), ops.rms_norm.dispatch(*ARGS).provider))

    thread = threading.Thread(target=late)
    thread.start()
    enabled = ir_core.enable(batch_invariant=True)
    ops.rms_norm.set_default(["native"])
    go.set()
    thread.join()
    assert results == [(True, "native")]
    assert invariant()
    enabled.undo()
    assert not invariant() and ops.rms_norm.get_priority() == ["native"], "what came after it stays"
    enabled.undo()
    with ir_core.enable(batch_invariant=True):
        ir_core.refresh()
        assert invariant()
    assert not invariant()


def test_enable_leaves_open_scopes_alone_and_checks_names():
    with ir_core.scope(batch_invariant=False), ir_core.enable(batch_invariant=True):
        assert not invariant()
    with pytest.raises(PolicyError, match="no field batch_invariante"):
        ir_core.enable(batch_invariante=True)
    assert policy._changes == []


def test_a_bound_function_takes_the_policy_along():
    with ThreadPoolExecutor(1) as pool:
        with ir_core.scope(batch_invariant=True):
            plain, bound = pool.submit(invariant), pool.submit(ir_core.bind_policy(invariant))
            kept = ir_core.bind_policy(invariant)
            assert (plain.result(), bound.result()) == (False, True)
            with ir_core.scope(batch_invariant=False):
                assert kept()
                assert not invariant()
        assert pool.submit(kept).result() and not pool.submit(invariant).result()
    assert kept.__name__ == "invariant"
    assert asyncio.run(asyncio.to_thread(kept))


# -- the environment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("IR_PRIORTY", "IR_PRIORITY"),
        ("IR_STRIKT", "IR_STRICT"),
        ("IR_DISABLED", "IR_DISABLE"),
        ("IR_PACK", "IR_PACKS"),
        ("IR_BATCH_INVARIANT", "VLLM_BATCH_INVARIANT"),
        ("IR_TARGETS", "IR_TARGET"),
    ],
)
def test_a_misspelt_variable_is_a_warning_with_the_nearest_name(name, meant, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.warns(IrWarning, match=f"{name} is set, and nothing reads it. Did you mean {meant}"):
        policy.reset_default()


@pytest.mark.parametrize("name", ["IR_REQUIRE_KINDS", "IR_PROOF_TARGET", "IR_REMOTE", "IR_TESTBED", *env.ALL])
def test_other_variables_are_not(name, monkeypatch):
    monkeypatch.setenv(name, "")
    assert env.misspelt() == {}


@pytest.mark.parametrize(
    ("listed", "hint"), [("nobody-has-this", "Install it"), ("t-nearbby", "Did you mean t-nearby")]
)
def test_a_name_in_the_allow_list_that_nothing_has_is_a_warning(site, monkeypatch, listed, hint):
    site.pack("t-nearby", "PACK = {'api': 1, 'implementations': []}")
    monkeypatch.setenv("IR_PACKS", f"{listed},T_Nearby")
    ir_core.refresh()
    with pytest.warns(IrWarning, match=f"IR_PACKS names {listed}, and no installed .* {hint}") as caught:
        ir_core.packs()
    assert len([each for each in caught if "IR_PACKS" in str(each.message)]) == 1


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "On", "y"])
def test_triton_is_interpreted_by_every_value_that_triton_takes(value, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert env.interpreted()
    assert "triton_interpreter" in platforms._cpu().features


@pytest.mark.parametrize("value", ["", "0", "false", " 1 ", "2", "t"])
def test_and_by_no_other(value, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert not env.interpreted()


def test_variables_are_read_in_one_module_of_the_core():
    from pathlib import Path

    readers = {
        path.name
        for path in Path(env.__file__).parent.rglob("*.py")
        if "os.environ.get" in path.read_text() or "os.getenv" in path.read_text()
    }
    assert readers <= {"env.py", "output.py"}  # COLUMNS, which is the terminal's


def test_no_warning_where_all_is_well():
    code = "import ir_core; ir_core.refresh(); ir_core.current(); ir_core.packs()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IR_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=kept, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 or "ir_core" not in done.stderr.rpartition("Traceback")[2], done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error", IrWarning)
        policy.reset_default()
