# SPDX-License-Identifier: Apache-2.0
"""The order chain16x8: its parts and its tree, how a policy brings it, and the op that computes one rank's part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import lock_file, ops
from ir_core.errors import ArgumentError, LockError
from ir_core.ops.chain16 import chain16
from ir_core.ops.chunks import chunk_length
from ir_core.ops.matmul import REFERENCES
from ir_core.policy import OpPolicy, Policy
from ir_core.resolve import select
from ir_core.target import Target

pytestmark = pytest.mark.usefixtures("alone")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
X8 = OpPolicy(order="chain16x8")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(8)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bits; what is no number has no bits of its own."""
    integer = INTEGER[a.element_size()]
    same = (a.contiguous().view(integer) == b.contiguous().view(integer)) | (a.isnan() & b.isnan())
    return a.dtype is b.dtype and a.shape == b.shape and bool(same.all())


def x8(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = ops.linear.impls["portable_x8"].impl_fn(x, weight, bias)
    assert isinstance(result, Tensor)
    return result


def partial(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    result = ops.linear_partial.impls["portable"].impl_fn(x, weight, chunks)
    assert isinstance(result, Tensor)
    return result


def operands(dtype: torch.dtype, rows: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = torch.randn(rows, k), torch.randn(n, k) / math.sqrt(max(k, 1))
    return x.to(dtype), weight.to(dtype), torch.randn(n).to(dtype)


def asked(**changes):
    return ir_core.scope(ops={"linear": X8}, **changes)


# -- the order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
def test_it_is_eight_chains_and_a_tree(dtype):
    x, w, b = operands(dtype, 4, 5, 256)
    c = [REFERENCES[dtype](x[:, i : i + 32], w[:, i : i + 32]) for i in range(0, 256, 32)]
    total = ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]))
    assert equal(x8(x, w), total.to(dtype))
    assert equal(x8(x, w, b), (total + b.to(total.dtype)).to(dtype))
    assert equal(partial(x, w), total)


@pytest.mark.parametrize("k", [1, 16, 40, 127, 128, 129, 200, 1000])
def test_what_does_not_divide_is_padded_at_the_end(k):
    """Chunks are multiples of 16 long, all alike; the last ones may be zeros in part or wholly."""
    x, w, _ = operands(BF16, 3, 4, k)
    padded = -(-k // 128) * 128
    assert chunk_length(k) == padded // 8 and chunk_length(k) % 16 == 0
    behind = (0, padded - k)
    assert equal(x8(x, w), x8(torch.nn.functional.pad(x, behind), torch.nn.functional.pad(w, behind)))


def test_it_is_another_order_than_chain16_and_than_other_trees():
    """Else no test here could tell them apart."""
    x, w, _ = operands(BF16, 64, 16, 1024)
    c = [chain16(x[:, i : i + 128], w[:, i : i + 128]) for i in range(0, 1024, 128)]
    assert not equal(partial(x, w), chain16(x, w))
    halves = ((c[0] + c[4]) + (c[2] + c[6])) + ((c[1] + c[5]) + (c[3] + c[7]))
    assert not equal(partial(x, w), halves)
    assert not equal(partial(x, w), ((((((c[0] + c[1]) + c[2]) + c[3]) + c[4]) + c[5]) + c[6]) + c[7])


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
def test_shapes_and_values(dtype):
    for rows, n, k in ((1, 1, 1), (5, 3, 17), (0, 3, 8), (3, 0, 8), (3, 4, 0), (2, 9, 300)):
        x, w, b = operands(dtype, rows, n, k)
        want = x.double() @ w.double().T + b.double()
        got, part = x8(x, w, b), partial(x, w)
        bound = ops.linear.get_tolerance(dtype)
        assert torch.allclose(got.double(), want, rtol=2 * bound["rtol"], atol=bound["atol"])
        assert (
            part.dtype is (F64 if dtype is F64 else F32) and part.shape == (rows, n) and part.is_contiguous()
        )
        native = ops.linear_partial.impls["native"].impl_fn(x, w)
        assert native.dtype is part.dtype and native.shape == part.shape
    x, w, b = operands(dtype, 6, 5, 40)
    assert equal(x8(x.view(2, 3, 40), w, b), x8(x, w, b).view(2, 3, 5))
    assert equal(x8(x[4], w, b), x8(x, w, b)[4])


def test_a_partial_sum_that_is_zero_is_plus_zero():
    """A negative product that is rounded away leaves -0, and padding it with zeros would make +0 of that."""
    x, w = torch.full((1, 1), 2.0**-100), torch.full((1, 1), -(2.0**-100))
    assert math.copysign(1.0, REFERENCES[F32](x, w).item()) == -1.0
    for k in (1, 16, 128):
        pad = torch.nn.functional.pad
        got = x8(pad(x, (k - 1, 0)), pad(w, (k - 1, 0)))
        assert got.item() == 0.0 and math.copysign(1.0, got.item()) == 1.0


def test_infinities_meet_in_the_tree():
    x, w, _ = operands(BF16, 4, 3, 128)
    x[0, 3], x[1, 3], x[1, 100], x[2, 7] = torch.inf, torch.inf, -torch.inf, torch.nan
    w[:, (3, 7, 100)] = 1.0
    got = x8(x, w)
    assert (
        got[0].isposinf().all() and got[1].isnan().all() and got[2].isnan().all() and got[3].isfinite().all()
    )


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_rows_do_not_depend_on_the_batch_nor_on_layout(dtype):
    x, w, b = operands(dtype, 70, 9, 144)
    want = x8(x, w, b)
    for r in (0, 33, 69):
        assert equal(x8(x[r : r + 1], w, b), want[r : r + 1])
    assert equal(x8(x.T.contiguous().T, w.T.contiguous().T, b), want)


# -- parts of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
def test_ranks_hold_whole_subtrees(ranks, dtype):
    x, w, b = operands(dtype, 5, 6, 384)
    parts = [partial(x_, w_, 8 // ranks) for x_, w_ in zip(x.chunk(ranks, 1), w.chunk(ranks, 1), strict=True)]
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    assert equal(parts[0], partial(x, w))
    assert equal((parts[0] + b.to(parts[0].dtype)).to(dtype), x8(x, w, b))


def test_bad_arguments():
    x, w, _ = operands(BF16, 2, 3, 16)
    with pytest.raises(ArgumentError, match="chunks is 3"):
        ops.linear_partial(x, w, 3)
    with pytest.raises(ArgumentError, match=r"'weight' has the shape \[3, 15\]"):
        ops.linear_partial(x, w[:, :15])
    ops.linear_partial(x, w, 4)
    with pytest.raises(ArgumentError, match="chunks is 16"):
        ops.linear_partial(x, w, 16)


def test_the_partial_sum_is_the_reference_in_batch_invariant_mode():
    x, w, _ = operands(BF16, 3, 4, 64)
    with ir_core.scope(batch_invariant=True):
        found = select(ops.linear_partial, ir_core.current(), CPU, (x, w, 4))
        assert (found.order, found.provider) == ("chain16x8", "portable")
        assert equal(ops.linear_partial(x, w, 4), partial(x, w, 4))


def test_generated_inputs_are_a_call():
    x, w, chunks = ops.linear_partial.generate_inputs(
        num_tokens=3, hidden_size=32, dtype=BF16, out=7, chunks=2
    )
    assert partial(x, w, chunks).shape == (3, 7)


# -- how a policy brings it ------------------------------------------------------------------------------------

CPU = Target(device="cpu", kind="cpu", batch_invariant=True)
SM80, SM75 = (
    Target(device="cuda:0", kind="cuda", capability=ir_core.Capability(*capability), batch_invariant=fits)
    for capability, fits in (((8, 0), True), ((7, 5), False))
)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
@pytest.mark.parametrize("target", [CPU, SM80, SM75])
def test_it_is_never_the_default(dtype, target):
    """Also where the op has no order of its own for 16 bits, as on SM 8.0."""
    args = (*operands(dtype, 2, 3, 16)[:2], None)
    found = select(ops.linear, Policy(batch_invariant=True), target, args)
    assert found.order != "chain16x8" and found.provider == "portable"
    for invariant in (True, False):
        policy = Policy(batch_invariant=invariant, ops={"linear": X8})
        found = select(ops.linear, policy, target, args)
        assert (found.order, found.provider) == ("chain16x8", "portable_x8")


@pytest.mark.parametrize("wrap", [True, False])
def test_the_environment_asks_for_it(environment, wrap):
    x, w, b = operands(BF16, 3, 4, 256)
    environment(IR_PRIORITY="linear=order:chain16x8")
    with ir_core.enable_torch_wrap(wrap):
        assert equal(ops.linear(x, w, b), x8(x, w, b))
    assert ops.linear.dispatch(x, w, b).order == "chain16x8"


@pytest.mark.slow
def test_a_compiled_graph_keeps_it():
    x, w, b = operands(F32, 8, 5, 256)  # bfloat16 would round most differences away

    def layer(x: Tensor) -> Tensor:
        return torch.nn.functional.relu(ops.linear(x, w, b))

    compiled = ir_core.compile(layer, fullgraph=True)
    with ir_core.scope(batch_invariant=True):
        plain = compiled(x)
    with asked(batch_invariant=True):
        assert equal(compiled(x), x8(x, w, b).relu())
    assert equal(plain, ops.linear.impls["portable"].impl_fn(x, w, b).relu())
    assert not equal(plain, x8(x, w, b).relu())


def test_a_lock_file_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ir_core.cli.freeze_cmd import selected

    x, w, b = operands(BF16, 2, 3, 32)
    with asked():
        lock = selected("4x256", "bfloat16", "cpu", True)
    assert lock["ops"]["linear"]["order"] == "chain16x8"
    file = tmp_path / "ir.lock"
    file.write_text(json.dumps(lock))
    monkeypatch.setenv("IR_LOCK", str(file))
    ir_core.refresh()
    try:
        with asked(batch_invariant=True):
            assert equal(ops.linear(x, w, b), x8(x, w, b))
        with ir_core.scope(batch_invariant=True), pytest.raises(LockError, match="chain16x8"):
            ops.linear(x, w, b)
    finally:
        monkeypatch.undo()
        lock_file.refresh()
        ir_core.refresh()


# -- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_gradients_have_the_order_that_was_asked_for(dtype):
    x, w, b = (torch.randn(*s).to(dtype).requires_grad_() for s in ((2, 3, 40), (136, 40), (136,)))
    g = torch.randn(2, 3, 136).to(dtype)
    with asked(batch_invariant=True):
        out = ops.linear(x, w, b)
    out.backward(g)  # outside of the scope: a backward has the policy of its forward
    flat, rows = g.reshape(6, 136), x.detach().reshape(6, 40)
    assert equal(x.grad, x8(g, w.detach().T))
    assert equal(w.grad, x8(flat.T, rows.T))
    assert equal(b.grad, x8(flat.T, torch.ones(1, 6, dtype=dtype)).squeeze(1))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_gradients_of_a_part_are_linears_of_its_columns(dtype):
    x, w, _ = operands(dtype, 6, 40, 64)
    x.requires_grad_()
    w.requires_grad_()
    g = torch.randn(6, 40).to(dtype)
    with ir_core.scope(batch_invariant=True):
        ops.linear_partial(x, w, 4).backward(g.to(torch.float32))
        assert equal(x.grad, ops.linear(g, w.detach().T))
        assert equal(w.grad, ops.linear(g.T, x.detach().T))


def test_gradcheck_of_a_part():
    x, w = (torch.randn(*s, dtype=F64, requires_grad=True) for s in ((3, 4), (2, 4)))
    with ir_core.scope(batch_invariant=True):
        assert torch.autograd.gradcheck(lambda x, w: ops.linear_partial(x, w, 2), (x, w))
        assert torch.autograd.gradgradcheck(lambda x, w: ops.linear_partial(x, w, 2), (x, w))


def test_fake_tensors_have_the_shape_of_real_ones():
    for dtype in (BF16, F64):
        for shape in ((2, 3, 8), (8,), (0, 8)):
            x, w = torch.randn(shape).to(dtype), torch.randn(5, 8).to(dtype)
            real = ops.linear_partial(x, w, 2)
            fake = torch.ops.ir_core.linear_partial(x.to("meta"), w.to("meta"), 2)
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
