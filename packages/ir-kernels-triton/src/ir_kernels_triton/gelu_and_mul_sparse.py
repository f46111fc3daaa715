# SPDX-License-Identifier: Apache-2.0
"""gelu_and_mul_sparse: from a call to a launch. Providers ``triton_batch_invariant`` and ``triton``."""

import torch
from torch import Tensor

from ir_kernels_triton.launch_config import TRITON_NAMES, alignment, gelu_spec
from ir_kernels_triton.launcher import Kernel
from ir_kernels_triton.rows import MAX_ROWS, collapse, common_alignment, contiguous_rows, parts

_KERNELS: dict[tuple[object, ...], Kernel] = {}


def _run(x: Tensor, multiplier: float, approximate: str, canonical: bool) -> Tensor:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', it is {approximate!r}")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if not x.is_contiguous() and x.stride(-1) != 1:
        x = x.contiguous()
    rows = None if x.is_contiguous() else collapse(x, y)
    if rows is None:
        x = x.contiguous()
        rows = contiguous_rows(y.numel() // d, d, 2)._replace(outer=(2 * d, d))
    name = TRITON_NAMES.get(str(x.dtype))
    if name is None:
        raise TypeError(f"gelu_and_mul_sparse in Triton takes float16, bfloat16 and float32, not {x.dtype}")
    to = alignment(d, name)
    hints = 2 if common_alignment(x.data_ptr() | y.data_ptr(), rows, x.itemsize) % to == 0 else 1
    key = d, x.dtype, hints, rows.inner > 0, approximate, canonical, x.device
    kernel = _KERNELS.get(key)
    if kernel is None:
        spec = gelu_spec(
            d, name, hints=hints, inner=rows.inner > 0, tanh=approximate == "tanh", canonical=canonical
        )
        kernel = _KERNELS[key] = Kernel(spec, x.device)
    given = x, y
    for part, moved in ((rows, given),) if rows.count <= MAX_ROWS else parts(rows, given):
        (x_outer, y_outer), (x_step, y_step) = part.outer, part.step
        kernel(moved, part.count, (part.inner, x_outer, x_step, y_outer, y_step, multiplier))
    return y


def gelu_and_mul_sparse_batch_invariant(
    x: Tensor, std_multiplier: float, approximate: str = "none"
) -> Tensor:
    """``gelu_and_mul_sparse`` in the canonical order, with the canonical GELU."""
    return _run(x, std_multiplier, approximate, True)


def gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """``gelu_and_mul_sparse`` in the order that the compiler chooses."""
    return _run(x, std_multiplier, approximate, False)
