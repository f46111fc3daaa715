# SPDX-License-Identifier: Apache-2.0
"""gelu_and_mul_sparse: from a call to a launch. Providers ``triton_batch_invariant`` and ``triton``.

Rows are read in place while two strides describe them and each starts at a multiple of 16 bytes (of less, where less
divides its length); other tensors are copied first. Results are contiguous.
"""

import torch
from torch import Tensor

from ir_kernels_triton.launch_config import TRITON_NAMES, alignment, gelu_spec
from ir_kernels_triton.launcher import Kernel
from ir_kernels_triton.rows import MAX_ROWS, collapse, common_alignment, contiguous_rows, is_plain, parts

_KERNELS: dict[tuple[object, ...], Kernel] = {}


def _run(x: Tensor, multiplier: float, approximate: str, canonical: bool) -> Tensor:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', it is {approximate!r}")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    name = TRITON_NAMES.get(str(x.dtype))
    if name is None:
        raise TypeError(f"gelu_and_mul_sparse in Triton takes float16, bfloat16 and float32, not {x.dtype}")
    rows = None
    if is_plain(x):
        rows = contiguous_rows(y.numel() // d, (2 * d, d), x.dim())
    elif x.stride(-1) == 1:
        rows = collapse(x, y)
    if rows is None or common_alignment(x.data_ptr(), rows, x.itemsize) % alignment(d, name):
        x = x.clone(memory_format=torch.contiguous_format)
        rows = contiguous_rows(y.numel() // d, (2 * d, d), x.dim())
    key = d, x.dtype, rows.inner > 0, approximate, canonical, x.device
    kernel = _KERNELS.get(key)
    if kernel is None:
        spec = gelu_spec(d, name, inner=rows.inner > 0, tanh=approximate == "tanh", canonical=canonical)
        kernel = _KERNELS[key] = Kernel(spec, x.device)
    given = x, y
    for part, moved in ((rows, given),) if rows.number <= MAX_ROWS else parts(rows, given):
        (x_outer, y_outer), (x_step, y_step) = part.outer, part.step
        kernel(moved, part.number, (part.inner, x_outer, x_step, y_outer, y_step, multiplier))
    return y


def gelu_and_mul_sparse_batch_invariant(
    x: Tensor, std_multiplier: float, approximate: str = "none"
) -> Tensor:
    """``gelu_and_mul_sparse`` in the canonical order, with the canonical GELU."""
    return _run(x, std_multiplier, approximate, True)


def gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """``gelu_and_mul_sparse`` in the order that the compiler chooses."""
    return _run(x, std_multiplier, approximate, False)
