# SPDX-License-Identifier: Apache-2.0
"""The values that verification tries come from the op: its documented values and its defaults."""

from __future__ import annotations

import pytest
import torch

import ir_core
from ir_core import ops
from ir_core.errors import SchemaError
from ir_core.verification import variants
from ir_core.verification.calls import Setting


def sample(op: ir_core.IrOp) -> tuple[object, ...]:
    return op.apply_arg_defaults(op.generate_inputs(num_tokens=2, hidden_size=8, dtype=torch.float32))


def test_the_default_of_an_option_is_verified_although_the_generator_says_otherwise() -> None:
    op = ops.gelu_and_mul_sparse
    assert sample(op)[2] == "tanh" and op.signature.parameters["approximate"].default == "none"
    found = variants.variants_of(op, sample(op))
    assert found["approximate=none"] == {"approximate": "none"}
    assert variants.apply(op, Setting("float32", 8, "approximate=none"), sample(op))[2] == "none"


def test_a_parameter_of_the_same_name_in_another_op_means_nothing() -> None:
    """Another author's ``approximate`` is no GELU's, and ``variance_size`` no norm's."""

    def other(x: torch.Tensor, approximate: str, variance_size: int) -> torch.Tensor:
        return x * float(len(approximate) + variance_size)

    op = ir_core.register_op(other, name="scratch_other")
    op.register_input_generator(
        lambda num_tokens, hidden_size, dtype: (torch.randn(num_tokens, hidden_size, dtype=dtype), "fast", 3)
    )
    assert variants.variants_of(op, sample(op)) == {}
    op.register_values(approximate=("fast", "slow"), variance_size={"all": lambda hidden: hidden})
    assert set(variants.variants_of(op, sample(op))) == {"approximate=slow", "variance_size=all"}
    assert variants.apply(op, Setting("float32", 8, "variance_size=all"), sample(op))[2] == 8
    with pytest.raises(SchemaError, match="no parameter 'epsilon'"):
        op.register_values(epsilon=(1e-6,))


def test_every_argument_that_is_no_activation_gets_other_values() -> None:
    args = sample(ops.rms_norm)
    assert variants.statics_of(ops.rms_norm, args) == ["weight", "epsilon", "variance_size"]
    other = ops.rms_norm.apply_arg_defaults(
        ops.rms_norm.generate_inputs(num_tokens=2, hidden_size=8, dtype=torch.float32)
    )
    setting = Setting("float32", 8)
    made = variants.redraw(ops.rms_norm, "#1", setting, args, other)
    assert made[0] is args[0] and torch.equal(made[1], other[1])
    assert made[2] != args[2] and made[3] == 4
    assert variants.redraw(ops.rms_norm, "epsilon#1", setting, args, other)[1] is args[1]
