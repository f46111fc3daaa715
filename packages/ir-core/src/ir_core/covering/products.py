# SPDX-License-Identifier: Apache-2.0
"""Products of matrices: every one is ``linear`` or ``bmm``, whose order is one sum for each output, over k ascending.

Integers are exact in any order and stay torch's. Which operand is called the weight changes no bit.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor

from ir_core import ops
from ir_core.covering.known import report
from ir_core.covering.shapes import autocast, floating, into, product


def _plain(function: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """torch's own; said where the numbers are complex or of 8 bits, which no op takes."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if any(t.is_complex() or t.is_floating_point() for t in tensors):
        report(
            f"{name} of {', '.join(str(t.dtype) for t in tensors)}",
            "its ops take float16 to float64 of one dtype",
        )
    return function(*args, **kwargs)


_PLAIN = (Tensor, torch.nn.Parameter)


def _distributed(*tensors: Tensor) -> bool:
    """Whether one is a DTensor; where there are any, their module was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`; of DTensors with the sum over ranks in order."""
    if type(weight) not in _PLAIN and _distributed(x, weight):
        return importlib.import_module("ir_core.parallel").linear_of_dtensors(x, weight, bias)
    x, weight, bias = autocast(x, weight, bias)
    if not floating(x, weight) or x.dtype != weight.dtype:
        return _plain(torch.nn.functional.linear, "linear", x, weight, bias)
    if weight.dim() == 1:
        y = ops.linear(x, weight.unsqueeze(0)).squeeze(-1)
        return y if bias is None else y + bias
    if bias is not None and (bias.dim() != 1 or bias.dtype != x.dtype):
        return ops.linear(x, weight) + bias
    return ops.linear(x, weight, bias)


def matmul(x: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.matmul`."""
    x, other = autocast(x, other)
    if not floating(x, other) or x.dtype != other.dtype or not x.dim() or not other.dim():
        return _plain(torch.matmul, "matmul", x, other) if out is None else torch.matmul(x, other, out=out)
    return into(out, _product(x, other))


def _product(x: Tensor, other: Tensor) -> Tensor:
    if other.dim() == 1:
        return ops.linear(x, other.unsqueeze(0)).squeeze(-1)
    if other.dim() == 2:
        return ops.linear(x, other.t())
    if x.dim() == 1:
        return _batched(x.unsqueeze(0), other).squeeze(-2)
    return _batched(x, other)


def _batched(x: Tensor, other: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(x.shape[:-2], other.shape[:-2])
    weight = other.mT
    x = x.expand(*leading, *x.shape[-2:])
    weight = weight.expand(*leading, *weight.shape[-2:])
    count = product(leading)
    y = ops.bmm(x.reshape(count, *x.shape[-2:]), weight.reshape(count, *weight.shape[-2:]))
    return y.reshape(*leading, *y.shape[-2:])


def rmatmul(other: Tensor, x: Tensor) -> Tensor:
    """``x @ other``, of which ``other`` is asked."""
    return matmul(x, other)


def bmm(x: Tensor, mat2: Tensor, *, out: Tensor | None = None, out_dtype: Any = None) -> Tensor:
    """:func:`torch.bmm` and :func:`torch.mm`."""
    y = matmul(x, mat2)
    return into(out, y if out_dtype is None else y.to(out_dtype))


def _plus(input: Tensor, product: Tensor, beta: Any, alpha: Any) -> Tensor:
    """``beta * input + alpha * product``, each step rounded."""
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return (input if beta == 1 else input * beta) + product


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor | None = None
) -> Tensor:
    """:func:`torch.addmm`, ``addmv`` and ``baddbmm``; a bias of one row is added as in ``linear``."""
    if (
        mat2.dim() == 2
        and beta == 1
        and alpha == 1
        and floating(input, mat1, mat2)
        and input.dim() == 1
        and input.shape[0] == mat2.shape[1]
    ):
        return into(out, linear(mat1, mat2.t(), input))
    return into(out, _plus(input, matmul(mat1, mat2), beta, alpha))


def addbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor | None = None
) -> Tensor:
    """:func:`torch.addbmm`: the sum over the batch is one sum over it and k."""
    x = batch1.transpose(0, 1).reshape(batch1.shape[1], -1)
    other = batch2.reshape(-1, batch2.shape[2])
    return into(out, _plus(input, matmul(x, other), beta, alpha))


def outer(x: Tensor, vec2: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.outer`: one rounded product for each output."""
    return into(out, x.unsqueeze(-1) * vec2)


def dot(x: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.dot`."""
    return matmul(x, other, out=out)


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.bilinear`: over the second input first, then over the first."""
    out, first, second = weight.shape
    inner = linear(x2, weight.reshape(out * first, second)).unflatten(-1, (out, first))
    y = matmul(inner, x1.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias
