# SPDX-License-Identifier: Apache-2.0
"""Rows of tensors as the kernels address them: two strides for all leading dimensions, copied only if need be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """``number`` rows; row ``i`` of tensor ``k`` starts at ``(i // inner) * outer[k] + (i % inner) * step[k]``.

    ``inner`` is 0 for tensors of one or two dimensions (row ``i`` at ``i * outer[k]``) and at least 1 for others, so
    that a tensor's rank alone decides which of the two kernels runs. (torch gives the q view of one token other
    strides than that of two.)
    """

    number: int
    inner: int
    outer: tuple[int, ...]
    step: tuple[int, ...]


def contiguous_rows(count: int, lengths: tuple[int, ...], dims: int) -> Rows:
    """Rows of tensors of ``dims`` dimensions that lie one row after the other."""
    return Rows(count, int(dims > 2), lengths, (0,) * len(lengths))


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is contiguous, and its first stride says so even if it has one row only.

    torch calls one row of a strided tensor contiguous. Here it counts as strided, as two rows of that tensor do, so
    that the number of rows does not decide which stride the alignment is judged by.
    """
    return x.is_contiguous() and (x.dim() < 2 or x.stride(0) * x.shape[0] == x.numel())


def collapse(*tensors: Tensor) -> Rows | None:
    """Join the leading dimensions of tensors of one shape into two strides; None if that takes three or more.

    A q or k view ``[tokens, heads, 128]`` of a qkv tensor has two strides and needs no copy. Dimensions of length 1
    count as any other, unless that takes a third stride.
    """
    first = tensors[0]
    leading = range(first.dim() - 2, -1, -1)  # from the innermost
    found = _join(leading, tensors) or _join([dim for dim in leading if first.shape[dim] != 1], tensors)
    if found is None:
        return None
    sizes, strides = found
    if not sizes:
        lengths = tuple(t.shape[-1] for t in tensors)
        return contiguous_rows(1, lengths, first.dim())
    if len(sizes) == 1:
        return contiguous_rows(sizes[0], strides[0], first.dim())
    return Rows(sizes[0] * sizes[1], sizes[0], strides[1], strides[0])


def _join(dims: Iterable[int], tensors: tuple[Tensor, ...]) -> tuple[list[int], list[tuple[int, ...]]] | None:
    """Sizes and strides of the groups that neighbouring dimensions join into, innermost first; None if above two."""
    sizes: list[int] = []
    strides: list[tuple[int, ...]] = []
    for dim in dims:
        size = tensors[0].shape[dim]
        here = tuple(t.stride(dim) for t in tensors)
        if sizes and all(mine == theirs * sizes[-1] for mine, theirs in zip(here, strides[-1], strict=True)):
            sizes[-1] *= size
        elif len(sizes) == 2:
            return None
        else:
            sizes.append(size)
            strides.append(here)
    return sizes, strides


def in_place(read: tuple[Tensor, ...], written: tuple[Tensor, ...] = ()) -> Rows | None:
    """The rows of tensors where they lie.

    All have the same leading dimensions; those that are ``written`` are contiguous, or among those that are ``read``.
    None if two strides do not describe the rows, or if the elements of a row are not neighbours.
    """
    first, tensors = read[0], read + written
    for tensor in read:
        if not is_plain(tensor):
            break
    else:
        lengths = tuple([tensor.shape[-1] for tensor in tensors])
        return contiguous_rows(first.numel() // lengths[0], lengths, first.dim())
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] != 1 for tensor in read):
        return None
    return collapse(*tensors)


def copied(x: Tensor) -> Tensor:
    """A contiguous copy, whose start the allocator aligns."""
    return x.clone(memory_format=torch.contiguous_format)


def readable(read: tuple[Tensor, ...], written: tuple[Tensor, ...]) -> tuple[Rows, tuple[Tensor, ...]]:
    """The rows of tensors, and the tensors to read: copies of those that cannot be read where they lie."""
    rows = in_place(read, written)
    if rows is None:
        neighbours = tuple(t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in read)
        rows = collapse(*neighbours, *written)
        read = neighbours
    if rows is None:
        read = tuple(map(copied, read))
        rows = in_place(read, written)
        assert rows is not None  # what is contiguous has one stride
    return rows, read


def row_starts(addresses: int, rows: Rows, itemsize: int) -> int:
    """The bitwise or of start addresses and of all strides in bytes.

    A power of two divides it exactly when it divides the address of every row. ``addresses`` is the bitwise or of the
    addresses of the first rows; the strides of all tensors count, also of those whose address is left out.
    """
    for stride in rows.outer:
        addresses |= stride * itemsize
    for stride in rows.step:
        addresses |= stride * itemsize
    return addresses


MAX_ROWS: Final = 1 << 30
"""Rows of one launch: row numbers are 32-bit in the kernels, offsets are 64-bit."""


def parts(
    rows: Rows, tensors: tuple[Tensor, ...], limit: int = MAX_ROWS
) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
    """Cut ``rows`` into launches of at most ``limit`` rows (and at least one group of two-stride rows).

    The tensors of a part begin at its first row; only their addresses mean anything.
    """
    group = rows.inner or 1
    step = max(limit // group, 1)
    for start in range(0, rows.number // group, step):
        here = min(step, rows.number // group - start) * group
        moved = (
            t.as_strided((1,), (1,), t.storage_offset() + start * outer)
            for t, outer in zip(tensors, rows.outer, strict=True)
        )
        yield rows._replace(number=here), tuple(moved)
