# SPDX-License-Identifier: Apache-2.0
"""Where the rows of the batch are in a tensor, followed through views by the strides.

``Rows(dim, ids)`` says that position ``i`` of dimension ``dim`` belongs to row ``ids[i]``. A batch of 3 sequences of 2
tokens, flattened, is ``Rows(0, (0, 0, 1, 1, 2, 2))``; the other way round it is ``Rows(0, (0, 1, 2, 0, 1, 2))``.

A ``Ruler`` says the same of a storage: the bytes from ``origin`` on are cut into pieces of ``unit`` bytes, and piece
``p`` belongs to row ``ids[p % len(ids)]``. All views of one storage share its ruler, so a view, a permutation, a split
or a merged dimension needs no rule of its own: what it shows is read off the ruler with its sizes and strides.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

_TABLE: Final = 1 << 18
"""Positions that are looked at one by one before a view counts as one that cannot be told; about 0.1 s."""


class Ids(tuple[int, ...]):
    """The row of each position; hashed once, since a flattened batch has many thousands of positions."""

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:
            self._hash = super().__hash__()
        return self._hash


@dataclass(frozen=True)
class Rows:
    """Position ``i`` of dimension ``dim`` belongs to row ``ids[i]``."""

    dim: int
    ids: Ids

    def count(self, start: int, stop: int) -> int:
        """Positions of the rows from ``start`` up to ``stop``, without it."""
        return len(_positions(self.ids, start, stop)[0])

    def positions(self, start: int, stop: int) -> tuple[int, ...]:
        """Positions of the rows from ``start`` up to ``stop``, without it, in order."""
        return _positions(self.ids, start, stop)[0]

    def take(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """What these rows hold, in order: a view where they stand together, else a copy."""
        positions, together = _positions(self.ids, start, stop)
        if together:
            return tensor.narrow(self.dim, positions[0] if positions else 0, len(positions))
        return tensor.index_select(self.dim, torch.tensor(positions, device=tensor.device))


@lru_cache(4096)
def _positions(ids: Ids, start: int, stop: int) -> tuple[tuple[int, ...], bool]:
    found = tuple(i for i, row in enumerate(ids) if start <= row < stop)
    return found, not found or found[-1] - found[0] + 1 == len(found)


@lru_cache(512)
def factors(size: int, batch: int) -> tuple[Ids, ...]:
    """Every way in which ``batch`` rows fill a dimension of ``size``: outer x batch x inner.

    Flattening puts the batch outside, so the largest inner size comes first.
    """
    if batch < 1 or size < 1 or size % batch:
        return ()
    rest = size // batch
    inners = [inner for inner in range(rest, 0, -1) if rest % inner == 0]
    return tuple(Ids((i // inner) % batch for i in range(size)) for inner in inners)


@dataclass(frozen=True)
class Ruler:
    """Piece ``p`` of a storage, of ``unit`` bytes and counted from ``origin``, belongs to row ``ids[p % len(ids)]``."""

    origin: int
    unit: int
    ids: Ids


@lru_cache(512)
def _shortened(ids: Ids) -> tuple[int, Ids]:
    """Equal neighbours as one piece, and a pattern that repeats once."""
    runs = [len(list(run)) for _, run in itertools.groupby(ids)]
    together = math.gcd(*runs) if runs else 1
    short = ids[::together]
    period = len(set(short))
    if len(short) % period == 0 and short == short[:period] * (len(short) // period):
        short = short[:period]
    return together, Ids(short)


def ruler_of(tensor: Tensor, rows: Rows) -> Ruler | None:
    """The ruler of the storage behind ``tensor``, or nothing if its strides do not allow one."""
    stride = tensor.stride(rows.dim)
    if stride == 0 or not rows.ids:
        return None
    width = tensor.element_size()
    together, ids = _shortened(rows.ids)
    ruler = Ruler(int(tensor.storage_offset()) * width, stride * width * together, ids)
    if len(ids) == 1:
        return None
    return ruler if read(ruler, tensor) == rows else None


def read(ruler: Ruler, tensor: Tensor) -> Rows | int | None:
    """What a view of the storage shows: rows along a dimension, a single row, or ``None`` where that cannot be told."""
    width = tensor.element_size()
    sizes, strides = tuple(tensor.shape), tuple(stride * width for stride in tensor.stride())
    return _read(ruler, sizes, strides, int(tensor.storage_offset()) * width - ruler.origin)


@lru_cache(8192)
def _read(ruler: Ruler, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Rows | int | None:
    unit, ids = ruler.unit, ruler.ids
    dims = [
        (dim, size, stride)
        for dim, (size, stride) in enumerate(zip(sizes, strides, strict=True))
        if size > 1 and stride % (unit * len(ids))
    ]
    # A dimension with short steps that goes on over the end of a piece: the batch is merged into it.
    merged = [
        stride for _, size, stride in dims if stride < unit and offset % unit + (size - 1) * stride >= unit
    ]
    fine = min(merged, default=unit)
    reach = sum((size - 1) * stride for _, size, stride in dims if stride < fine)
    if offset % fine + reach >= fine or unit % fine:
        return None
    steps = [dim for dim in dims if dim[2] >= fine]
    if any(stride % fine for _, _, stride in steps) or math.prod(size for _, size, _ in steps) > _TABLE:
        return None
    return _along(ruler, steps, offset)


def _along(ruler: Ruler, steps: list[tuple[int, int, int]], offset: int) -> Rows | int | None:
    """The one dimension on whose position alone the row depends, wherever the others stand."""

    def row(at: int) -> int:
        return ruler.ids[((offset + at) // ruler.unit) % len(ruler.ids)]

    lines = [(dim, [row(i * stride) for i in range(size)]) for dim, size, stride in steps]
    vary = [(dim, line) for dim, line in lines if len(set(line)) > 1]
    if len(vary) > 1:
        return None
    dim, line = vary[0] if vary else (-1, [row(0)])
    stride = next((stride for other, _, stride in steps if other == dim), 0)
    starts = [0]
    for other, size, step in steps:
        if other != dim:
            starts = [start + i * step for start in starts for i in range(size)]
    steady = all(row(start + i * stride) == line[i] for start in starts for i in range(len(line)))
    if not steady:
        return None
    return Rows(dim, Ids(line)) if vary else line[0]
