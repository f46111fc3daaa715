# SPDX-License-Identifier: Apache-2.0
"""linear: its orders against hardware and against exact arithmetic, its shapes and layouts, and its gradients."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops
from ir_core.errors import ArgumentError
from ir_core.ops import chain16_narrow, chain16_wide
from ir_core.ops.chain16 import chain16, chain16_add
from ir_core.ops.fma_chain import fma_chain, mul_add_chain

pytestmark = pytest.mark.usefixtures("alone")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
HARDWARE = torch.load(Path(__file__).parent / "hardware" / "chain16_sm90.pt")
"""Bit patterns of operands, and float32 accumulators as an H200 computed them (2026-11, with ``wgmma`` and with
``mma.sync``, which agreed): normal data, spread exponents, and the rules for subnormal numbers, overflow and
infinities."""


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(2)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bits; what is no number has no bits of its own."""
    integer = INTEGER[a.element_size()]
    same = (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())
    return a.dtype is b.dtype and a.shape == b.shape and bool(same.all())


def portable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = ops.linear.impls["portable"].impl_fn(x, weight, bias)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("name", [name for name in HARDWARE if not name.startswith("fp32")])
def test_chain16_is_what_the_tensor_core_computes(name):
    a, b, want = HARDWARE[name]
    dtype = BF16 if name.startswith("bf16") else HALF
    assert equal(chain16(a.view(dtype), b.view(dtype)), want)


@pytest.mark.parametrize("name", [name for name in HARDWARE if name.startswith("fp32")])
def test_fma_chain_is_what_a_gpu_computes(name):
    a, b, want = HARDWARE[name]
    assert equal(fma_chain(a, b), want)


def test_the_hardware_met_every_rule():
    """Else the test above could not tell: infinities, no numbers, subnormal results, and sums cut off below 2**-158."""
    results = torch.cat([c.flatten() for _, _, c in HARDWARE.values()])
    assert results.isinf().any() and results.isnan().any()
    assert ((results != 0) & (results.abs() < 2.0**-126)).any()


def rounded(value: Fraction, bits: int, lowest: int) -> Fraction:
    """To nearest even, with so many bits and no exponent below ``lowest``; exact arithmetic."""
    if value == 0:
        return value
    exponent = (
        math.frexp(float(abs(value)))[1] - 1
    )  # one too high where the conversion rounded up: corrected below
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, lowest) - bits + 1)
    return round(value / unit) * unit  # Python rounds halves to even


@pytest.mark.parametrize("spread", [0, 4, 60])
def test_fma_chain_against_exact_arithmetic(spread):
    """Also where the float64 sum falls midway between two float32, and for subnormal float32."""
    x, w = torch.randn(3, 60), torch.randn(3, 60)
    if spread == 4:  # few bits, so that ties happen
        x, w = 1 + torch.randint(-3, 4, (3, 60)) * 2.0**-23, 1 + torch.randint(-3, 4, (3, 60)) * 2.0**-23
    if spread == 60:
        x, w = (
            x * torch.exp2(torch.randint(-75, -60, (3, 60))),
            w * torch.exp2(torch.randint(-75, -60, (3, 60))),
        )
    got = fma_chain(x, w)
    for m in range(3):
        for n in range(3):
            c = Fraction(0)
            for k in range(60):
                c = rounded(Fraction(x[m, k].item()) * Fraction(w[n, k].item()) + c, 24, -126)
            assert got[m, n].item() == float(c)


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("octaves", [0, 20, 24, 60, 120])
def test_both_ways_through_chain16_have_the_same_bits(dtype, octaves):
    """The fast way takes what it can, and the other one everything; also on top of accumulators."""
    a, b = (
        (torch.randn(2, r, 50) * torch.exp2(torch.randint(-octaves, octaves + 1, (2, r, 50)))).to(dtype)
        for r in (3, 40)
    )
    a[0, 0], b[1, 1] = 0, 0
    acc = torch.randn(2, 3, 40) * torch.exp2(torch.randint(-octaves, octaves + 1, (2, 3, 40)))
    acc[:, :, :20] = 0
    sides = [chain16_narrow.prepare(t, bias) for t, bias in zip((a, b), chain16_narrow.BIAS, strict=True)]
    want = chain16_wide.add(acc, chain16_wide.prepare(a), chain16_wide.prepare(b))
    assert equal(chain16_add(acc, a, b), want)
    assert equal(chain16_add(acc.mT, b, a), want.mT)
    fast = all(side is not None for side in sides)
    assert fast == bool((a.isfinite().all() & b.isfinite().all()) and (dtype is HALF or octaves <= 24))
    if fast and chain16_narrow.accepts(acc):
        assert equal(chain16_narrow.add(acc, *sides), want)


def test_the_fast_way_refuses_what_float32_cannot_hold():
    for value in (2.0**-39, 2.0**51, math.inf, math.nan):
        assert chain16_narrow.prepare(torch.full((1, 1, 16), value, dtype=BF16), 64) is None
    for value in (2.0**-102, 2.0**100, math.inf, math.nan):
        assert not chain16_narrow.accepts(torch.full((1, 1, 1), value))


def test_sums_of_the_largest_significands_fit():
    """16 products of 2 - 2**-7 are almost 64 units, and the accumulator brings the sum above 2**31."""
    a = torch.full((1, 40), 2 - 2.0**-7, dtype=BF16)
    assert equal(
        chain16(a, a), chain16_wide.add(*(torch.zeros(1, 1, 1), *2 * [chain16_wide.prepare(a[None])]))[0]
    )


def test_mul_add_chain_step_by_step():
    x, w = torch.randn(3, 33, dtype=F64), torch.randn(4, 33, dtype=F64)
    c = torch.zeros(3, 4, dtype=F64)
    for k in range(33):
        c = c + x[:, k : k + 1] * w[:, k]
    assert equal(mul_add_chain(x, w), c)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 1, 1), (5, 3, 17), (2, 70, 40), (0, 3, 8), (3, 0, 8), (3, 4, 0)]
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("provider", ["native", "portable"])
def test_values(provider, dtype, rows, n, k, biased):
    x, w, b = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)
    w = w / math.sqrt(max(k, 1))
    got = ops.linear.impls[provider].impl_fn(x, w, b if biased else None)
    want = x.double() @ w.double().T + (b.double() if biased else 0)
    assert got.dtype is dtype and got.shape == (rows, n) and got.is_contiguous()
    bound = ops.linear.get_tolerance(dtype)
    assert torch.allclose(got.double(), want, rtol=2 * bound["rtol"], atol=bound["atol"])


@pytest.mark.parametrize("dtype", [HALF, BF16, F32, F64])
def test_rows_do_not_depend_on_the_batch_nor_on_layout(dtype):
    x, w, b = torch.randn(70, 40).to(dtype), torch.randn(9, 40).to(dtype), torch.randn(9).to(dtype)
    want = portable(x, w, b)
    for r in (0, 33, 69):
        assert equal(portable(x[r : r + 1], w, b), want[r : r + 1])
    assert equal(portable(x.T.contiguous().T, w.T.contiguous().T, b), want)
    assert equal(portable(x.view(7, 2, 5, 40), w, b), want.view(7, 2, 5, 9))
    assert equal(portable(x[4], w, b), want[4])


def test_chain16_blocks_do_not_change_bits(monkeypatch):
    x, w = torch.randn(9, 48).to(BF16), torch.randn(11, 48).to(BF16)
    want = chain16(x, w)
    monkeypatch.setitem(chain16.__globals__["BLOCK"], "cpu", 4)
    assert equal(chain16(x, w), want)


def test_padding_k_changes_nothing():
    x, w = torch.randn(3, 19).to(BF16), torch.randn(4, 19).to(BF16)
    pad = torch.nn.functional.pad
    assert equal(portable(x, w), portable(pad(x, (0, 13)), pad(w, (0, 13))))


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "after a right call"])
def test_bad_arguments(warm):
    x, w = torch.randn(2, 8), torch.randn(3, 8)
    wrong = [
        ((x, w[:, :7]), r"'weight' has the shape \[3, 7\], and the rows of 'x' have 8"),
        ((x, w[0]), r"'weight' has the shape \[8\]"),
        ((x, w.double()), "'weight' is torch.float64, and 'x' is torch.float32"),
        ((x, w, torch.randn(1)), r"'bias' has the shape \[1\], and the weight has 3 rows"),
        ((x.int(), w.int()), "float16, bfloat16, float32 and float64"),
    ]
    for args, message in wrong:
        if warm:
            ops.linear(x, w, torch.randn(3))
            ops.linear(x, w)
        with pytest.raises(ArgumentError, match=message):
            ops.linear(*args)
    with pytest.raises(TypeError, match="chain16 takes"):
        chain16(x, w)


def invariant(**changes):
    return ir_core.scope(batch_invariant=True, **changes)


def test_batch_invariant_mode_takes_the_reference():
    x, w = torch.randn(4, 24).to(BF16), torch.randn(5, 24).to(BF16)
    with invariant():
        assert ops.linear.dispatch(x, w).provider == "portable"
        assert equal(ops.linear(x, w), portable(x, w))
        assert equal(ops.linear(x, w, bias=None), portable(x, w))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_gradients_are_linears_of_the_same_order(dtype):
    x, w, b = (torch.randn(*s).to(dtype).requires_grad_() for s in ((2, 3, 17), (5, 17), (5,)))
    g = torch.randn(2, 3, 5).to(dtype)
    with invariant():
        ops.linear(x, w, b).backward(g)
    flat, rows = g.reshape(6, 5), x.detach().reshape(6, 17)
    assert equal(x.grad, portable(g, w.detach().T))
    assert equal(w.grad, portable(flat.T, rows.T))
    assert equal(b.grad, portable(flat.T, torch.ones(1, 6, dtype=dtype)).squeeze(1))


def test_the_gradient_of_a_row_does_not_depend_on_the_batch():
    x, w, g = torch.randn(40, 24).to(BF16), torch.randn(5, 24).to(BF16), torch.randn(40, 5).to(BF16)

    def of(rows: slice) -> Tensor:
        some = x[rows].clone().requires_grad_()
        ops.linear(some, w).backward(g[rows])
        assert some.grad is not None
        return some.grad

    with invariant():
        assert equal(of(slice(0, 40))[7:8], of(slice(7, 8)))


def test_gradcheck_and_second_derivatives():
    x, w, b = (torch.randn(*s, dtype=F64, requires_grad=True) for s in ((3, 4), (2, 4), (2,)))
    with invariant():
        assert torch.autograd.gradcheck(ops.linear, (x, w, b))
        assert torch.autograd.gradgradcheck(ops.linear, (x, w, b))


def test_only_wanted_gradients_are_computed():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    ops.linear(x, w).sum().backward()
    assert x.grad is not None and w.grad is None


def test_transforms():
    x, w, b = torch.randn(6, 3, 8, dtype=F64), torch.randn(5, 8, dtype=F64), torch.randn(5, dtype=F64)
    with invariant():
        want = ops.linear(x, w, b)
        assert equal(torch.func.vmap(ops.linear, (0, None, None))(x, w, b), want)
        weights = torch.stack([w, 2 * w, 3 * w, w, w, w])
        each = torch.func.vmap(ops.linear, (0, 0, None))(x, weights, b)
        assert equal(each, torch.stack([ops.linear(x[i], weights[i], b) for i in range(6)]))
        grads = torch.func.grad(lambda x, w: ops.linear(x, w).square().sum(), (0, 1))(x[0], w)
    reference = torch.func.grad(lambda x, w: (x @ w.T).square().sum(), (0, 1))(x[0], w)
    for got, exact in zip(grads, reference, strict=True):
        assert torch.allclose(got, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_is_eager():
    x, w, b = torch.randn(6, 24).to(BF16), torch.randn(5, 24).to(BF16), torch.randn(5).to(BF16)
    with invariant():
        want = ops.linear(x, w, b)

        def twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return torch.nn.functional.relu(ops.linear(x, w, b))

        got = ir_core.compile(twice, fullgraph=True)(x, w, b)
    assert equal(got, want.relu())


def test_fake_tensors_have_the_shape_of_real_ones():
    for x in (torch.randn(2, 3, 8), torch.randn(8), torch.randn(0, 8), torch.randn(3, 8).T.contiguous().T):
        real = ops.linear(x, torch.randn(5, 8))
        fake = torch.ops.ir_core.linear(x.to("meta"), torch.empty(5, 8, device="meta"), None)
        assert fake.shape == real.shape and fake.stride() == real.stride() and fake.dtype == real.dtype


def test_generated_inputs_are_a_call():
    x, w, b = ops.linear.generate_inputs(num_tokens=3, hidden_size=16, dtype=BF16, out=7, bias=True)
    assert portable(x, w, b).shape == (3, 7)
    assert ops.linear.generate_inputs(num_tokens=3, hidden_size=16, dtype=BF16)[2] is None
