# SPDX-License-Identifier: Apache-2.0
"""bmm: from a call to a launch of ``linear_tile``, with the batch as a part of the program's number.

The kernel, and so the order, are those of ``linear``: ``chain16`` for 16 bits on SM 9.0, ``fma_chain`` for float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ir_core.ops.batched_matmul import check as check_op
from ir_core.ops.batched_matmul import check_batch
from ir_kernels_triton import linear
from ir_kernels_triton.kernel_spec import TRITON_NAMES
from ir_kernels_triton.launcher import current_device

_RUNS: dict[tuple[object, ...], linear.Run] = {}


def bmm_batch_invariant(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.mT`` in the order of x's dtype; see :func:`ir_core.ops.bmm`.

    Raises ArgumentError when the arguments are no call of ``bmm``, TypeError for a dtype without a kernel.
    """
    if x.dim() != 3:
        _check(x, weight)
        flat = (each.reshape(math.prod(each.shape[:-2]), *each.shape[-2:]) for each in (x, weight))
        return bmm_batch_invariant(*flat).view(*x.shape[:-1], weight.shape[-2])
    index = x.get_device()
    key = (
        x.shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype,
        (x.data_ptr() | weight.data_ptr()) & 15 == 0, index,
    )  # fmt: skip
    run = _RUNS.get(key)
    if run is None:
        _check(x, weight)
        if len(_RUNS) >= linear.MAX_RUNS:
            _RUNS.clear()
        run = _RUNS[key] = _prepare(x, weight)
    y = torch.empty((x.shape[0], x.shape[1], weight.shape[1]), dtype=x.dtype, device=x.device)
    if index < 0 or index == current_device():
        run(x, weight, x, y)
    else:
        with torch.cuda.device(index):
            run(x, weight, x, y)
    return y


def _check(x: Tensor, weight: Tensor) -> None:
    check_op(x, weight)
    check_batch(x, weight)
    if str(x.dtype) not in TRITON_NAMES:
        raise TypeError(f"the Triton bmm takes float16, bfloat16 and float32, not {x.dtype}")
    if weight.device != x.device:
        raise ValueError(f"weight must be on x's device {x.device}, it is on {weight.device}")


def _prepare(x: Tensor, weight: Tensor) -> linear.Run:
    batch, rows, k = x.shape
    n = weight.shape[1]
    if not batch or not rows or not n:
        return linear.nothing
    if not k:
        return linear.no_terms
    even = all(_aligned(each) for each in (x, weight))
    return linear.tile_run(x, weight, False, even)


def _aligned(t: Tensor) -> bool:
    """Whether each row of each matrix is as the kernel wants it, see :func:`ir_kernels_triton.linear.aligned`."""
    apart = t.shape[0] == 1 or t.stride(0) * t.element_size() % 16 == 0
    return apart and linear.aligned(t[0])
