# SPDX-License-Identifier: Apache-2.0
"""gelu_and_mul_sparse: from a call to a launch. Providers ``triton_batch_invariant`` and ``triton``.

Rows are read in place while two strides describe them and each starts at a multiple of 16 bytes (of less, where less
divides its length); other tensors are copied first. Results are contiguous.
"""

from functools import cache

import torch
from torch import Tensor

from ir_kernels_triton.gelu_config import gelu_spec
from ir_kernels_triton.kernel_spec import TRITON_NAMES, alignment
from ir_kernels_triton.launcher import Kernel, RowLaunch
from ir_kernels_triton.rows import copied, readable, row_starts


@cache
def _prepared(
    d: int, x: str, two_strides: bool, approximate: str, canonical: bool, device: torch.device
) -> RowLaunch:
    spec = gelu_spec(d, x, inner=two_strides, tanh=approximate == "tanh", canonical=canonical)
    return RowLaunch(Kernel(spec, device), {"x_ptr": "x", "y_ptr": "y"}, "multiplier")


def _run(x: Tensor, multiplier: float, approximate: str, *, canonical: bool) -> Tensor:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', it is {approximate!r}")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    name = TRITON_NAMES.get(str(x.dtype))
    if name is None:
        raise TypeError(f"gelu_and_mul_sparse in Triton takes float16, bfloat16 and float32, not {x.dtype}")
    rows, (x,) = readable((x,), (y,))
    if row_starts(x.data_ptr(), rows, x.itemsize) % alignment(d, name):
        rows, (x,) = readable((copied(x),), (y,))
    launch = _prepared(d, name, rows.inner > 0, approximate, canonical, x.device)
    launch(rows, (x, y), (), multiplier)
    return y


def gelu_and_mul_sparse_batch_invariant(
    x: Tensor, std_multiplier: float, approximate: str = "none"
) -> Tensor:
    """``gelu_and_mul_sparse`` in the canonical order, with the canonical GELU."""
    return _run(x, std_multiplier, approximate, canonical=True)


def gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """``gelu_and_mul_sparse`` in the order that the compiler chooses."""
    return _run(x, std_multiplier, approximate, canonical=False)
