# SPDX-License-Identifier: Apache-2.0
"""Small things that the covers share: dimensions, dtypes, in-place forms and ``out=``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Cover = Callable[..., Any]


def floating(*tensors: Any) -> bool:
    """Whether all of these are tensors of real floating-point numbers that ops take."""
    return all(isinstance(t, Tensor) and t.is_floating_point() and t.element_size() > 1 for t in tensors)


def product(sizes: Sequence[int]) -> int:
    """The product of sizes; ``math.prod`` of sizes that Dynamo made symbols is no code that it can trace."""
    total = 1
    for size in sizes:
        total = total * size
    return total


def into(out: Tensor | None, result: Tensor) -> Tensor:
    """``result``, in the memory of ``out`` if that is given, as ``out=`` means it."""
    if out is None:
        return result
    if out.shape != result.shape:
        out.resize_(result.shape)
    return out.copy_(result)


def inplace(cover: Cover) -> Cover:
    """The in-place form of a cover: the result is written into the first argument."""

    def written(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(cover(x, *args, **kwargs))

    return written


def dims_of(x: Tensor, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The dimensions to reduce, none negative; ``None`` and an empty list are all."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(x.dim()))
    return tuple(d % max(x.dim(), 1) for d in ((dim,) if isinstance(dim, int) else dim))


def last(x: Tensor, dims: Sequence[int]) -> Tensor:
    """``x`` with the dimensions ``dims`` made one, the last."""
    if not x.dim():
        return x.reshape(1)
    kept = [d for d in range(x.dim()) if d not in dims]
    if len(dims) == 1 and dims[0] == x.dim() - 1:
        return x
    moved = x.permute(*kept, *dims)
    return moved.reshape(*moved.shape[: len(kept)], product(moved.shape[len(kept) :]))


def with_kept(result: Tensor, shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> Tensor:
    """The result of a reduction of a tensor of this shape, with dimensions of one where they are kept."""
    if not keepdim:
        return result
    return result.reshape([1 if d in dims else n for d, n in enumerate(shape)])


def default_floating(x: Tensor) -> Tensor:
    """Integers as torch's functions take them: in the default dtype."""
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def autocast(*tensors: Tensor | None) -> list[Any]:
    """The operands of a product as ``torch.autocast`` would convert them."""
    first = tensors[0]
    assert first is not None
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    ]
