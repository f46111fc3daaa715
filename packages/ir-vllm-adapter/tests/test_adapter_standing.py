# SPDX-License-Identifier: Apache-2.0
"""The order for vLLM's lists is ir-core's selection, with only the question of the arguments left open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import IrOp, OpPolicy, platforms
from ir_vllm_adapter.standing import order, standing

CPU = platforms.target_of(torch.device("cpu"))


@pytest.fixture
def op() -> Iterator[IrOp]:
    def adapter_standing_op(x: Tensor, scale: float) -> Tensor:
        return x * scale

    made: IrOp = ir_core.register_op(adapter_standing_op, has_reduction=True)

    def implementation(x: Tensor, scale: float) -> Tensor:
        return x * scale

    def narrow(x: object, scale: float) -> bool:
        return False

    made.register_impl("partial", batch_invariant=True, supports_args=narrow)(implementation)
    made.register_impl("whole", batch_invariant=True)(implementation)
    made.register_impl("variant")(implementation)
    made.register_impl("elsewhere", batch_invariant=True, requires="sm>=9.0")(implementation)
    yield made
    made.unregister()


def test_invariant_mode_lists_invariant_candidates_up_to_one_that_takes_all(op: IrOp) -> None:
    with ir_core.scope(batch_invariant=True) as policy:
        assert order(op, policy, CPU) == ["partial", "whole"]
        reasons = {c.provider: c.reason for c in standing(op, policy, CPU)}
    assert reasons["variant"] == "not declared batch-invariant"
    assert "SM >= 9.0" in reasons["elsewhere"]
    assert "no policy names native" in reasons["native"]


def test_what_is_chosen_for_arguments_is_in_the_order(op: IrOp) -> None:
    with ir_core.scope(batch_invariant=True) as policy:
        chosen = op.dispatch(torch.ones(2, 3), 1.0).provider
        assert chosen == "whole"
        assert chosen in order(op, policy, CPU)


def test_a_named_variant_does_not_enter(op: IrOp) -> None:
    named = OpPolicy(prefer=("variant", "whole"))
    with ir_core.scope(batch_invariant=True, ops=((op.name, named),)) as policy:
        assert order(op, policy, CPU) == ["whole"]


def test_without_the_requirement_only_what_is_named(op: IrOp) -> None:
    with ir_core.scope(batch_invariant=False, ops=((op.name, OpPolicy(prefer=("variant",))),)) as policy:
        assert order(op, policy, CPU) == ["variant"]
    with ir_core.scope(batch_invariant=False) as policy:
        assert order(op, policy, CPU) == ["native"]
