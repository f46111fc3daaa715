# SPDX-License-Identifier: Apache-2.0
"""The canonical order is what its definition says, whatever the batch, eager and compiled."""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ir_core.ops.canonical import canonical_layout, canonical_mean, canonical_rstd, canonical_sum

LENGTHS = [
    1,
    2,
    3,
    7,
    8,
    9,
    64,
    100,
    127,
    128,
    129,
    255,
    256,
    1000,
    1024,
    1025,
    2048,
    2880,
    4096,
    5120,
    7168,
    8192,
    16384,
    16385,
    32768,
    40000,
    65536,
    70001,
]


def reference(row: np.ndarray) -> np.float32:
    """The definition, one addition at a time, on Python's own indices."""
    b_, c_, w_, l_, v_ = canonical_layout(len(row))
    value: dict[tuple[int, ...], np.float32] = {}
    for i in range(b_ * c_ * w_ * l_ * v_):
        rest, v = divmod(i, v_)
        rest, lane = divmod(rest, l_)
        rest, w = divmod(rest, w_)
        b, c = divmod(rest, c_)
        value[b, c, w, lane, v] = row[i] if i < len(row) else np.float32(0)

    def fold(axis: int, size: int) -> None:
        while size > 1:
            size //= 2
            for key in [k for k in value if k[axis] < size]:
                upper = (*key[:axis], key[axis] + size, *key[axis + 1 :])
                value[key] = np.float32(value[key] + value.pop(upper))

    fold(4, v_)
    fold(1, c_)
    for b in range(1, b_):
        for key in [k for k in value if k[0] == b]:
            first = (0, *key[1:])
            value[first] = np.float32(value[first] + value.pop(key))
    fold(3, l_)
    fold(2, w_)
    (total,) = value.values()
    return total


@pytest.mark.parametrize("n", LENGTHS)
def test_sum_is_the_definition(n: int) -> None:
    row = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    got = canonical_sum(torch.from_numpy(row))
    assert got.shape == (1,)
    assert got.numpy().view(np.int32)[0] == reference(row).view(np.int32)


@pytest.mark.parametrize("n", LENGTHS)
def test_layout_is_a_split_of_the_padded_row(n: int) -> None:
    layout = canonical_layout(n)
    assert math.prod(layout) == layout.padded >= n
    assert layout.padded < 2 * n or layout.padded - n < 16384
    assert all(size & (size - 1) == 0 for size in layout[1:])
    assert (layout.blocks == 1) == (n <= 16384)


@pytest.mark.parametrize("n", [1, 100, 4096, 20000])
def test_error_is_within_the_bound_of_the_tree(n: int) -> None:
    """Each element passes through at most log2(block) + blocks - 1 roundings of 2**-24 relative to the partial sums."""
    row = torch.rand(n, generator=torch.Generator().manual_seed(n))
    exact = sum((Fraction(float(v)) for v in row), Fraction(0))
    layout = canonical_layout(n)
    depth = int(math.log2(layout.block)) + layout.blocks - 1
    error = abs(Fraction(float(canonical_sum(row))) - exact)
    assert error <= exact * ((1 + Fraction(1, 2**24)) ** depth - 1)


@pytest.mark.parametrize("n", [1, 5, 128, 4096, 7168, 16400])
def test_row_does_not_see_the_batch(n: int) -> None:
    batch = torch.randn(300, n, generator=torch.Generator().manual_seed(0))
    batch[1], batch[2], batch[3] = math.nan, math.inf, 3e38
    want = [canonical_rstd(batch[i : i + 1].clone(), n, 1e-6) for i in (0, 7, 299)]
    strided = torch.empty(300, n + 3)[:, 1 : n + 1].copy_(batch)
    for view in (batch, strided, batch.t().contiguous().t()):
        got = canonical_rstd(view, n, 1e-6)
        for i, w in zip((0, 7, 299), want, strict=True):
            assert torch.equal(got[i].view(torch.int32), w[0].view(torch.int32))


def test_shapes_and_dtypes() -> None:
    assert canonical_sum(torch.ones(0, 5)).shape == (0, 1)
    assert canonical_sum(torch.ones(2, 0, 5)).shape == (2, 0, 1)
    assert canonical_sum(torch.ones(3, 0)).tolist() == [[0.0]] * 3
    assert canonical_sum(torch.ones(2, 3, 5)).tolist() == [[[5.0]] * 3] * 2
    assert canonical_mean(torch.ones(3)).item() == 1.0
    with pytest.raises(TypeError, match="bfloat16"):
        canonical_sum(torch.ones(4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="-1"):
        canonical_layout(-1)


def test_special_values_propagate() -> None:
    x = torch.zeros(5, 300)
    x[0, 299], x[1, 0], x[2, 5], x[3, 7] = math.nan, math.inf, 2e38, 1e-40
    x[2, 6] = 2e38
    assert canonical_sum(x)[:, 0].tolist()[1:] == [math.inf, math.inf, float(torch.tensor(1e-40)), 0.0]
    assert canonical_sum(x)[0].isnan()
    assert canonical_rstd(x, 300, 1e-6)[1] == 0.0


def test_variance_size_reads_the_head_alone() -> None:
    x = torch.randn(4, 200)
    assert torch.equal(canonical_rstd(x, 120, 1e-5), canonical_rstd(x[:, :120].clone(), 120, 1e-5))


def test_root_and_divisions_are_correctly_rounded() -> None:
    """Against integers: numpy's float64 root of a float32, rounded once more, is the correctly rounded float32 root."""
    mean = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1)) * 100
    x = mean.sqrt()
    got = canonical_rstd(x, 1, 1e-6).numpy()
    m = (x * x).numpy() + np.float32(1e-6)
    root = np.sqrt(m.astype(np.float64)).astype(np.float32)
    want = (1.0 / root.astype(np.float64)).astype(np.float32)
    assert np.array_equal(got.view(np.int32), want.view(np.int32))
    total = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(2))
    want = (canonical_sum(total).numpy().astype(np.float64) / 3.0).astype(np.float32)
    assert np.array_equal(canonical_mean(total).numpy().view(np.int32), want.view(np.int32))


def test_gradient() -> None:
    x = torch.randn(3, 300, requires_grad=True)
    canonical_sum(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(3, 300))


@pytest.mark.slow
def test_compiled_bits_are_eager_bits() -> None:
    """On a CPU: with dynamic rows, one compilation serves all, and the bits stay."""
    compiled = torch.compile(canonical_rstd, dynamic=True, fullgraph=True)
    for n in (100, 4096):
        for rows in (1, 2, 7):
            x = torch.randn(rows, n)
            assert torch.equal(
                compiled(x, n, 1e-6).view(torch.int32), canonical_rstd(x, n, 1e-6).view(torch.int32)
            )


def test_documented_reference_gives_the_same_bits() -> None:
    """docs/canonical-order.md holds a NumPy implementation; it is the definition in other words."""
    page = Path(__file__).parents[3] / "docs" / "canonical-order.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    documented: dict[str, object] = {}
    exec(code, documented)
    for n in (1, 20, 100, 4096, 7168, 40000):
        rng = np.random.default_rng(n)
        row, weight = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
        x32 = torch.from_numpy(row)
        assert documented["canonical_sum"](row) == canonical_sum(x32).numpy()[0]  # type: ignore[operator]
        want = (x32 * canonical_rstd(x32, n, 1e-6) * torch.from_numpy(weight)).numpy()
        got = documented["rms_norm"](row, weight, 1e-6)  # type: ignore[operator]
        assert np.array_equal(got.view(np.int32), want.view(np.int32))
