# SPDX-License-Identifier: Apache-2.0
"""What is no call of an op, and what is no claim: each gets an error of ours, before and after a right call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import fast_path, ops, policy
from ir_core.errors import ArgumentError, IrError, PackError, PolicyError, SchemaError, TargetError
from ir_core.pack import KernelPack

X, W = torch.randn(4, 64), torch.randn(64)

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "integers": (lambda: ops.rms_norm(X.int(), W, 1e-6), "'x' is int32.*float32"),
    "integers without a weight": (lambda: ops.rms_norm(X.int(), None, 1e-6), "'x' is int32"),
    "complex": (lambda: ops.rms_norm(X.to(torch.complex64), W, 1e-6), "'x' is complex64"),
    "weight of integers": (lambda: ops.rms_norm(X, W.int(), 1e-6), "'weight' is int32"),
    "longer variance_size": (lambda: ops.rms_norm(X, W, 1e-6, 65), "variance_size is 65.*have 64.*1 to 64"),
    "empty variance_size": (lambda: ops.rms_norm(X, W, 1e-6, 0), "variance_size is 0"),
    "negative variance_size": (lambda: ops.rms_norm(X, None, 1e-6, -3), "variance_size is -3"),
    "shorter weight": (lambda: ops.rms_norm(X, W[:63], 1e-6), r"'weight' has the shape \[63\].*have 64"),
    "longer rows": (lambda: ops.rms_norm(torch.randn(4, 65), W, 1e-6), r"\[64\].*have 65"),
    "weight of one": (lambda: ops.rms_norm(X, W[:1], 1e-6), r"'weight' has the shape \[1\]"),
    "weight of two dimensions": (lambda: ops.rms_norm(X, W[None], 1e-6), r"'weight' has the shape \[1, 64\]"),
    "fused: integers": (lambda: ops.fused_add_rms_norm(X, X.int(), W, 1e-6), "'x_residual' is int32"),
    "fused: weight": (lambda: ops.fused_add_rms_norm(X, X, W[:9], 1e-6), r"'weight' has the shape \[9\]"),
    "fused: broadcast": (lambda: ops.fused_add_rms_norm(X, X[:1], W, 1e-6), r"\[4, 64\].*\[1, 64\]"),
    "gelu: odd rows": (lambda: ops.gelu_and_mul_sparse(X[:, :63], 1.0), "have 63 elements, an odd number"),
    "gelu: integers": (lambda: ops.gelu_and_mul_sparse(X.long(), 1.0), "'x' is int64"),
    "gelu: form": (lambda: ops.gelu_and_mul_sparse(X, 1.0, "erf"), "approximate is 'erf'.*'none'.*'tanh'"),
}


@pytest.fixture(params=["any", "batch-invariant", "disabled"])
def requirement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    changes = {"any": {}, "batch-invariant": {"batch_invariant": True}, "disabled": {"disabled": True}}
    with ir_core.scope(**changes[request.param]):
        yield


def right_calls() -> None:
    """Calls whose selections are then kept: a wrong call must not pass as one of them."""
    for _ in range(2):
        ops.rms_norm(X, W, 1e-6)
        ops.rms_norm(X, None, 1e-6)
        ops.rms_norm(X, W, 1e-6, 64)
        ops.fused_add_rms_norm(X, X, W, 1e-6)
        ops.gelu_and_mul_sparse(X, 1.0)


@pytest.mark.usefixtures("requirement")
@pytest.mark.parametrize("wrap", [False, True], ids=["direct", "torch op"])
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "after right calls"])
@pytest.mark.parametrize("name", WRONG)
def test_no_call_of_the_op(name: str, warm: bool, wrap: bool) -> None:
    call, message = WRONG[name]
    with ir_core.enable_torch_wrap(wrap):
        if warm:
            right_calls()
        for _ in range(2):
            with pytest.raises(ArgumentError, match=f"(?s){message}") as raised:
                call()
            assert raised.value.why and raised.value.fix


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "after right calls"])
def test_rows_of_no_dimension(warm: bool) -> None:
    if warm:
        right_calls()
    with pytest.raises((ArgumentError, IndexError)):
        ops.rms_norm(torch.tensor(1.0), W, 1e-6)


def test_it_is_refused_where_only_shapes_are_computed() -> None:
    with pytest.raises(ArgumentError, match=r"'weight' has the shape \[3\]"):
        ops.rms_norm(X.to("meta"), W.to("meta")[:3], 1e-6)
    with torch._subclasses.FakeTensorMode(), pytest.raises(ArgumentError, match="variance_size is 65"):
        torch.ops.ir_core.rms_norm(torch.empty(4, 64), torch.empty(64), 1e-6, 65)


def test_it_is_refused_while_a_graph_is_traced() -> None:
    compiled = torch.compile(lambda x, w: ops.rms_norm(x, w, 1e-6), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"'weight' has the shape \[3\], and the rows of 'x' have 64"):
        compiled(X, W[:3])
    assert torch.equal(compiled(X, W), ops.rms_norm(X, W, 1e-6))


def test_select_and_explain_refuse_it_too() -> None:
    target = ir_core.Target(device="cpu", kind="cpu")
    with pytest.raises(ArgumentError):
        ir_core.select(ops.rms_norm, ir_core.current(), target, (X.int(), W, 1e-6, None))


def test_every_length_and_dtype_has_its_own_entry_and_none_more() -> None:
    """A right call whose facts are new is selected for once; rows and epsilon are no facts of a check."""
    with ir_core.enable_torch_wrap(False), ir_core.scope():
        right_calls()
        entries = lambda: len(fast_path.callees(ops.rms_norm)[0].entries[policy.here()])  # noqa: E731
        before = entries()
        for rows in (1, 7, 300):
            ops.rms_norm(torch.randn(rows, 64), W, 1e-3 * rows)
        assert entries() == before
        ops.rms_norm(torch.randn(2, 32), W[:32], 1e-6)
        assert entries() == before + 1


def test_an_op_of_ones_own_declares_its_check_once() -> None:
    @ir_core.register_op(name="check_scale")
    def scale(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    assert scale(X, W[:1]).shape == X.shape

    @scale.register_check
    def check(x: Tensor, weight: Tensor) -> None:
        if weight.shape != (x.shape[-1],):
            raise ArgumentError("check_scale: the weight is no row.", fix="Give it one.")

    for wrong in (W[:1], W[None]):
        scale(X, W)
        with pytest.raises(ArgumentError, match="the weight is no row"):
            scale(X, wrong)
    with pytest.raises(SchemaError, match="check of op 'check_scale' takes other parameters"):
        scale.register_check(lambda x: None)


def test_a_check_sees_no_rows() -> None:
    @ir_core.register_op(name="check_rows")
    def halve(x: Tensor) -> Tensor:
        return x / 2

    @halve.register_check
    def check(x: Tensor) -> None:
        assert x.shape[0] < 9

    with pytest.raises(ir_core.errors.PredicateError, match=r"may not read \.shape\[0\] of 'x'"):
        halve(X)


# -- claims and requirements -----------------------------------------------------------------------------------


def body(x: Tensor) -> Tensor:
    return x + 0


PACK = {"op": "rms_norm", "provider": "p", "impl": "m:f"}


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        (SchemaError, lambda op: op.register_impl("p", batch_invariant="no")(body)),
        (SchemaError, lambda op: op.register_impl("p", inplace="no")(body)),
        (SchemaError, lambda op: op.register_impl("p", supported="no")(body)),
        (SchemaError, lambda op: op.register_impl("p", opaque=0)(body)),
        (SchemaError, lambda op: ir_core.register_op(body, name="claims_2", has_reduction="no")),
        (SchemaError, lambda op: op.set_default(["native"], batch_invariant_only="no")),
        (PolicyError, lambda op: ir_core.Policy(batch_invariant="no")),
        (PolicyError, lambda op: ir_core.Policy(strict="false")),
        (PolicyError, lambda op: ir_core.OpPolicy(batch_invariant="no")),
        (PolicyError, lambda op: ir_core.scope(batch_invariant="no").__enter__()),
        (
            PackError,
            lambda op: KernelPack.parse({"api": 1, "name": "p", "implementations": [PACK | {"opaque": 1}]}),
        ),
        (
            PackError,
            lambda op: KernelPack.parse(
                {"api": 1, "name": "p", "implementations": [PACK | {"batch_invariant": "no"}]}
            ),
        ),
    ],
)
def test_a_claim_is_yes_or_no(kind: type[IrError], build: Callable[[Any], Any]) -> None:
    op = ir_core.register_op(body, name="claims")
    with pytest.raises(kind, match=r"(?s)(?:'no'|'false'|=0|=1).*True or False"):
        build(op)
    assert list(op.impls) == ["native"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorcores", "'tensorcores' is not a feature.*tma.*'acme.tensorcores'"),
        ("sm>=9.0, tmaa", "Did you mean 'tma'"),
        ("cpu, triton_interpeter", "Did you mean 'triton_interpreter'"),
        ("gfx", "'gfx' is not a feature"),
    ],
)
def test_an_unknown_feature_is_an_error(text: str, message: str) -> None:
    op = ir_core.register_op(body, name="needs")
    with pytest.raises(TargetError, match=f"(?s){message}"):
        op.register_impl("p", requires=text)(body)
    with pytest.raises(PackError, match=f"(?s){message}"):
        KernelPack.parse({"api": 1, "name": "p", "implementations": [PACK | {"requires": text}]})


def test_a_platform_of_ones_own_names_its_features_with_a_dot() -> None:
    mine = ir_core.Target(device="xpu:0", kind="xpu", features=frozenset({"acme.matrix_engine"}))
    assert ir_core.parse_requirement("xpu, acme.matrix_engine").check(mine)
    assert ir_core.parse_requirement("gfx90a").check(
        ir_core.Target(device="cuda:0", kind="rocm", features=frozenset({"gfx90a"}))
    )
