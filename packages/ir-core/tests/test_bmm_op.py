# SPDX-License-Identifier: Apache-2.0
"""bmm: each matrix is a linear of its own, with its bits, its gradients and its orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops
from ir_core.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("alone")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
CPU = ir_core.Target("cpu", "cpu")
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(4)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bits; what is no number has no bits of its own."""
    integer = INTEGER[a.element_size()]
    same = (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())
    return a.dtype is b.dtype and a.shape == b.shape and bool(same.all())


def portable(x: Tensor, weight: Tensor) -> Tensor:
    result = ops.bmm.impls["portable"].impl_fn(x, weight)
    assert isinstance(result, Tensor)
    return result


def invariant():
    return ir_core.scope(batch_invariant=True)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 4, 17), (2, 2, 3, 40), (0, 2, 3, 8), (2, 0, 3, 8), (2, 3, 0, 8), (2, 3, 4, 0)]
)  # fmt: skip
def test_each_matrix_is_a_linear(dtype, shape):
    batch, rows, n, k = shape
    x, w = torch.randn(batch, rows, k).to(dtype), torch.randn(batch, n, k).to(dtype)
    got = portable(x, w)
    assert got.shape == (batch, rows, n) and got.is_contiguous() and got.dtype is dtype
    for b in range(batch):
        assert equal(got[b], ops.linear.impls["portable"].impl_fn(x[b], w[b]))
    exact, bound = x.double() @ w.double().mT, ops.bmm.get_tolerance(dtype)
    for found in (got, ops.bmm.impls["native"].impl_fn(x, w)):
        assert found.shape == got.shape and found.is_contiguous()
        assert torch.allclose(found.double(), exact, rtol=2 * bound["rtol"], atol=8 * bound["atol"])


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_infinities_stay_in_their_matrix(dtype):
    x, w = torch.randn(3, 4, 24).to(dtype), torch.randn(3, 5, 24).to(dtype)
    want = portable(x, w)
    x[1, 2, 3], w[1, 4, 5] = torch.inf, torch.nan
    got = portable(x, w)
    assert got[1, 2].isinf().any() and got[1, :, 4].isnan().all()
    assert equal(got[0], want[0]) and equal(got[2], want[2])


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_bits_depend_neither_on_rows_nor_on_the_batch_nor_on_layout(dtype):
    x, w = torch.randn(6, 5, 24).to(dtype), torch.randn(6, 7, 24).to(dtype)
    want = portable(x, w)
    assert equal(portable(x[2:3], w[2:3])[0], want[2])
    assert equal(portable(x[:, 3:4], w), want[:, 3:4])
    assert equal(portable(x[:, :, :], w[:, 2:4]), want[:, :, 2:4].contiguous())
    assert equal(portable(x.mT.contiguous().mT, w.transpose(0, 1).contiguous().transpose(0, 1)), want)
    assert equal(portable(x.view(2, 3, 5, 24), w.view(2, 3, 7, 24)), want.view(2, 3, 5, 7))
    assert equal(portable(x[0], w[0]), want[0])
    assert equal(
        portable(x[:1].expand(4, -1, -1), w[:4]), torch.cat([portable(x[:1], w[i : i + 1]) for i in range(4)])
    )


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "after a right call"])
def test_bad_arguments(warm):
    x, w = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    wrong = [
        ((x, w[..., :7]), "rows of 'weight' have 7 elements, and those of 'x' have 8"),
        ((x, w[0]), "'x' has 3 dimensions and 'weight' has 2"),
        ((x[0, 0], w[0, 0]), "'x' has 1 dimensions"),
        ((x, w.double()), "'weight' is torch.float64, and 'x' is torch.float32"),
        ((x.int(), w.int()), "float16, bfloat16, float32 and float64"),
        ((x, w[:1]), r"'x' has the batch \[2\], and 'weight' has \[1\]"),
    ]
    for scope in (ir_core.scope(batch_invariant=False), invariant()):
        with scope:
            for args, message in wrong:
                if warm:
                    ops.bmm(x, w)
                with pytest.raises(ArgumentError, match=message):
                    ops.bmm(*args)


def test_batch_invariant_mode_takes_the_reference_of_the_dtypes_order():
    for dtype, order in ((BF16, "chain16"), (F32, "fma_chain"), (F64, "mul_add_chain")):
        x, w = torch.randn(2, 3, 24).to(dtype), torch.randn(2, 5, 24).to(dtype)
        with invariant():
            selection = ir_core.select(ops.bmm, ir_core.current(), CPU, (x, w))
            assert equal(ops.bmm(x, w), portable(x, w))
        assert (selection.provider, selection.order) == ("portable", order)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_gradients_are_products_of_the_same_order(dtype):
    x, w = (torch.randn(*s).to(dtype).requires_grad_() for s in ((2, 3, 17), (2, 5, 17)))
    g = torch.randn(2, 3, 5).to(dtype)
    with invariant():
        y = ops.bmm(x, w)
    y.backward(g)  # under the policy of the forward
    assert equal(x.grad, portable(g, w.detach().mT))
    assert equal(w.grad, portable(g.mT, x.detach().mT))


def test_gradcheck_and_second_derivatives():
    x, w = (torch.randn(*s, dtype=F64, requires_grad=True) for s in ((2, 3, 4), (2, 2, 4)))
    with invariant():
        assert torch.autograd.gradcheck(ops.bmm, (x, w))
        assert torch.autograd.gradgradcheck(ops.bmm, (x, w))


def test_transforms():
    x, w = torch.randn(6, 2, 3, 8, dtype=F64), torch.randn(6, 2, 5, 8, dtype=F64)
    with invariant():
        want = ops.bmm(x, w)
        assert equal(torch.func.vmap(ops.bmm)(x, w), want)
        assert equal(torch.func.vmap(ops.bmm, (0, None))(x, w[0]), torch.stack([ops.bmm(a, w[0]) for a in x]))
        assert equal(
            torch.func.vmap(ops.bmm, (None, 1))(x[0], w.movedim(0, 1)),
            torch.stack([ops.bmm(x[0], a) for a in w]),
        )
        grads = torch.func.grad(lambda x, w: ops.bmm(x, w).square().sum(), (0, 1))(x[0], w[0])
    reference = torch.func.grad(lambda x, w: (x @ w.mT).square().sum(), (0, 1))(x[0], w[0])
    for got, exact in zip(grads, reference, strict=True):
        assert torch.allclose(got, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_is_eager():
    x, w = torch.randn(2, 6, 24).to(BF16), torch.randn(2, 5, 24).to(BF16)
    with invariant():
        want = ops.bmm(x, w)
        got = ir_core.compile(lambda x, w: torch.nn.functional.relu(ops.bmm(x, w)), fullgraph=True)(x, w)
    assert equal(got, want.relu())


def test_fake_tensors_have_the_shape_of_real_ones():
    for x in (torch.randn(2, 3, 8), torch.randn(3, 8), torch.randn(0, 3, 8), torch.randn(2, 8, 3).mT):
        w = torch.randn(*x.shape[:-2], 5, 8)
        real, fake = ops.bmm(x, w), torch.ops.ir_core.bmm(x.to("meta"), w.to("meta"))
        assert fake.shape == real.shape and fake.stride() == real.stride() and fake.dtype == real.dtype
    with pytest.raises(ArgumentError, match="has the batch"):
        torch.ops.ir_core.bmm(torch.empty(2, 3, 8, device="meta"), torch.empty(3, 5, 8, device="meta"))


def test_generated_inputs_are_a_call():
    x, w = ops.bmm.generate_inputs(num_tokens=4, hidden_size=16, dtype=BF16, out=7, rows=2)
    assert portable(x, w).shape == (4, 2, 7)
