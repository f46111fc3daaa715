# SPDX-License-Identifier: Apache-2.0
"""Reductions over any dimensions: what is reduced is made the last dimension, which the ops reduce.

A reduction that counts or compares is exact in any order, and so is a sum of integers: those stay torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ir_core import ops
from ir_core.covering.known import report
from ir_core.covering.shapes import default_floating, dims_of, floating, into, last, with_kept

Dims = int | Sequence[int] | None


def _reduce(op: Any, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    dims = dims_of(x, dim)
    reduced = op(last(x, dims))
    return with_kept(reduced, x.shape, dims, keepdim)


def sum_(
    x: Tensor,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    out: Any = None,
    axis: Dims = None,
) -> Tensor:
    """:func:`torch.sum`."""
    dim = axis if dim is None else dim
    x = x if dtype is None else x.to(dtype)
    if not floating(x):
        if x.is_complex():
            report("sum of complex numbers")
        y = torch.sum(x, dims_of(x, dim), keepdim)
        return into(out, y)
    return into(out, _reduce(ops.sum, x, dim, keepdim))


def mean(
    x: Tensor,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    out: Any = None,
    axis: Dims = None,
) -> Tensor:
    """:func:`torch.mean`."""
    dim = axis if dim is None else dim
    x = x if dtype is None else x.to(dtype)
    if not floating(x):
        report(f"mean of {x.dtype}")
        return into(out, torch.mean(x, dims_of(x, dim), keepdim))
    return into(out, _reduce(ops.mean, x, dim, keepdim))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def root(x: Tensor) -> Tensor:
    """Square root of float32 or float64. Float32 by way of float64: torch's own is not rounded correctly everywhere."""
    return torch.sqrt(x) if x.dtype == torch.float64 else torch.sqrt(x.double()).float()


def _variance(x: Tensor, dim: Dims, correction: float, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Variance and mean, in float32 (float64 for float64): two passes."""
    dims = dims_of(x, dim)
    rows = last(_wide(x), dims)
    middle = ops.mean(rows)
    off = rows - middle.unsqueeze(-1)
    total = ops.sum(off * off)
    found = total / max(rows.shape[-1] - correction, 0)
    return with_kept(found, x.shape, dims, keepdim), with_kept(middle, x.shape, dims, keepdim)


def _correction(dim: Any, unbiased: Any, correction: Any) -> tuple[Any, float]:
    if isinstance(dim, bool):  # var(unbiased)
        dim, unbiased = None, dim
    if correction is not None:
        return dim, correction
    return dim, 1 if unbiased is None or unbiased else 0


def var(
    x: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
    out: Any = None,
) -> Tensor:
    """:func:`torch.var`."""
    dim, correction = _correction(dim, unbiased, correction)
    return into(out, _variance(x, dim, correction, keepdim)[0].to(x.dtype))


def std(
    x: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
    out: Any = None,
) -> Tensor:
    """:func:`torch.std`."""
    dim, correction = _correction(dim, unbiased, correction)
    return into(out, root(_variance(x, dim, correction, keepdim)[0]).to(x.dtype))


def var_mean(
    x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    """:func:`torch.var_mean`."""
    dim, correction = _correction(dim, unbiased, correction)
    found, middle = _variance(x, dim, correction, keepdim)
    return found.to(x.dtype), middle.to(x.dtype)


def std_mean(
    x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    """:func:`torch.std_mean`."""
    dim, correction = _correction(dim, unbiased, correction)
    found, middle = _variance(x, dim, correction, keepdim)
    return root(found).to(x.dtype), middle.to(x.dtype)


def norm(
    x: Tensor, p: Any = "fro", dim: Dims = None, keepdim: bool = False, out: Any = None, dtype: Any = None
) -> Tensor:
    """:func:`torch.norm` and ``linalg.vector_norm``, of orders 1, 2 and infinite."""
    x = x if dtype is None else x.to(dtype)
    order = 2.0 if p in ("fro", None) else p
    if not floating(x) or order not in (1, 2, math.inf, -math.inf):
        report(f"norm of order {p}")
        return into(out, torch.linalg.vector_norm(x, order, dim, keepdim))
    if order == math.inf:
        return into(out, torch.amax(x.abs(), dims_of(x, dim), keepdim))
    if order == -math.inf:
        return into(out, torch.amin(x.abs(), dims_of(x, dim), keepdim))
    wide = _wide(x)
    if order == 1:
        return into(out, _reduce(ops.sum, wide.abs(), dim, keepdim).to(x.dtype))
    return into(out, root(_reduce(ops.sum, wide * wide, dim, keepdim)).to(x.dtype))


def vector_norm(
    x: Tensor, ord: Any = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Tensor:
    """:func:`torch.linalg.vector_norm`."""
    return norm(x, ord, dim, keepdim, out, dtype)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """:func:`torch.nn.functional.normalize`."""
    return into(out, x / norm(x, p, dim, True).clamp_min(eps))


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """:func:`torch.cosine_similarity`."""
    return sum_(normalize(x1, 2.0, dim, eps) * normalize(x2, 2.0, dim, eps), dim)


def _along(op: Any, x: Tensor, dim: int) -> Tensor:
    """A row function along a dimension."""
    if not x.dim():
        return op(x.reshape(1)).reshape(())
    if dim % x.dim() == x.dim() - 1:
        return op(x)
    return op(x.movedim(dim, -1)).movedim(-1, dim)


def _implicit(x: Tensor, dim: int | None) -> int:
    """What ``F.softmax`` does without a dimension."""
    if dim is not None:
        return dim
    return 0 if x.dim() in (0, 1, 3) else 1


def softmax(
    x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, *, out: Any = None
) -> Tensor:
    """:func:`torch.softmax`."""
    if isinstance(_stacklevel, torch.dtype):  # torch.softmax(x, dim, dtype)
        dtype = _stacklevel
    x = default_floating(x) if dtype is None else x.to(dtype)
    return into(out, _along(ops.softmax, x, _implicit(x, dim)))


def log_softmax(
    x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, *, out: Any = None
) -> Tensor:
    """:func:`torch.log_softmax`."""
    if isinstance(_stacklevel, torch.dtype):
        dtype = _stacklevel
    x = default_floating(x) if dtype is None else x.to(dtype)
    return into(out, _along(ops.log_softmax, x, _implicit(x, dim)))


def softmin(x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """:func:`torch.nn.functional.softmin`."""
    return softmax(-x, dim, 3, dtype)


def logsumexp(x: Tensor, dim: Dims, keepdim: bool = False, *, out: Any = None) -> Tensor:
    """:func:`torch.logsumexp`."""
    return into(out, _reduce(ops.logsumexp, default_floating(x), dim, keepdim))


def cumulative(function: Any, name: str) -> Any:
    """``cumsum`` and its kin: exact for integers, else torch's own and reported."""

    def cover(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.is_floating_point() or x.is_complex() or kwargs.get("dtype", torch.int64).is_floating_point:
            report(f"torch.{name} of floating-point numbers", "torch fixes no order of its sums")
        return function(x, *args, **kwargs)

    return cover
