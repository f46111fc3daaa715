# SPDX-License-Identifier: Apache-2.0
"""softmax, log_softmax, logsumexp, sum, mean and layer_norm: values, bits that depend on a row alone, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops
from ir_core.errors import ArgumentError
from ir_core.ops import elementary
from ir_core.ops.canonical import canonical_layout, exact_sqrt

pytestmark = pytest.mark.usefixtures("alone")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INF, NAN = float("inf"), float("nan")
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
TORCH = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "layer_norm": lambda x, w=None, b=None: torch.nn.functional.layer_norm(x, (x.shape[-1],), w, b),
}
NAMES = tuple(TORCH)
SCALARS = ("logsumexp", "sum", "mean")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(5)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bits; what is no number has no bits of its own."""
    integer = INTEGER[a.element_size()]
    same = (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())
    return a.dtype is b.dtype and a.shape == b.shape and bool(same.all())


def portable(name: str, *args: Tensor) -> Tensor:
    op = getattr(ops, name)
    result = op.impls["portable"].impl_fn(*op.apply_arg_defaults(args))
    assert isinstance(result, Tensor)
    return result


def invariant():
    return ir_core.scope(batch_invariant=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 100, 1001, 20000])
def test_values(name, dtype, n):
    """Native and portable against float64, each within half of what two implementations may differ by."""
    x = (torch.randn(5, n) * 3).to(dtype)
    args = (x, torch.randn(n).to(dtype), torch.randn(n).to(dtype)) if name == "layer_norm" else (x,)
    exact = TORCH[name](*(t.double() for t in args))
    bound = getattr(ops, name).get_tolerance(dtype)
    full = getattr(ops, name).apply_arg_defaults(args)
    for provider in ("native", "portable"):
        got = getattr(ops, name).impls[provider].impl_fn(*full)
        assert got.dtype is dtype and got.is_contiguous() and got.shape == exact.shape
        error = (got.double() - exact).abs()
        assert (error <= bound["rtol"] / 2 * exact.abs() * 1.01 + bound["atol"] / 2 + 1e-300).all(), (
            error.max()
        )


def fold(values: np.ndarray) -> np.float32:
    """The canonical sum of one row, from its description: index by index."""
    layout = canonical_layout(len(values))
    padded = np.zeros(layout.padded, dtype=np.float32)
    padded[: len(values)] = values
    tree = padded.reshape(layout)

    def halves(a: np.ndarray, axis: int) -> np.ndarray:
        while a.shape[axis] > 1:
            low, high = np.split(a, 2, axis)
            a = low + high
        return a

    tree = halves(halves(tree, 4), 1)
    total = tree[0]
    for block in tree[1:]:
        total = total + block
    return halves(halves(total, 2), 1).reshape(())[()]


@pytest.mark.parametrize("n", [1, 5, 8, 31, 300, 1024, 5000, 40000])
def test_the_documented_order(n):
    """Each op from its description, in NumPy and one row at a time."""
    row = torch.randn(n) * 4
    x = row.numpy()
    shifted = x - x.max()
    e = elementary.exp(torch.from_numpy(shifted))
    total = fold(e.numpy())
    log_total = elementary.log(torch.tensor(total)).numpy()
    one, count = np.float32(1), np.float32(n)
    assert equal(portable("sum", row), torch.tensor(fold(x)))
    assert equal(portable("mean", row), torch.tensor(fold(x) / count))
    assert equal(portable("softmax", row), e * torch.tensor(one / total))
    assert equal(portable("log_softmax", row), torch.from_numpy(shifted - log_total))
    assert equal(portable("logsumexp", row), torch.tensor(x.max() + log_total))
    weight, bias = torch.randn(n), torch.randn(n)
    deviation = x - fold(x) / count
    variance = fold(deviation * deviation) / count
    rstd = one / np.sqrt(variance + np.float32(1e-5))
    want = deviation * rstd * weight.numpy() + bias.numpy()
    assert equal(portable("layer_norm", row, weight, bias), torch.from_numpy(want))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_bits_depend_on_the_row_alone(name, dtype):
    x = (torch.randn(33, 777) * 3).to(dtype)
    want = portable(name, x)
    assert equal(torch.stack([portable(name, row) for row in x]), want)
    assert equal(portable(name, x.flip(0)), want.flip(0))
    assert equal(portable(name, x[3:8]), want[3:8])
    assert equal(portable(name, x.T.contiguous().T), want)
    assert equal(portable(name, x.view(3, 11, 777)), want.view(3, 11, *want.shape[1:]))
    wide = torch.randn(33, 800).to(dtype)
    wide[:, 5:782] = x
    assert equal(portable(name, wide[:, 5:782]), want)
    others = x.clone()
    others[1:] = INF
    assert equal(portable(name, others)[0], want[0])


def test_special_values():
    rows = torch.tensor([[-INF, -INF], [INF, 1.0], [NAN, 1.0], [-INF, 0.0], [NAN, INF], [3e38, -3e38]])
    for name in ("softmax", "log_softmax", "logsumexp"):
        got = portable(name, rows)
        want = TORCH[name](rows)
        if name != "logsumexp":
            want[1] = (
                NAN  # torch leaves the finite element of a row with +inf at 0 or -inf; here the row is NaN
            )
        assert torch.equal(got.isnan(), want.isnan()), name
        assert torch.equal(got.nan_to_num(), want.nan_to_num()), name
    assert portable("softmax", torch.zeros(3, 4)).eq(0.25).all()
    assert portable("softmax", torch.tensor([[0.0, -200.0]])).tolist() == [[1.0, 0.0]]
    zeros = torch.full((2, 8), -0.0)
    for name in ("sum", "mean"):
        assert not portable(name, zeros).signbit().any()
    assert portable("layer_norm", zeros).signbit().all()  # -0 less +0
    empty = torch.empty(2, 0)
    assert portable("softmax", empty).shape == portable("layer_norm", empty).shape == (2, 0)
    assert portable("logsumexp", empty).tolist() == [-INF, -INF]
    assert portable("sum", empty).tolist() == [0.0, 0.0] and portable("mean", empty).isnan().all()
    for name in NAMES:
        full = (0, 5) if name not in SCALARS else (0,)
        assert portable(name, torch.empty(0, 5)).shape == full


def test_the_root_of_float64_is_correctly_rounded():
    x = torch.rand(400_000, dtype=F64) * torch.exp2(torch.randint(-1060, 1000, (400_000,)).double())
    assert equal(exact_sqrt(x), torch.from_numpy(np.sqrt(x.numpy())))
    special = torch.tensor([0.0, -0.0, INF, -1.0, NAN, 5e-324], dtype=F64)
    with np.errstate(invalid="ignore"):
        assert equal(exact_sqrt(special), torch.from_numpy(np.sqrt(special.numpy())))


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    """Those of torch in float64; and in float32, those of a row do not depend on the batch."""
    op = getattr(ops, name)
    x = torch.randn(4, 33, dtype=F64, requires_grad=True)
    extra = [torch.randn(33, dtype=F64, requires_grad=True) for _ in range(2 if name == "layer_norm" else 0)]
    with invariant():
        y = op(x, *extra)
    grad = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, (x, *extra), grad),
        torch.autograd.grad(TORCH[name](x, *extra), (x, *extra), grad),
        strict=True,
    ):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-13)
    rows = torch.randn(9, 700)
    some = [t.detach().float().repeat(22)[:700] for t in extra]

    def gradient(rows: Tensor, grads: Tensor) -> Tensor:
        leaf = rows.clone().requires_grad_()
        with invariant():
            (found,) = torch.autograd.grad(op(leaf, *some), leaf, grads)
        return found

    grads = torch.randn_like(portable(name, rows))
    want = gradient(rows, grads)
    for i in range(9):
        assert equal(gradient(rows[i : i + 1], grads[i : i + 1])[0], want[i])


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_one_more_dimension(name):
    op = getattr(ops, name)
    x = torch.randn(3, 4, 40)
    with invariant():
        assert equal(torch.func.vmap(op)(x), portable(name, x))
        assert equal(torch.func.vmap(op, in_dims=1)(x), portable(name, x.transpose(0, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_is_eager(name):
    op = getattr(ops, name)
    x = torch.randn(5, 130).to(BF16)
    with invariant():
        assert equal(torch.compile(lambda x: op(x * 2), fullgraph=True)(x), op(x * 2))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name):
    op = getattr(ops, name)
    with pytest.raises(ArgumentError, match="floating-point"):
        op(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="no dimension"):
        op(torch.tensor(1.0))
    if name == "layer_norm":
        with pytest.raises(ArgumentError, match=r"'bias' has the shape \[3\]"):
            op(torch.ones(2, 4), torch.ones(4), torch.ones(3))


def test_a_vocabulary_of_256000():
    x = torch.randn(2, 256_000) * 5
    got = portable("log_softmax", x)
    assert (got.double() - x.double().log_softmax(-1)).abs().max() < 2e-5
    assert abs(portable("softmax", x).double().sum(-1) - 1).max() < 1e-5
    assert equal(portable("log_softmax", x[1]), got[1])
