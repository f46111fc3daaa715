# SPDX-License-Identifier: Apache-2.0
"""Ops, implementations, policies and errors travel between processes by name or by value."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import ir_core
from ir_core import errors, ops
from ir_core.errors import IrError, UnknownOpError

pytestmark = pytest.mark.usefixtures("alone")


def trip(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("again", [trip, copy.copy, copy.deepcopy])
def test_what_has_a_name_stays_the_same_object(again):
    op = ops.fused_add_rms_norm
    assert again(op) is op
    assert again(op.maybe_inplace) is op.maybe_inplace
    assert again(op.impls["portable"]) is op.impls["portable"]


def test_a_module_that_holds_ops_is_copied():
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op, self.inplace = ops.rms_norm, ops.fused_add_rms_norm.maybe_inplace

    copied = copy.deepcopy(Norm())
    assert copied.op is ops.rms_norm
    assert copied.inplace is ops.fused_add_rms_norm.maybe_inplace


def test_an_op_that_is_gone():
    op = ir_core.register_op(one)
    data = pickle.dumps(op)
    op.unregister()
    with pytest.raises(UnknownOpError):
        pickle.loads(data)


def one(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def test_values_travel_as_values():
    asked = ir_core.Policy(
        batch_invariant=True, ops={"rms_norm": ir_core.OpPolicy(deny={"native"})}, vouched={"*"}
    )
    outcome = ir_core.select(
        ops.rms_norm, asked, ir_core.Target("cpu", "cpu"), (torch.zeros(1, 4), None, 0.0, None)
    )
    for value in (asked, outcome, ir_core.Target("cpu", "cpu"), ir_core.parse_requirement("sm>=9.0 | cpu")):
        assert trip(value) == value
        assert hash(trip(value)) == hash(value)


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, IrError)]
)
def test_errors_keep_what_they_say(kind: type[IrError]):
    error = kind("What.", why="Why.", fix="Fix.")
    again = trip(error)
    assert type(again) is kind
    assert (again.what, again.why, again.fix) == ("What.", "Why.", "Fix.")
    assert str(again) == str(error) == "What.\nWhy.\nFix."
