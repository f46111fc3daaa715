# SPDX-License-Identifier: Apache-2.0
"""An op that reduces is not declared batch-invariant because its author forgot to say so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops, reductions
from ir_core.errors import SelectionError

pytestmark = pytest.mark.usefixtures("alone")


def mean(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def running(x: Tensor) -> Tensor:
    return x.cumsum(-1)


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, weight.shape, weight)


def only_with_a_weight(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return x if weight is None else x * weight.sum()


def only_for_many_rows(x: Tensor) -> Tensor:
    return x.sum(-1) if x.shape[0] > 1000 else x[..., 0]


def only_for_another_mode(x: Tensor, mode: str = "plain") -> Tensor:
    return x.amax(-1) if mode == "top" else x[..., 0]


def looks_at_values(x: Tensor) -> Tensor:
    return x if x[0, 0].item() > 0 else -x


def numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().copy())


def unknown(x: Tensor) -> Tensor:
    return torch.ops.reductions_test.mystery(x)


def scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_put((torch.zeros(x.shape[0], dtype=torch.long),), x, accumulate=True)


def silu_and_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate.float()).to(x.dtype) * up


def scaled(x: Tensor, scale: Tensor, factor: float, steps: int, flag: bool) -> Tensor:
    return torch.cat([x * scale, x.neg()], -1).reshape(-1).view(x.shape[0], -1) * factor + steps * flag


def masked(x: Tensor) -> Tensor:
    return (
        torch.where(x > 0, x, torch.zeros_like(x))
        .masked_fill(x > 3, 3.0)
        .clamp(max=2)
        .transpose(0, 1)
        .contiguous()
    )


@pytest.fixture(scope="module", autouse=True)
def library():
    with torch.library._scoped_library("reductions_test", "FRAGMENT") as made:
        made.define("mystery(Tensor x) -> Tensor")
        made.impl("mystery", lambda x: x.clone(), "CompositeExplicitAutograd")
        yield


REDUCING = {
    mean: "aten.mean.dim is a reduction",
    product: "aten.mm.default is a matrix product",
    linear: "is a matrix product",
    running: "aten.cumsum.default is a cumulative operation",
    softmax: "aten._softmax.default is a reduction",
    layer_norm: "is a reduction",
    only_with_a_weight: "aten.sum.default is a reduction",
    only_for_many_rows: "aten.sum.dim_IntList is a reduction",
    looks_at_values: "cannot be traced without data",
    numpy: "cannot be traced without data",
    unknown: "reductions_test.mystery.default is not known to be element-wise",
    scattered: "aten.index_put.default is a reduction",
}


@pytest.mark.parametrize("function", REDUCING, ids=lambda function: function.__name__)
def test_what_reduces_is_a_reduction_unless_its_author_says_otherwise(function):
    op = ir_core.register_op(function, name="probe")
    assert op.has_reduction and not op.batch_invariant
    assert any(REDUCING[function] in str(found) for found in reductions.found(op)), reductions.found(op)
    assert not op.register_impl("inherits")(function).batch_invariant


@pytest.mark.parametrize("function", [silu_and_mul, scaled, masked], ids=lambda function: function.__name__)
def test_what_is_element_wise_is_not(function):
    op = ir_core.register_op(function, name="probe", activations=["x"])
    assert reductions.found(op) == ()
    assert not op.has_reduction and op.register_impl("inherits")(function).batch_invariant


def test_documented_values_are_traced():
    op = ir_core.register_op(only_for_another_mode, name="probe")
    assert not op.has_reduction
    op.unregister()
    op = ir_core.register_op(only_for_another_mode, name="probe")
    op.register_values(mode=("plain", "top"))
    assert op.has_reduction


def test_the_author_is_believed_by_selection_and_the_trace_is_there_for_who_does_not():
    op = ir_core.register_op(mean, name="probe", has_reduction=False)
    assert not op.has_reduction and op.batch_invariant
    assert [found.name for found in reductions.found(op)] == ["aten.mean.dim"]
    op.unregister()
    op = ir_core.register_op(masked, name="probe", has_reduction=True)
    assert op.has_reduction and reductions.found(op) == ()


def test_in_batch_invariant_mode_such_a_native_is_not_taken():
    op = ir_core.register_op(mean, name="probe")
    with ir_core.scope(batch_invariant=True):
        with pytest.raises(SelectionError, match="a reduction of torch is invariant under conditions only"):
            op(torch.ones(2, 8))
        op.unregister()
        op = ir_core.register_op(masked, name="probe")
        assert op(torch.ones(2, 8)).shape == (8, 2)


def test_registering_traces_nothing_and_a_trace_disturbs_nothing():
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(type(x))
        return x + torch.randn_like(x).sum()

    op = ir_core.register_op(counted, name="probe")
    op.register_impl("other")(mean)
    assert calls == []
    torch.manual_seed(5)
    state = torch.get_rng_state()
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def inside(x: Tensor) -> Tensor:
        assert op.has_reduction
        return x

    with Mode():
        torch.func.vmap(inside)(torch.zeros(3))
        seen.clear()
        assert op.has_reduction
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    count = len(calls)
    assert op.has_reduction and len(calls) == count, "asked once"


def test_inside_a_compilation():
    op = ir_core.register_op(mean, name="probe")
    op.register_impl("portable_like", batch_invariant=True)(mean)
    compiled = ir_core.compile(lambda x: op(x) * 1, backend="eager", fullgraph=True)
    with ir_core.scope(batch_invariant=True):
        assert torch.equal(compiled(torch.ones(2, 8)), torch.zeros(2, 8))
    assert op.has_reduction


def test_the_cores_own_ops_say_what_their_traces_show():
    for op in (ops.rms_norm, ops.fused_add_rms_norm, ops.gelu_and_mul_sparse):
        assert bool(reductions.found(op)) is op._has_reduction is True
