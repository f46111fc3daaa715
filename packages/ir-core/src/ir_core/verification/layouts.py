# SPDX-License-Identifier: Apache-2.0
"""How a batch can lie in memory: the same rows, other strides and addresses.

Memory between and beside the rows holds NaN, so that a kernel that reads too far betrays itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ir_core.errors import CertificateError


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


@dataclass(frozen=True)
class Free:
    """A layout in numbers, as random cases draw it; as text ``free:rank=3,offset=5``.

    Args:
        rank: dimensions of an activation whose rows are vectors: 1 (a lone row), 2, 3 or 4.
        offset: elements between the begin of the storage and the first row.
        gap: elements between a row's end and the next row.
        step: every so-manieth row of a longer buffer.
        column: every so-manieth element of a longer row.
        turned: whether the leading dimensions lie in memory in the reverse order.
        shared: whether all arguments lie in one storage, one behind the other.
        statics: whether tensors that are no activation are laid out so, too; else they are contiguous.
    """

    rank: int = 2
    offset: int = 0
    gap: int = 0
    step: int = 1
    column: int = 1
    turned: int = 0
    shared: int = 0
    statics: int = 0

    def __str__(self) -> str:
        said = [
            f"{field.name}={value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"free:{','.join(said)}" if said else "contiguous"

    @classmethod
    def parse(cls, text: str) -> Free:
        """Read the text of a layout.

        Raises:
            CertificateError: it is none.
        """
        if not re.fullmatch(r"free:(\w+=\d+,)*\w+=\d+", text):
            raise CertificateError(
                f"There is no layout '{text}'.",
                why=f"There are {', '.join(LAYOUTS)} and free:name=number,...",
            )
        try:
            return cls(**{name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", text)})
        except TypeError as error:
            raise CertificateError(f"The layout '{text}' names something unknown: {error}.") from None

    def simpler(self) -> list[Free]:
        """The same with one thing less, each."""
        plain = vars(Free())
        return [
            Free(**{**vars(self), name: plain[name]}) for name in plain if getattr(self, name) != plain[name]
        ]

    def shape(self, rows: int) -> tuple[int, ...]:
        """The leading dimensions of so many rows."""
        if self.rank == 1 and rows == 1:
            return ()
        if self.rank <= 2:
            return (rows,)
        a, b = _grid(rows)
        return (a, b) if self.rank == 3 else (*_grid(a), b)

    def strides(self, t: Tensor, batched: bool) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(shape, strides, elements from the first to the last) of a tensor laid out so."""
        lead = self.shape(t.shape[0]) if batched else ()
        rest = tuple(t.shape[1:]) if batched else tuple(t.shape)
        strides: list[int] = []
        size = self.column
        for number in reversed(rest):
            strides.insert(0, size)
            size = size * number + (self.gap if len(strides) == 1 and batched else 0)
        size *= self.step if batched else 1
        outer = []
        for number in lead if self.turned else reversed(lead):
            outer.append(size)
            size *= number
        if not self.turned:
            outer.reverse()
        shape, steps = (*lead, *rest), (*outer, *strides)
        return shape, steps, sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) + 1

    def apply(self, tensors: list[Tensor], batched: list[bool]) -> list[Tensor]:
        """The tensors laid out so; ``batched`` says which have a row in each first index."""
        places, size = [], 0
        for t, rows in zip(tensors, batched, strict=True):
            shape, strides, elements = self.strides(t, rows)
            begin = -(-size // 64) * 64 + self.offset * t.element_size() if self.shared else 0
            size = begin + elements * t.element_size()
            places.append((shape, strides, elements, begin))
        whole = torch.zeros(size + 64 if self.shared else 0, dtype=torch.uint8, device=tensors[0].device)
        laid = []
        for t, (shape, strides, elements, begin) in zip(tensors, places, strict=True):
            if self.shared:
                buffer = whole[begin : begin + elements * t.element_size()].view(t.dtype)
            else:
                buffer = _hole((self.offset + elements,), t)[self.offset :]
            view = buffer.as_strided(shape, strides, buffer.storage_offset())
            laid.append(view.copy_(t.reshape(shape)))
        return laid
