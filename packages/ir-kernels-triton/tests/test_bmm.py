# SPDX-License-Identifier: Apache-2.0
"""bmm has the bits of its order's reference, in the interpreter and on a GPU, and those of linear for each matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ir_core.ops.batched_matmul import bmm as op

HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(5)


def portable(x: Tensor, weight: Tensor) -> Tensor:
    result = op.impls["portable"].impl_fn(x.cpu(), weight.cpu())
    assert isinstance(result, Tensor)
    return result


def run(x: Tensor, weight: Tensor) -> Tensor:
    from ir_kernels_triton.bmm import bmm_batch_invariant

    return bmm_batch_invariant(x, weight)


def assert_bits(got: Tensor, want: Tensor) -> None:
    """Equal bits; what is no number has no bits of its own."""
    got = got.cpu()
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    assert same.all(), (
        f"{int((~same).sum())} of {same.numel()} outputs differ, first at {(~same).nonzero()[0].tolist()}"
    )


def operands(device: str, dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    batch, rows, n, k = shape
    x = torch.randn(batch, rows, k).to(dtype)
    weight = (torch.randn(batch, n, k) / math.sqrt(max(k, 1))).to(dtype)
    return x.to(device), weight.to(device)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 3, 20, 17), (2, 17, 5, 40), (4, 2, 16, 64), (0, 2, 3, 8), (2, 0, 3, 8), (2, 3, 0, 8),
              (2, 3, 4, 0)]
)  # fmt: skip
def test_small_shapes(device, dtype, shape):
    x, weight = operands(device, dtype, *shape)
    assert_bits(run(x, weight), portable(x, weight))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_ranks_and_layouts_do_not_change_bits(device, dtype):
    """More leading dimensions, none, transposed, strided, expanded and misaligned operands."""
    x, weight = operands(device, dtype, 4, 5, 7, 24)
    want = portable(x, weight)
    assert_bits(run(x.view(2, 2, 5, 24), weight.view(2, 2, 7, 24)), want.view(2, 2, 5, 7))
    assert_bits(run(x[1], weight[1]), want[1])
    odd = torch.zeros(4, 7, 25, dtype=dtype, device=device)
    odd[..., 1:] = weight
    heads = torch.zeros(5, 4, 48, dtype=dtype, device=device).transpose(0, 1)  # as a projection's heads lie
    heads[..., ::2] = x
    apart = torch.zeros(4, 7 * 24 + 1, dtype=dtype, device=device)[:, : 7 * 24].unflatten(1, (7, 24))
    apart.copy_(weight)  # each row would be aligned, if each matrix began at 16 bytes
    for a in (x, x.mT.contiguous().mT, heads[..., ::2]):
        for b in (weight, weight.mT.contiguous().mT, odd[..., 1:], apart):
            assert_bits(run(a, b), want)
    assert_bits(run(x, weight[:1].expand(4, -1, -1)), portable(x, weight[:1].expand(4, -1, -1)))


def test_each_matrix_is_a_linear(device):
    from ir_kernels_triton.linear import linear_batch_invariant

    x, weight = operands(device, BF16, 3, 9, 18, 40)
    y = run(x, weight)
    for b in range(3):
        assert_bits(linear_batch_invariant(x[b], weight[b]), y[b].cpu())


def test_bad_arguments(device):
    x, weight = operands(device, BF16, 2, 3, 4, 8)
    for _ in range(2):  # also after a call that was right
        with pytest.raises(ValueError, match="rows of 'weight' have 7"):
            run(x, weight[..., :7])
        with pytest.raises(ValueError, match="has the batch"):
            run(x, weight[:1])
        with pytest.raises(ValueError, match="3 dimensions and 'weight' has 2"):
            run(x, weight[0])
        with pytest.raises(TypeError, match=r"not torch\.float64"):
            run(x.double(), weight.double())
        run(x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize("shape", [(16, 33, 128, 96), (3, 1, 200, 1000), (5, 130, 72, 64), (70000, 2, 3, 16)])
def test_kernels_of_a_gpu(dtype, shape):
    """Tiles of a GPU's size; more matrices than a grid has rows. The reference looks at the first and the last."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x, weight = operands("cuda", dtype, *shape)
    for b in (weight, weight.mT.contiguous().mT):
        y = run(x, b)
        for part in (slice(0, 2), slice(shape[0] - 2, shape[0])):
            assert_bits(y[part], portable(x[part], weight[part]))
