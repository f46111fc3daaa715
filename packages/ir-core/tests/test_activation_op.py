# SPDX-License-Identifier: Apache-2.0
"""gelu_and_mul_sparse: its canonical GELU against float64, and portable against native."""

import math

import numpy as np
import pytest
import torch

from ir_core.ops import activation

V = 2.0**-24


def positive(n: int) -> torch.Tensor:
    """float32 numbers from 2**-126 to 2**10, every exponent alike, and dense ones where GELU bends."""
    bits = torch.linspace(0x00800000, 0x44800000, n, dtype=torch.float64).to(torch.int32)
    return torch.cat([bits.view(torch.float32), torch.linspace(0, 12, n)])


def exact(x: torch.Tensor, approximate: str) -> torch.Tensor:
    x = x.double()
    if approximate == "none":
        return x * (1 - torch.special.erfc(x / math.sqrt(2)) / 2)
    return x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("approximate", "derived", "seen"), [("tanh", 6, 3), ("none", 12, 7)])
def test_gelu_is_within_the_derived_bound(approximate: str, derived: int, seen: int) -> None:
    x = positive(400_001)
    want = exact(x, approximate)
    error = ((activation.canonical_gelu(x, approximate).double() - want) / want.clamp(min=2.0**-126)).abs()
    assert error.max() <= derived * V
    assert error.max() <= seen * V  # as the docstring says


def test_exp_is_within_the_derived_bound() -> None:
    y = -torch.linspace(0, 87, 1_000_001)
    error = (activation.canonical_exp(y).double() / torch.exp(y.double()) - 1).abs()
    assert error.max() <= 4 * V


def test_special_values() -> None:
    x = torch.tensor([0.0, math.inf, math.nan, 3e38, 1e-40])
    for approximate in ("none", "tanh"):
        y = activation.canonical_gelu(x, approximate)
        assert y[0] == 0 and y[1] == math.inf and y[2].isnan() and y[3] == x[3] and y[4] == x[4] / 2
    with pytest.raises(ValueError, match="sigmoid"):
        activation.canonical_gelu(x, "sigmoid")
    assert torch.equal(
        activation.canonical_exp(torch.tensor([-1e30, -math.inf])), torch.full((2,), math.exp(-87))
    )


def test_constants_are_float32_numbers() -> None:
    for name in (
        "LOG2_E",
        "ROUND",
        "LN2_HIGH",
        "LN2_LOW",
        "EXP_MIN",
        "TAIL_SCALE",
        "CUBIC",
        "EXP",
        "TAIL",
        "MINUS_TWO_ROOT_TWO_OVER_PI",
    ):
        for value in np.atleast_1d(getattr(activation, name)):
            assert float(np.float32(value)) == value, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("d", [1, 100, 2048])
def test_portable_agrees_with_native(dtype: torch.dtype, approximate: str, d: int) -> None:
    op = activation.gelu_and_mul_sparse
    torch.manual_seed(d)
    x, multiplier, _ = op.generate_inputs(num_tokens=50, hidden_size=d, dtype=dtype)
    got = op.impls["portable"].impl_fn(x, multiplier, approximate)
    want = op.impls["native"].impl_fn(x, multiplier, approximate)
    assert got.shape == (50, d) and got.dtype == dtype
    torch.testing.assert_close(got, want, **op.get_tolerance(dtype))
    if d > 1:
        assert (got != 0).any() and (got == 0).float().mean() > 0.8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_row_does_not_see_the_batch(dtype: torch.dtype) -> None:
    impl = activation.gelu_and_mul_sparse.impls["portable"].impl_fn
    x = torch.randn(64, 600, generator=torch.Generator().manual_seed(3)).to(dtype)
    x[1], x[2], x[3] = math.nan, math.inf, 6e4
    whole = impl(x, 1.6, "none")
    for i in (0, 5, 63):
        assert torch.equal(whole[i], impl(x[i : i + 1].clone(), 1.6, "none")[0])
