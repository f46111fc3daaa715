# SPDX-License-Identifier: Apache-2.0
"""exp, exp2 and log of float32: bits by their definition in exact fused multiply-adds, values against float64."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ir_core.ops import elementary
from ir_core.ops.elementary import exp, exp2, log

INF, NAN = float("inf"), float("nan")
FUNCTIONS = {
    "exp": (exp, torch.exp, 0.902),
    "exp2": (exp2, torch.exp2, 0.88),
    "exp2 5": (lambda x: exp2(x, 5), torch.exp2, 1.95),
    "log": (log, torch.log, 0.934),
}


def every(step: int, start: int = 0) -> Tensor:
    """Each ``step``-th float32, NaNs and infinities too."""
    return (
        torch.arange(start - (1 << 31), 1 << 31, step, dtype=torch.int64).to(torch.int32).view(torch.float32)
    )


def units(got: Tensor, exact: Tensor) -> Tensor:
    """The distance in units in the last place of the exact value, subnormal numbers included."""
    exponent = torch.frexp(exact).exponent.clamp(min=-125)
    return (got.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent - 24)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_over_all_numbers(name):
    function, exact, most = FUNCTIONS[name]
    x = every(4001, start=7)
    x = torch.cat([x, torch.linspace(-104, 129, 400_001), torch.linspace(0.4, 3, 200_001)])
    want = exact(x.double())
    useful = want.isfinite() & (want.abs() <= torch.finfo(torch.float32).max)
    if name != "log":
        useful &= want >= 2.0**-126.5
    assert useful.sum() > 500_000
    assert units(function(x[useful]), want[useful]).max() < most


@pytest.mark.parametrize(("terms", "bound"), [(3, 1.03e-4), (4, 2.9e-6)])
def test_short_polynomials(terms, bound):
    x = torch.linspace(-126, 127, 1_000_003)
    want = torch.exp2(x.double())
    relative = ((exp2(x, terms).double() - want) / want).abs().max()
    assert bound / 2 < relative < bound


def test_values_that_are_exact():
    def check(function, x, want):
        got = function(torch.tensor(x, dtype=torch.float32))
        assert got.view(torch.int32).tolist() == torch.tensor(want).view(torch.int32).tolist()

    check(exp, [0.0, -0.0, -INF, INF, -3e38, 3e38, -200.0, 89.0, -87.69], [1.0, 1, 0, INF, 0, INF, 0, INF, 0])
    check(exp2, [0.0, -0.0, -INF, INF, -126.5, -126.75, 128.0], [1.0, 1, 0, INF, 2.0**-126.5, 0, INF])
    whole = [float(n) for n in range(-126, 128)]
    for terms in (3, 4, 5, 6):
        check(lambda x, terms=terms: exp2(x, terms), whole, [2.0**n for n in whole])
    check(log, [1.0, 0.0, -0.0, INF], [0.0, -INF, -INF, INF])
    assert exp(torch.tensor(88.72283)).isfinite() and exp(torch.tensor(88.7229)) == INF
    for function in (exp, exp2, log):
        assert function(torch.tensor([NAN, -NAN])).isnan().all()
    assert log(torch.tensor([-1.0, -1e-45, -INF])).isnan().all()
    assert log(torch.tensor(1e-45)).item() == pytest.approx(math.log(2.0**-149), rel=1e-7)


def test_underflow_is_gradual_to_half_of_the_smallest_normal_number():
    x = torch.linspace(-87.68, -87.34, 1001)
    got, want = exp(x), torch.exp(x.double())
    assert (got < 2.0**-126).all() and (got > 0).all()
    assert units(got, want).max() < 0.9  # units are 2**-149 here


def exact_fma(a: float, b: float, c: float) -> float:
    """One rounding of the exact sum, by rational numbers."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = torch.tensor(float(exact), dtype=torch.float64).to(torch.float32)
    around = [near, torch.nextafter(near, torch.tensor(INF)), torch.nextafter(near, torch.tensor(-INF))]
    # Python's Fraction to float is correctly rounded, so the answer is one of these; a tie goes to the even one.
    best = min(around, key=lambda v: (abs(Fraction(v.item()) - exact), int(v.view(torch.int32)) & 1))
    return best.item()


def test_the_definition_in_exact_multiply_adds():
    """Reference of another kind: the steps of the documentation, one number at a time."""
    torch.manual_seed(0)
    for x in [*torch.randn(60).mul(20).clamp(-86, 88).tolist(), 1e-8, -1e-30, 88.5, -0.34657, 0.34657]:
        e = elementary
        n = exact_fma(x, e.LOG2_E, e.ROUND) - e.ROUND
        r = exact_fma(n, -e.LN2_LOW, exact_fma(n, -e.LN2_HIGH, x))
        p = e.EXP[-1]
        for c in (*reversed(e.EXP[:-1]), 1.0, 1.0):
            p = exact_fma(p, r, c)
        want = torch.tensor(p * 2.0**n, dtype=torch.float64).float()
        assert exp(torch.tensor(x)).item() == want.item(), x
    for x in torch.randn(60).abs().tolist():
        m, k = math.frexp(x)
        m, k = (2 * m, k - 1) if m < 2 / 3 else (m, k)
        f = m - 1.0
        p = elementary.LOG[-1]
        for c in reversed(elementary.LOG[:-1]):
            p = exact_fma(p, f, c)
        square = torch.tensor(f * f, dtype=torch.float64).float().item()
        want = exact_fma(float(k), elementary.LN2, exact_fma(p, square, f))
        assert log(torch.tensor(x)).item() == want, x


@pytest.mark.parametrize("function", [exp, exp2, log])
def test_place_and_layout_do_not_matter(function):
    torch.manual_seed(1)
    x = torch.randn(3 * elementary.BLOCK + 17).mul(30)
    whole = function(x).view(torch.int32)
    assert torch.equal(whole[5:40], function(x[5:40]).view(torch.int32))
    square = x[: 300 * 300].view(300, 300)
    assert torch.equal(function(square.T).view(torch.int32), function(square).view(torch.int32).T)
    assert function(x[:0]).shape == (0,) and function(x.new_empty(3, 0)).shape == (3, 0)
    assert function(x[0]).shape == ()
    alone = torch.stack([function(v) for v in x[:50]])
    assert torch.equal(alone.view(torch.int32), whole[:50])


@pytest.mark.slow
@pytest.mark.parametrize("function", [exp, exp2, log])
def test_compiled_is_eager(function):
    x = every(40_009)
    got, want = torch.compile(function, fullgraph=True)(x), function(x)
    assert torch.equal(got.isnan(), want.isnan())
    same = ~want.isnan()
    assert torch.equal(got[same].view(torch.int32), want[same].view(torch.int32))


def test_what_is_refused():
    for function in (exp, exp2, log):
        with pytest.raises(TypeError, match=r"takes float32, got torch\.bfloat16"):
            function(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="not of 7"):
        exp2(torch.ones(2), 7)
