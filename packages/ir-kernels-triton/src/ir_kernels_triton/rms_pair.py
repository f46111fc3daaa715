# SPDX-License-Identifier: Apache-2.0
"""Two calls of rms_norm in one launch, as a layer's q and k norms are: the ``pair`` of both providers.

One launch takes rows of one length, at most 1024, of which a warp holds whole ones, with two weights. Everything else
(no weight, longer rows, tensors to be copied first) is two launches. The bits are those of two calls either way: each
row is computed by the same function, laid out in the same way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ir_kernels_triton.launch_config import (
    PDL,
    SHORT_ROW,
    TRITON_NAMES,
    alignment,
    pair_spec,
    weight_alignment,
)
from ir_kernels_triton.launcher import Kernel
from ir_kernels_triton.rms_norm import rms_norm, rms_norm_batch_invariant
from ir_kernels_triton.rows import MAX_ROWS, Rows, collapse, common_alignment, contiguous_rows, is_plain

_KERNELS: dict[tuple[object, ...], tuple[Kernel, int]] = {}
"""Kernels, and the rows of one of their programs."""


def _kernel(x: Tensor, weight: Tensor, canonical: bool) -> tuple[Kernel, int]:
    key = x.shape[-1], x.dtype, weight.dtype, canonical, x.get_device()
    found = _KERNELS.get(key)
    if found is None:
        device = x.device
        pdl = PDL and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        names = TRITON_NAMES[str(x.dtype)], TRITON_NAMES[str(weight.dtype)]
        spec = pair_spec(x.shape[-1], *names, canonical=canonical, pdl=pdl)
        found = _KERNELS[key] = Kernel(spec, device), spec.rows
    return found


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
    rows = contiguous_rows(x.numel() // d, (d,), x.dim()) if is_plain(x) else None
    if rows is None:
        rows = collapse(x) if x.stride(-1) == 1 else None
    if (
        rows is None
        or common_alignment(x.data_ptr(), rows, x.itemsize) % alignment(d, name)
        or weight.data_ptr() % weight_alignment(d, name, w_name)
    ):
        return None
    return rows if rows.inner else rows._replace(inner=1)


def _pair(first: Sequence[Any], second: Sequence[Any], canonical: bool) -> tuple[Tensor, Tensor] | None:
    """Both calls in one launch; None, and nothing has happened, if that is not possible."""
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
    kernel, step = _kernel(x, w, canonical)
    programs = -(-rows.number // step) - (-rows2.number // step)
    if programs * step > MAX_ROWS:
        return None
    y, y2 = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, x2))
    scalars = (
        rows2.number,
        rows.inner,
        rows2.inner,
        rows.outer[0],
        rows.step[0],
        rows2.outer[0],
        rows2.step[0],
    )
    kernel.over(programs, (x, w, y, x2, w2, y2), (rows.number, *scalars, epsilon))
    return y, y2


def rms_norm_batch_invariant_pair(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Two calls of ``rms_norm`` in the canonical order, each given as ``(x, weight, epsilon, variance_size)``."""
    found = _pair(first, second, True)
    return found or (rms_norm_batch_invariant(*first), rms_norm_batch_invariant(*second))


def rms_norm_pair(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Two calls of ``rms_norm`` in the order that the compiler chooses."""
    return _pair(first, second, False) or (rms_norm(*first), rms_norm(*second))
