# SPDX-License-Identifier: Apache-2.0
"""How a batch can lie in memory: the same rows, other strides and addresses.

Memory between and beside the rows holds NaN, so that a kernel that reads too far betrays itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def _hole(shape: tuple[int, ...], like: Tensor) -> Tensor:
    fill = math.nan if like.dtype.is_floating_point or like.is_complex() else 77
    return torch.full(shape, fill, dtype=like.dtype, device=like.device)


def contiguous(t: Tensor) -> Tensor:
    """A fresh copy, one row after the other."""
    return t.clone(memory_format=torch.contiguous_format)


def row_strided(t: Tensor) -> Tensor:
    """Every second row of a longer tensor."""
    buffer = _hole((2 * t.shape[0], *t.shape[1:]), t)
    buffer[::2] = t
    return buffer[::2]


def column_slice(t: Tensor) -> Tensor:
    """Columns of a wider tensor; every row starts at a multiple of 16 bytes if rows of the tensor's width can."""
    step = max(16 // t.element_size(), 1)
    width = (t.shape[-1] + 3 * step - 1) // step * step + step
    buffer = _hole((*t.shape[:-1], width), t)
    buffer[..., step : step + t.shape[-1]] = t
    return buffer[..., step : step + t.shape[-1]]


def odd_slice(t: Tensor) -> Tensor:
    """Columns of a wider tensor of odd width: each row starts at another alignment."""
    width = t.shape[-1] + 3 - t.shape[-1] % 2
    buffer = _hole((*t.shape[:-1], width), t)
    buffer[..., 1 : 1 + t.shape[-1]] = t
    return buffer[..., 1 : 1 + t.shape[-1]]


def offset(t: Tensor) -> Tensor:
    """Contiguous, but one element into its storage: no 16-byte alignment."""
    buffer = _hole((t.numel() + 17,), t)
    view = buffer[1 : 1 + t.numel()].view(t.shape)
    view.copy_(t)
    return view


def _grid(rows: int) -> tuple[int, int]:
    a = next(a for a in range(math.isqrt(rows), 0, -1) if rows % a == 0)
    return a, rows // a


def batched(t: Tensor) -> Tensor:
    """Two leading dimensions."""
    return contiguous(t).reshape(*_grid(t.shape[0]), *t.shape[1:])


def transposed(t: Tensor) -> Tensor:
    """Two leading dimensions, in the other order in memory."""
    a, b = _grid(t.shape[0])
    return contiguous(t.reshape(a, b, *t.shape[1:]).transpose(0, 1)).transpose(0, 1)


def expanded(t: Tensor) -> Tensor:
    """The first row, seen as often as there are rows (stride 0)."""
    return contiguous(t[:1]).expand(t.shape)


def unit_stride(t: Tensor) -> Tensor:
    """A dimension of size 1 with an arbitrary stride, between the rows and the columns."""
    source = contiguous(t)
    strides = list(source.stride())
    return source.as_strided((t.shape[0], 1, *t.shape[1:]), (strides[0], 7, *strides[1:]))


def column_strided(t: Tensor) -> Tensor:
    """Every second column of a wider tensor."""
    buffer = _hole((*t.shape, 2), t)
    buffer[..., 0] = t
    return buffer[..., 0]


LAYOUTS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    f.__name__: f
    for f in (
        contiguous,
        offset,
        odd_slice,
        column_slice,
        row_strided,
        batched,
        transposed,
        unit_stride,
        expanded,
        column_strided,
    )
}
"""All layouts by name; each takes ``[rows, ...]`` and returns the same rows, leading dimensions maybe split."""
