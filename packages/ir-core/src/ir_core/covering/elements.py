# SPDX-License-Identifier: Apache-2.0
"""Element-wise functions: those whose bits depend on where an element lies, or on who compiled them.

On a CPU torch computes them in a vector loop and its remainder in another way, so that an element's bits depend on
its place, and compiled code has a third way. They go to the op ``pointwise``, whose arithmetic is fixed. Sums with a
number are computed as eager torch does, in float32: compiled code rounds the number first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ir_core import ops
from ir_core.covering.known import report
from ir_core.covering.reductions import root
from ir_core.covering.shapes import Cover, default_floating, floating, into
from ir_core.ops import elementary_float64


def pointwise(name: str, function: Any) -> Cover:
    """The cover of a function of one tensor."""

    def cover(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        x = default_floating(x)
        if not floating(x):
            report(f"{name} of {x.dtype}")
            return into(out, function(x))
        return into(out, ops.pointwise(x, name))

    return cover


exp = pointwise("exp", torch.exp)
log = pointwise("log", torch.log)
cos = pointwise("cos", torch.cos)
sin = pointwise("sin", torch.sin)
tanh = pointwise("tanh", torch.tanh)
sigmoid = pointwise("sigmoid", torch.sigmoid)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """:func:`torch.nn.functional.silu`."""
    y = ops.pointwise(input, "silu")
    return input.copy_(y) if inplace else y


def gelu(input: Tensor, *, approximate: str = "none", out: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.gelu`."""
    return into(out, ops.pointwise(input, "gelu" if approximate == "none" else "gelu_tanh"))


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """:func:`torch.nn.functional.softplus`."""
    scaled = input if beta == 1 else input * beta
    y = ops.pointwise(scaled, "softplus")
    return torch.where(scaled > threshold, input, y if beta == 1 else y / beta)


def logsigmoid(input: Tensor) -> Tensor:
    """:func:`torch.nn.functional.logsigmoid`."""
    return -ops.pointwise(-input, "softplus")


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """:func:`torch.nn.functional.glu`."""
    a, b = input.chunk(2, dim)
    return a * ops.pointwise(b, "sigmoid")


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """:func:`torch.nn.functional.elu`."""
    y = torch.where(input > 0, input, (ops.pointwise(input.clamp(max=0), "exp") - 1) * alpha)
    return input.copy_(y) if inplace else y


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """:func:`torch.nn.functional.mish`."""
    y = input * ops.pointwise(ops.pointwise(input, "softplus"), "tanh")
    return input.copy_(y) if inplace else y


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def sqrt(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.sqrt`, correctly rounded."""
    x = default_floating(x)
    if not floating(x):
        return into(out, torch.sqrt(x))
    return into(out, root(_wide(x)).to(x.dtype))


def rsqrt(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.rsqrt`: the reciprocal of the root, both correctly rounded, then rounded to the dtype."""
    x = default_floating(x)
    wide = _wide(x)
    return into(out, (torch.ones_like(wide) / root(wide)).to(x.dtype))


def pow_(x: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.pow`: small whole exponents are products, halves are roots; others go through float64."""
    if isinstance(x, Tensor) and isinstance(exponent, (int, float)) and floating(x):
        wide = _wide(x)
        if exponent in _POWERS:
            return into(out, _POWERS[exponent](wide).to(x.dtype))
    tensors = [t for t in (x, exponent) if isinstance(t, Tensor)]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    dtype = _dtype(x, exponent)
    if not recorded and dtype in (torch.float16, torch.bfloat16, torch.float32):
        return into(out, _general_power(x, exponent, tensors[0].device).to(dtype))
    if not _exact_power(x, exponent):
        report(
            "torch.pow with this exponent and a gradient",
            "only exponents from -2 to 4 and halves of 1 have one",
        )
    return torch.pow(x, exponent) if out is None else torch.pow(x, exponent, out=out)


def _general_power(x: Any, exponent: Any, device: torch.device) -> Tensor:
    """``x ** exponent`` in float64: of the size of x, with the sign that a whole exponent gives a negative number."""
    base = (
        x.double() if isinstance(x, Tensor) else torch.full((), float(x), dtype=torch.float64, device=device)
    )
    y = exponent.double() if isinstance(exponent, Tensor) else torch.full_like(base, float(exponent))
    size = elementary_float64.exp(y * elementary_float64.log(base.abs()))
    half = y * 0.5
    odd = (y == torch.floor(y)) & (half != torch.floor(half))
    negative = torch.where(y == torch.floor(y), torch.where(odd, -size, size), float("nan"))
    result = torch.where(base < 0, negative, size)
    return torch.where((y == 0) | (base == 1), 1.0, result)


def _exact_power(x: Any, exponent: Any) -> bool:
    whole = [not t.is_floating_point() for t in (x, exponent) if isinstance(t, Tensor)]
    return all(whole) and not isinstance(x, float) and not isinstance(exponent, float)


_POWERS: dict[Any, Any] = {
    0: torch.ones_like,
    1: lambda x: x.clone(),
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    4: lambda x: (x * x) * (x * x),
    0.5: root,
    -0.5: lambda x: torch.ones_like(x) / root(x),
    -1: lambda x: torch.ones_like(x) / x,
    -2: lambda x: torch.ones_like(x) / (x * x),
}


def rpow(x: Tensor, base: Any) -> Tensor:
    """``base ** x``, of which ``x`` is asked."""
    return pow_(base, x)


def _sum_in_float32(x: Any, other: Any) -> bool:
    """Whether one of the two is a tensor of 16-bit numbers, and the other a number that it would be rounded to."""
    for tensor, number in ((x, other), (other, x)):
        if isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16):
            if isinstance(number, float):
                return True
            if (
                isinstance(number, Tensor)
                and tensor.dim()
                and not number.dim()
                and number.dtype.is_floating_point
            ):
                return bool(number.dtype != tensor.dtype)
    return False


def _dtype(x: Any, other: Any) -> torch.dtype:
    """The dtype of a sum of floating-point tensors, or of one and a number."""
    tensors = [t for t in (x, other) if isinstance(t, Tensor)]
    if len(tensors) == 2 and bool(tensors[0].dim()) == bool(tensors[1].dim()):
        return torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    chosen: Tensor = next((t for t in tensors if t.dim()), tensors[0])
    return chosen.dtype


def _times(x: Any, alpha: Any) -> Any:
    return x if alpha == 1 else x * alpha


def add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """:func:`torch.add`; a product with ``alpha`` is rounded before it is added."""
    if _sum_in_float32(input, other) or (alpha != 1 and floating(input)):
        a, b = (_wide(t) if isinstance(t, Tensor) else t for t in (input, other))
        dtype = _dtype(input, other)
        return into(out, (a + _times(b, alpha)).to(dtype))
    if alpha != 1:
        return into(out, torch.add(input, other, alpha=alpha))
    return into(out, torch.add(input, other))


def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """:func:`torch.sub`; a product with ``alpha`` is rounded before it is subtracted."""
    if _sum_in_float32(input, other) or (alpha != 1 and floating(input)):
        a, b = (_wide(t) if isinstance(t, Tensor) else t for t in (input, other))
        dtype = _dtype(input, other)
        return into(out, (a - _times(b, alpha)).to(dtype))
    if alpha != 1:
        return into(out, torch.sub(input, other, alpha=alpha))
    return into(out, torch.sub(input, other))


def rsub(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """``other - alpha * input``, of which ``input`` is asked."""
    if isinstance(other, Tensor):
        return sub(other, input, alpha=alpha)
    return torch.neg(sub(input, other)) if alpha == 1 else torch.neg(sub(input * alpha, other))


def addcmul(
    input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1, out: Tensor | None = None
) -> Tensor:
    """:func:`torch.addcmul`, each step rounded to float32 (float64)."""
    y = _wide(input) + _times(_wide(tensor1), value) * _wide(tensor2)
    return into(out, y.to(input.dtype))


def addcdiv(
    input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1, out: Tensor | None = None
) -> Tensor:
    """:func:`torch.addcdiv`, each step rounded to float32 (float64)."""
    y = _wide(input) + _times(_wide(tensor1), value) / _wide(tensor2)
    return into(out, y.to(input.dtype))


def lerp(input: Tensor, end: Tensor, weight: Any, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.lerp`: ``input + weight * (end - input)``, each step rounded to float32 (float64)."""
    w = _wide(weight) if isinstance(weight, Tensor) else weight
    y = _wide(input) + w * (_wide(end) - _wide(input))
    return into(out, y.to(input.dtype))


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """:func:`torch.nn.functional.dropout`: what it draws depends on the batch, so it is reported unless it is idle."""
    if training and p > 0:
        report("dropout in training", "its random numbers are drawn for the batch as a whole")
        return torch.nn.functional.dropout(input, p, training, inplace)
    return input


def hypot(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """:func:`torch.hypot`, without a scale."""
    a, b = _wide(input), _wide(other)
    return into(out, root(a * a + b * b).to(input.dtype))
