# SPDX-License-Identifier: Apache-2.0
"""Rows of tensors as the kernels address them: two strides for all leading dimensions, without a copy where possible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """``count`` rows; row ``i`` of tensor ``k`` starts at ``(i // inner) * outer[k] + (i % inner) * step[k]``."""

    count: int
    inner: int
    """Rows of one group; 0 where one stride reaches all rows."""
    outer: tuple[int, ...]
    step: tuple[int, ...]


def contiguous_rows(count: int, length: int, tensors: int) -> Rows:
    """Rows of tensors that all lie one row after the other."""
    return Rows(count, 0, (length,) * tensors, (0,) * tensors)


def collapse(*tensors: Tensor) -> Rows | None:
    """Join the leading dimensions of tensors of one shape into two strides; None if that takes three or more.

    A q or k view ``[tokens, heads, 128]`` of a qkv tensor has two strides and needs no copy.
    """
    sizes: list[int] = []
    strides: list[list[int]] = []
    for dim in range(tensors[0].dim() - 2, -1, -1):  # from the innermost
        size = tensors[0].shape[dim]
        if size == 1:
            continue
        here = [t.stride(dim) for t in tensors]
        if sizes and all(mine == theirs * sizes[-1] for mine, theirs in zip(here, strides[-1], strict=True)):
            sizes[-1] *= size
        else:
            sizes.append(size)
            strides.append(here)
    if len(sizes) > 2:
        return None
    if not sizes:
        lengths = tuple(t.shape[-1] for t in tensors)
        return Rows(1, 0, lengths, (0,) * len(tensors))
    if len(sizes) == 1:
        return Rows(sizes[0], 0, tuple(strides[0]), (0,) * len(tensors))
    return Rows(sizes[0] * sizes[1], sizes[0], tuple(strides[1]), tuple(strides[0]))


def common_alignment(addresses: int, rows: Rows, itemsize: int) -> int:
    """A number whose multiples of powers of two are those of every row's start, given or-ed start addresses.

    All strides go in, also those of tensors that ``addresses`` leaves out.
    """
    for stride in rows.outer:
        addresses |= stride * itemsize
    for stride in rows.step:
        addresses |= stride * itemsize
    return addresses


MAX_ROWS: Final = 1 << 30
"""Rows of one launch: row numbers are 32-bit in the kernels, offsets are 64-bit."""


def parts(rows: Rows, tensors: tuple[Tensor, ...], limit: int = MAX_ROWS) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
    """Cut ``rows`` into launches of at most ``limit`` rows (and at least one group of two-stride rows).

    The tensors of a part begin at its first row; only their addresses mean anything.
    """
    group = rows.inner or 1
    step = max(limit // group, 1)
    for start in range(0, rows.count // group, step):
        here = min(step, rows.count // group - start) * group
        moved = (t.as_strided((1,), (1,), t.storage_offset() + start * outer)
                 for t, outer in zip(tensors, rows.outer, strict=True))
        yield rows._replace(count=here), tuple(moved)
