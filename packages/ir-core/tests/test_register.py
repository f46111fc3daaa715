# SPDX-License-Identifier: Apache-2.0
"""Register: explicit, checked, reversible."""

from __future__ import annotations

import gc
import re

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import torch_library
from ir_core.errors import (
    DuplicateError,
    InvalidNameError,
    ReservedProviderError,
    SchemaError,
    UnknownOpError,
    UnknownProviderError,
)

pytestmark = pytest.mark.usefixtures("alone")


def plus_one(x: Tensor) -> Tensor:
    """One more.

    And nothing else."""
    return x + 1


def plus_two(x: Tensor) -> Tensor:
    return x + 2


def pair(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    return x * scale, x_other * scale


def test_the_decorator_without_parentheses():
    @ir_core.register_op
    def bare(x: Tensor) -> Tensor:
        return x + 1

    assert isinstance(bare, ir_core.IrOp)
    assert ir_core.IrOp.registry["bare"] is bare
    assert torch.equal(bare(torch.zeros(2)), torch.ones(2))


def test_the_decorator_with_parentheses():
    @ir_core.register_op(name="named", activations=["y"], allow_inplace=False, has_reduction=True)
    def other(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    assert other.name == "named"
    assert other.activations == ("y",)
    assert other.activation_indices == (1,)
    assert other.has_reduction
    assert not other.batch_invariant
    assert other.impls["native"].spec.supported


def test_what_an_op_says_of_itself():
    op = ir_core.register_op(plus_one)
    assert repr(op) == "IrOp('plus_one')"
    assert str(op) == "IrOp('plus_one') - One more."
    assert op.schema == "(Tensor x) -> Tensor"
    assert op.params == op.activations == ("x",)
    assert op.torch_op is torch.ops.ir_core.plus_one.default
    assert op.batch_invariant
    assert not op.allow_inplace
    assert op.apply_arg_defaults((1,)) == (1,)
    bare = ir_core.register_op(plus_two)
    assert str(bare) == repr(bare) == "IrOp('plus_two')"


def test_defaults_are_appended():
    op = ir_core.register_op(pair)
    assert op.apply_arg_defaults((1, 2)) == (1, 2, 2.0)
    with pytest.raises(TypeError, match="x_other"):
        op.apply_arg_defaults((1,))


@pytest.mark.parametrize("name", ["Upper", "1st", "a-b", "a.b", "", "a b", "é", "a\n"])
def test_malformed_names(name: str):
    with pytest.raises(InvalidNameError, match="invalid") as caught:
        ir_core.register_op(plus_one, name=name)
    assert isinstance(caught.value, ValueError)
    op = ir_core.register_op(plus_one)
    with pytest.raises(InvalidNameError, match="Provider name"):
        op.register_impl(name)
    suggestion = re.search(r"For example '(.*)'", str(caught.value))
    assert suggestion
    ir_core.register_op(plus_two, name=suggestion[1])  # what the message proposes is accepted


@pytest.mark.parametrize("name", ["class", "name", "_dir", "in"])
def test_names_that_torch_has_no_place_for(name: str):
    with pytest.raises(InvalidNameError, match=r"torch"):
        ir_core.register_op(plus_one, name=name)
    assert name not in ir_core.IrOp.registry


@pytest.mark.parametrize(
    "name", ["miss", "route", "torch_op", "op", "self", "call", "native", "tracing", "_", "impl0"]
)
def test_names_like_those_of_the_generated_code(name: str):
    op = ir_core.register_op(plus_one, name=name)
    x = torch.zeros(2)
    for wrap in (True, False):
        with ir_core.enable_torch_wrap(wrap):
            assert all(torch.equal(op(x), torch.ones(2)) for _ in range(3))


def test_parameters_named_like_the_generated_code():
    def strange(
        self: Tensor, miss: float, route: int, torch_op: float = 1.0, op: int = 2, keyset: int = 3
    ) -> Tensor:
        return self * miss + route + torch_op + op + keyset

    strange_op = ir_core.register_op(strange, name="strange", activations=["self"])
    x = torch.ones(2, requires_grad=True)
    for wrap in (True, False):
        with ir_core.enable_torch_wrap(wrap):
            for _ in range(2):
                assert torch.equal(strange_op(x.detach(), 2.0, 1), torch.full((2,), 9.0))
                assert torch.equal(strange_op(miss=2.0, route=1, self=x, keyset=0), torch.full((2,), 6.0))


@pytest.mark.parametrize(
    "provider", ["op", "overloads", "_op", "default", "maybe_inplace", "donating", "x__inplace"]
)
def test_providers_that_cannot_be_overloads(provider: str):
    op = ir_core.register_op(plus_one)
    with pytest.raises(SchemaError, match="cannot be an overload"):
        op.register_impl(provider)(plus_two)
    with pytest.raises(InvalidNameError, match="torch cannot define"):
        op.register_impl("class")(plus_two)
    assert list(op.impls) == ["native"]
    op.register_impl("fine")(plus_two)


def test_duplicate_ops_name_the_first():
    ir_core.register_op(plus_one)
    with pytest.raises(DuplicateError, match="already registered") as caught:
        ir_core.register_op(plus_two, name="plus_one")
    assert "test_register.py:" in str(caught.value)
    assert isinstance(caught.value, AssertionError)


def test_duplicate_providers_name_the_first():
    op = ir_core.register_op(plus_one)
    op.register_impl("other")(plus_two)
    with pytest.raises(DuplicateError, match=r"'other' of op 'plus_one' is already registered"):
        op.register_impl("other")(plus_two)


@pytest.mark.parametrize("provider", ir_core.RESERVED_PROVIDERS)
def test_reserved_providers(provider: str):
    op = ir_core.register_op(plus_one)
    with pytest.raises(ReservedProviderError, match="reserved"):
        op.register_impl(provider)


def keyword_only(x: Tensor, *, scale: float) -> Tensor:
    return x * scale


def variadic(*x: Tensor) -> Tensor:
    return x[0]


def no_annotation(x) -> Tensor:
    return x


def listed(xs: list[Tensor]) -> Tensor:
    return xs[0]


def ours(_ir_x: Tensor) -> Tensor:
    return _ir_x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (keyword_only, "keyword-only parameter 'scale'"),
        (variadic, r"takes \*x"),
        (no_annotation, "has no schema"),
        (listed, "list of tensors"),
        (ours, "is ours"),
    ],
)
def test_functions_that_cannot_be_ops(function, message: str):
    with pytest.raises(SchemaError, match=message):
        ir_core.register_op(function)
    assert function.__name__ not in ir_core.IrOp.registry


def test_activations_must_be_parameters():
    with pytest.raises(SchemaError, match="no parameter z"):
        ir_core.register_op(plus_one, activations=["z"])


def test_by_default_what_begins_with_x_is_an_activation():
    op = ir_core.register_op(pair)
    assert op.activations == ("x", "x_other")


def test_an_in_place_op_returns_a_tensor_for_each_activation():
    def lost(x: Tensor, x_other: Tensor) -> Tensor:
        return x

    with pytest.raises(SchemaError, match=r"returns Tensor"):
        ir_core.register_op(lost, allow_inplace=True)
    gc.collect()
    op = ir_core.register_op(lost)  # the failure left nothing behind
    assert op.torch_op is torch.ops.ir_core.lost.default


# -- implementations


def other_name(y: Tensor) -> Tensor:
    return y


def other_type(x: int) -> Tensor:
    return torch.zeros(x)


def other_default(x: Tensor, x_other: Tensor, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return x, x_other


def test_an_implementation_has_the_schema_of_its_op():
    op = ir_core.register_op(plus_one)
    for function in (other_name, other_type, pair):
        with pytest.raises(SchemaError, match="another schema") as caught:
            op.register_impl("other")(function)
        assert op.schema in str(caught.value)  # both are quoted
    with pytest.raises(SchemaError, match="has no schema"):
        op.register_impl("other")(no_annotation)
    with pytest.raises(SchemaError, match="another schema"):
        ir_core.register_op(pair).register_impl("other")(other_default)


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (3, "cannot be called"),
        (lambda x, x_other: True, "other parameters"),
        (lambda x_other, x, scale=2.0: True, "other parameters"),
        (lambda x, x_other, *, scale=2.0: True, "keyword-only"),
        (lambda x, x_other, scale=3.0: True, "another default"),
        (lambda x, x_other, scale: True, "another default"),
    ],
)
def test_a_predicate_has_the_parameters_of_its_op(predicate, message: str):
    op = ir_core.register_op(pair)
    with pytest.raises(SchemaError, match=message) as caught:
        op.register_impl("other", supports_args=predicate)(pair)
    assert isinstance(caught.value, ValueError)


def test_in_place_needs_an_op_that_allows_it():
    op = ir_core.register_op(pair)
    with pytest.raises(SchemaError, match="in place"):
        op.register_impl("other", inplace=True)(pair)


def test_what_an_implementation_says_of_itself():
    op = ir_core.register_op(plus_one)
    impl = op.register_impl("other", supported=False, requires="sm>=9.0", opaque=True)(plus_two)
    assert isinstance(impl, ir_core.IrOpImpl)
    assert impl.op is op
    assert impl.provider == "other"
    assert impl.impl_fn is plus_two
    assert not impl.supported
    assert impl.supports_all_args
    assert impl.opaque
    assert not impl.inplace
    assert impl.batch_invariant
    assert repr(impl) == "IrOpImpl(plus_one/other)"
    assert "test_register.py:" in impl.origin
    assert op.supported_providers() == ["native"]


@pytest.mark.parametrize("reduction", [False, True])
def test_batch_invariance_is_inherited_from_the_op_and_can_be_said(reduction: bool):
    op = ir_core.register_op(plus_one, has_reduction=reduction)
    assert op.register_impl("inherits")(plus_two).batch_invariant is not reduction
    assert op.register_impl("yes", batch_invariant=True)(plus_two).batch_invariant is True
    assert op.register_impl("no", batch_invariant=False)(plus_two).batch_invariant is False
    assert op.impls["native"].batch_invariant is True


def test_requirements_decide_support():
    op = ir_core.register_op(plus_one)
    assert op.register_impl("cpu_only", requires="cpu")(plus_two).supported
    assert not op.register_impl("gpu_only", requires=ir_core.SM(min="9.9"))(plus_two).supported


# -- and undo


def test_unregistering_an_implementation():
    op = ir_core.register_op(plus_one)
    for _ in range(3):
        op.register_impl("other")(plus_two)
        with op.set_priority(["other"]):
            assert op(torch.zeros(1)).item() == 2
            assert torch.ops.ir_core.plus_one.other(torch.zeros(1)).item() == 2
        op.unregister_impl("other")
        assert op(torch.zeros(1)).item() == 1
        assert "other" not in op.impls
        with pytest.raises(NotImplementedError):
            torch.ops.ir_core.plus_one.other(torch.zeros(1))
    with pytest.raises(UnknownProviderError, match="It has native"):
        op.unregister_impl("other")
    with pytest.raises(ReservedProviderError):
        op.unregister_impl("native")


def test_an_implementation_that_is_gone_is_not_called_by_a_cached_selection():
    op = ir_core.register_op(plus_one)
    op.register_impl("other")(plus_two)
    op.set_default(["other", "native"])
    assert op(torch.zeros(1)).item() == 2
    op.unregister_impl("other")
    with pytest.raises(UnknownProviderError):
        op(torch.zeros(1))


def test_unregistering_an_op():
    op = ir_core.register_op(plus_one)
    op.unregister()
    assert "plus_one" not in ir_core.IrOp.registry
    with pytest.raises(UnknownOpError):
        ir_core.get_op("plus_one")
    with pytest.raises(NotImplementedError):
        op.torch_op(torch.zeros(1))


def test_registering_again_many_times():
    """Torch's table of operators must survive it: names, overloads with equal arguments, other schemas."""

    def wider(x: Tensor, shift: float = 5.0) -> Tensor:
        return x + shift

    for turn in range(12):
        function = (plus_one, plus_two, wider)[turn % 3]
        op = ir_core.register_op(function, name="again")
        for provider in ("one", "two")[: turn % 3]:
            op.register_impl(provider)(function)
            assert torch.equal(
                torch_library.of(op).provider(provider)(torch.zeros(2)), function(torch.zeros(2))
            )
        assert torch.equal(op(torch.zeros(2)), function(torch.zeros(2)))
        assert torch.equal(op.torch_op(torch.zeros(2)), function(torch.zeros(2)))
        assert op.torch_op(torch.zeros(2, device="meta")).shape == (2,)
        assert torch_library.op_of(op.torch_op) is op
        op.unregister()
        if turn % 5 == 0:
            gc.collect()


def test_an_op_that_comes_back_in_place():
    def both(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        x.mul_(scale)
        x_other.mul_(scale)
        return x, x_other

    for activations in (["x", "x_other"], None, ["x", "x_other"]):
        op = ir_core.register_op(pair, name="comes_back", activations=activations, allow_inplace=True)
        op.register_impl("both", inplace=True)(both)
        with op.set_priority(["both"]):
            x = torch.ones(2)
            assert op.maybe_inplace(x, torch.ones(2))[0] is x
        op.unregister()
    op = ir_core.register_op(plus_one, name="comes_back")
    assert op(torch.zeros(1)).item() == 1


def test_tolerances():
    op = ir_core.register_op(plus_one)
    assert op.get_tolerance(torch.float32)["rtol"] == 2.0**-22
    op.override_tolerance(torch.float32, atol=1.0, rtol=2.0)
    assert op.get_tolerance(torch.float32) == {"atol": 1.0, "rtol": 2.0}
    with pytest.raises(ValueError, match="no tolerance"):
        op.get_tolerance(torch.complex64)


def test_input_generators():
    op = ir_core.register_op(plus_one)
    assert not op.has_input_generator
    with pytest.raises(RuntimeError, match="no input generator"):
        op.generate_inputs(num_tokens=1)

    @op.register_input_generator
    def inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> tuple[Tensor]:
        return (torch.zeros(num_tokens, hidden_size, dtype=dtype),)

    assert op.has_input_generator
    assert op.generate_inputs(num_tokens=2, hidden_size=3, dtype=torch.float16)[0].shape == (2, 3)
