# SPDX-License-Identifier: Apache-2.0
"""A pack written for vLLM IR (0.20 to 0.33) works after one changed import: ``from vllm import ir``.

What is asked of the names here is what ``vllm.ir`` does with them: spelling, meaning, and what user code catches.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import ir_core as ir  # the one changed line

pytestmark = pytest.mark.usefixtures("alone")

# -- such a pack, as its author wrote it


def rms_no_var_size(x, weight, epsilon, variance_size=None):
    return variance_size is None and (weight is None or weight.dtype == x.dtype)


def add_no_var_size(x, x_residual, weight, epsilon, variance_size=None):
    return variance_size is None and (weight is None or weight.dtype == x.dtype)


def load_pack() -> None:
    @ir.ops.rms_norm.register_impl("compat_c", supports_args=rms_no_var_size, supported=True)
    def rms_norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        assert variance_size is None
        y = torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), eps=epsilon)
        return (y if weight is None else y.to(weight.dtype) * weight).to(x.dtype)

    @ir.ops.fused_add_rms_norm.register_impl("compat_c", supports_args=add_no_var_size, inplace=True)
    def fused_add_rms_norm(
        x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        x_residual.add_(x)
        x.copy_(rms_norm.impl_fn(x_residual, weight, epsilon))
        return x, x_residual

    @ir.ops.rms_norm.register_impl("compat_absent", supported=False)
    def absent(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
        raise AssertionError("never called")


X, W = torch.randn(4, 32), torch.randn(32)


def test_the_pack_works():
    load_pack()
    op = ir.ops.rms_norm
    assert op.supported_providers() == ["native", "portable", "compat_c"]
    native = op.impls["native"].impl_fn(X, W, 1e-6)
    with op.set_priority(["compat_absent", "compat_c", "native"]):
        assert op.get_priority() == ["compat_c", "native"]  # unsupported ones are passed over
        assert op.dispatch(X, W, 1e-6).provider == "compat_c"
        assert op.dispatch(X, W, 1e-6, 16).provider == "native"
        assert op.dispatch(X, W.half(), 1e-6).provider == "native"
        torch.testing.assert_close(op(X, W, 1e-6), native)
        for wrap in (True, False):
            with ir.enable_torch_wrap(wrap):
                torch.testing.assert_close(op(X, W, 1e-6), native)
    assert op.get_priority() == []
    fused = ir.ops.fused_add_rms_norm
    with fused.set_priority(["compat_c"]):
        x, residual = X.clone(), X.clone()
        y, s = fused(x, residual, W, 1e-6)
        assert torch.equal(x, X)
        donated = fused.maybe_inplace(x, residual, W, 1e-6)
        assert donated[0].data_ptr() == x.data_ptr()
        assert all(torch.equal(a, b) for a, b in zip(donated, (y, s), strict=True))


def test_nothing_set_is_native():
    load_pack()
    assert ir.ops.rms_norm.dispatch(X, W, 1e-6).provider == "native"


def test_native_stands_behind_a_priority_without_it():
    load_pack()
    with ir.ops.rms_norm.set_priority(["compat_c"]):
        assert ir.ops.rms_norm.get_priority() == ["compat_c", "native"]
        assert ir.ops.rms_norm.dispatch(X, None, 1e-6, 4).provider == "native"


def test_what_stands_behind_one_that_takes_all_is_never_reached():
    load_pack()
    with ir.ops.rms_norm.set_priority(["native", "compat_c"]):
        assert ir.ops.rms_norm.get_priority() == ["native"]


def test_set_default_stays_and_set_priority_restores():
    load_pack()
    op = ir.ops.rms_norm
    op.set_default(["compat_c", "native"])
    with pytest.raises(ZeroDivisionError), op.set_priority(["native"]):  # noqa: PT012
        assert op.get_priority() == ["native"]
        raise ZeroDivisionError
    assert op.get_priority() == ["compat_c", "native"]


# -- names

OP = [
    "registry",
    "name",
    "impls",
    "activations",
    "activation_indices",
    "allow_inplace",
    "torch_op",
    "register_fake",
    "register_impl",
    "dispatch",
    "apply_arg_defaults",
    "get_priority",
    "set_default",
    "set_priority",
    "supported_providers",
    "has_input_generator",
    "register_input_generator",
    "generate_inputs",
    "override_tolerance",
    "get_tolerance",
]
IMPL = [
    "op",
    "provider",
    "impl_fn",
    "func_impl_fn",
    "supported",
    "supports_args",
    "supports_all_args",
    "inplace",
    "uuid",
]


@pytest.mark.parametrize("name", OP)
def test_names_of_an_op(name: str):
    assert hasattr(ir.ops.rms_norm, name)


@pytest.mark.parametrize("name", IMPL)
def test_names_of_an_implementation(name: str):
    assert hasattr(ir.ops.rms_norm.impls["native"], name)


def test_names_of_the_module():
    for name in ("ops", "register_op", "enable_torch_wrap", "set_default_torch_wrap"):
        assert hasattr(ir, name)
    assert {"fused_add_rms_norm", "gelu_and_mul_sparse", "rms_norm"} <= set(ir.ops.__all__)
    assert {"native", "unfused"} <= set(ir.RESERVED_PROVIDERS)
    assert ir.IrOp.registry["rms_norm"] is ir.ops.rms_norm
    inplace = ir.ops.fused_add_rms_norm.maybe_inplace
    assert inplace.op is ir.ops.fused_add_rms_norm
    assert inplace.name == "fused_add_rms_norm.maybe_inplace"
    assert inplace.torch_op is torch.ops.ir_core.fused_add_rms_norm.maybe_inplace
    assert not hasattr(ir.ops.rms_norm, "maybe_inplace")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (ir.register_op, "f name activations allow_inplace"),
        (ir.IrOp.register_impl, "self provider supported supports_args inplace"),
        (ir.IrOp.set_priority, "self priority"),
        (ir.IrOp.set_default, "self priority"),
        (ir.IrOp.override_tolerance, "self dtype atol rtol"),
        (ir.enable_torch_wrap, "enable"),
        (ir.set_default_torch_wrap, "enable"),
    ],
)
def test_parameters_begin_as_theirs(function, parameters: str):
    """What is added comes behind, and needs no value."""
    mine = list(inspect.signature(function).parameters.values())
    theirs = parameters.split()
    assert [p.name for p in mine][: len(theirs)] == theirs
    assert all(p.default is not p.empty for p in mine[len(theirs) :])


def test_a_uuid_is_a_stable_hexadecimal_text():
    impl = ir.ops.rms_norm.impls["native"]
    assert impl.uuid() == impl.uuid()
    assert int(impl.uuid(), 16)


# -- errors, as code for vLLM IR catches them


def test_errors_are_caught_as_before():
    op = ir.register_op(lambda_op, name="compat_op")
    register = op.register_impl("compat_c")
    register(lambda_op)
    cases = [
        (AssertionError, lambda: ir.register_op(lambda_op, name="compat_op")),  # twice
        (ValueError, lambda: ir.register_op(lambda_op, name="Compat")),
        (ValueError, lambda: ir.register_op(keyword_only, name="compat_kw")),
        (
            AssertionError,
            lambda: ir.register_op(lambda_op, name="compat_in", activations=[], allow_inplace=True),
        ),
        (AssertionError, lambda: register(lambda_op)),  # twice
        (AssertionError, lambda: op.register_impl("native")),
        (AssertionError, lambda: op.register_impl("unfused")),
        (ValueError, lambda: op.register_impl("Bad")),
        (ValueError, lambda: op.register_impl("compat_x")(other_schema)),
        (ValueError, lambda: op.register_impl("compat_x", supports_args=3)(lambda_op)),
        (ValueError, lambda: op.register_impl("compat_x", supports_args=lambda y: True)(lambda_op)),
        (ValueError, lambda: op.register_impl("compat_x", supports_args=lambda x, y: True)(lambda_op)),
        (ValueError, lambda: op.register_impl("compat_x", supports_args=lambda *, x: True)(lambda_op)),
        (AssertionError, lambda: op.register_impl("compat_x", inplace=True)(lambda_op)),
        (AssertionError, lambda: op.set_default(["nobody"])),
        (AssertionError, lambda: op.set_priority(["nobody"]).__enter__()),
        (RuntimeError, lambda: op.generate_inputs(num_tokens=1)),
        (ValueError, lambda: op.get_tolerance(torch.complex128)),
        (TypeError, lambda: op.apply_arg_defaults(())),
    ]
    for kind, action in cases:
        with pytest.raises(kind):
            action()
    assert list(op.impls) == ["native", "compat_c"]


def lambda_op(x: Tensor) -> Tensor:
    return x.clone()


def keyword_only(x: Tensor, *, y: float) -> Tensor:
    return x


def other_schema(x: Tensor, y: float) -> Tensor:
    return x


def test_inplace_outputs_match_activations():
    def one_of_two(x: Tensor, x_other: Tensor) -> Tensor:
        return x

    def numbers(x: Tensor) -> int:
        return 1

    for function in (one_of_two, numbers):
        with pytest.raises(AssertionError):
            ir.register_op(function, allow_inplace=True)


def test_the_default_activations_are_those_named_x():
    def combine(x: Tensor, scale: Tensor, x_other: Tensor) -> Tensor:
        return x * scale + x_other

    op = ir.register_op(combine)
    assert list(op.activations) == ["x", "x_other"]
    assert list(op.activation_indices) == [0, 2]


def test_inputs_and_tolerances():
    x, weight, epsilon = ir.ops.rms_norm.generate_inputs(num_tokens=3, hidden_size=16, dtype=torch.float16)
    assert (x.shape, weight.shape, epsilon) == ((3, 16), (16,), 1e-5)
    x, residual, weight, epsilon = ir.ops.fused_add_rms_norm.generate_inputs(
        num_tokens=3, hidden_size=16, dtype=torch.float32, epsilon=1e-3
    )
    assert (residual.shape, epsilon) == ((3, 16), 1e-3)
    x, _multiplier, approximate = ir.ops.gelu_and_mul_sparse.generate_inputs(
        num_tokens=3, hidden_size=16, dtype=torch.float32
    )
    assert (x.shape, approximate) == ((3, 32), "tanh")
    assert set(ir.ops.rms_norm.get_tolerance(torch.float16)) == {"atol", "rtol"}


def test_a_predicate_that_looks_at_rows_is_not_carried_over():
    """The one difference in kind, and the reason for this project: it is refused, and said."""

    def few_rows(x, weight, epsilon, variance_size=None):
        return x.shape[0] <= 2

    @ir.ops.rms_norm.register_impl("compat_rows", supports_args=few_rows)
    def rms_norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        return x * 0

    with ir.ops.rms_norm.set_priority(["compat_rows"]):
        assert {ir.ops.rms_norm.dispatch(X[:n], W, 1e-6).provider for n in (1, 2, 3)} == {"native"}
