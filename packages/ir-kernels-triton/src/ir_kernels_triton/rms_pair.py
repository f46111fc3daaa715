# SPDX-License-Identifier: Apache-2.0
"""Two calls of rms_norm in one launch, as a layer's q and k norms are: the ``pair`` of both providers.

One launch takes rows of one length, at most 1024, of which a warp holds whole ones, with two weights. Everything else
(no weight, longer rows, tensors to be copied first) is two launches. The bits are those of two calls either way: each
row is computed by the same function, laid out in the same way.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ir_kernels_triton.arguments import Launch
from ir_kernels_triton.kernel_spec import TRITON_NAMES, alignment, weight_alignment
from ir_kernels_triton.launch_config import DEPENDENT_LAUNCH, SHORT_ROW, pair_spec
from ir_kernels_triton.launcher import Kernel, dependent_launch
from ir_kernels_triton.rms_norm import rms_norm, rms_norm_batch_invariant
from ir_kernels_triton.rows import MAX_ROWS, Rows, in_place, row_starts

_GIVEN = (
    *("x_ptr", "w_ptr", "y_ptr", "x2_ptr", "w2_ptr", "y2_ptr"),
    *("rows", "inner", "x_outer", "x_inner"),
    *("rows2", "inner2", "x2_outer", "x2_inner"),
    "epsilon",
)
"""The kernel's arguments as a call gives them: tensors, the rows of the first call, those of the second, epsilon."""


@cache
def _prepared(
    d: int, x: torch.dtype, weight: torch.dtype, canonical: bool, device: torch.device
) -> tuple[Kernel, Launch]:
    pdl = DEPENDENT_LAUNCH and dependent_launch(device)
    names = TRITON_NAMES[str(x)], TRITON_NAMES[str(weight)]
    kernel = Kernel(pair_spec(d, *names, canonical=canonical, pdl=pdl), device)
    return kernel, kernel.prepare(_GIVEN, {})


def _rows(x: Tensor, weight: Tensor) -> Rows | None:
    """The rows of one call with two strides; None where they or the weight are not as the kernel takes them."""
    d = x.shape[-1]
    name, w_name = TRITON_NAMES.get(str(x.dtype)), TRITON_NAMES.get(str(weight.dtype))
    if (
        name is None
        or w_name is None
        or not 0 < d <= SHORT_ROW
        or not 0 < x.numel() <= MAX_ROWS * d
        or weight.shape != (d,)
        or not weight.is_contiguous()
        or weight.device != x.device
    ):
        return None
    rows = in_place((x,))
    if (
        rows is None
        or row_starts(x.data_ptr(), rows, x.itemsize) % alignment(d, name)
        or weight.data_ptr() % weight_alignment(d, name, w_name)
    ):
        return None
    return rows if rows.inner else rows._replace(inner=1)


def _pair(first: Sequence[Any], second: Sequence[Any], *, canonical: bool) -> tuple[Tensor, Tensor] | None:
    """Both calls in one launch; None, without a launch, if one launch does not take them."""
    (x, w, epsilon, size), (x2, w2, epsilon2, size2) = first, second
    if (
        w is None
        or w2 is None
        or not (size is size2 is None)
        or epsilon != epsilon2
        or not x.dim()
        or not x2.dim()
        or (x.shape[-1], x.dtype, w.dtype, x.device) != (x2.shape[-1], x2.dtype, w2.dtype, x2.device)
    ):
        return None
    rows, rows2 = _rows(x, w), _rows(x2, w2)
    if rows is None or rows2 is None:
        return None
    kernel, launch = _prepared(x.shape[-1], x.dtype, w.dtype, canonical, x.device)
    programs = kernel.spec.programs(rows.number) + kernel.spec.programs(rows2.number)
    if programs * kernel.spec.rows_per_program > MAX_ROWS:
        return None
    y, y2 = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, x2))
    tensors = map(kernel.pointer, (x, w, y, x2, w2, y2))
    launch(programs, *tensors, *_numbers(rows), *_numbers(rows2), epsilon)
    return y, y2


def _numbers(rows: Rows) -> tuple[int, int, int, int]:
    return rows.number, rows.inner, rows.outer[0], rows.step[0]


def rms_norm_batch_invariant_pair(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Two calls of ``rms_norm`` in the canonical order, each given as ``(x, weight, epsilon, variance_size)``."""
    found = _pair(first, second, canonical=True)
    return found or (rms_norm_batch_invariant(*first), rms_norm_batch_invariant(*second))


def rms_norm_pair(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Two calls of ``rms_norm`` in the order that the compiler chooses."""
    return _pair(first, second, canonical=False) or (rms_norm(*first), rms_norm(*second))
