# SPDX-License-Identifier: Apache-2.0
"""``rms_norm`` in Triton: one program a row, so that no row knows of another."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROW = 16384  # a row is held in registers: 32 warps of 16 elements a thread


# Without specialisation every call runs the same code, whatever the addresses and the number of rows: alignment would
# choose another layout, and with it another order of the sum.
@triton.jit(do_not_specialize=["x", "weight", "y", "n", "epsilon"])
def _kernel(x, weight, y, n, epsilon, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * n
    column = tl.arange(0, BLOCK)
    inside = column < n
    row = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(row * row, axis=0) / n
    tl.store(y + start + column, row / tl.sqrt(mean + epsilon) * scale, mask=inside)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over the last dimension; float32, any strides."""
    assert weight is not None and variance_size is None, "supports() keeps such calls away"
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    n = x.shape[-1]
    if rows := x.numel() // n:
        block = triton.next_power_of_2(n)
        _kernel[(rows,)](x, weight, y, n, epsilon, BLOCK=block, num_warps=max(1, min(32, block // 512)))
    return y


def supports(x, weight, epsilon, variance_size=None):  # type: ignore[no-untyped-def]
    """Whether a call is ours. Facts of rows are all it may see: a question about their number is an error."""
    if variance_size is not None:
        return "the variance is always that of the whole row"
    if x.dtype != torch.float32 or weight is None or weight.dtype != torch.float32:
        return "takes float32, with a weight"
    return x.shape[-1] <= MAX_ROW or f"rows of {x.shape[-1]} are longer than {MAX_ROW}"
