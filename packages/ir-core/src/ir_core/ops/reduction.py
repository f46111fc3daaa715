# SPDX-License-Identifier: Apache-2.0
"""softmax, log_softmax, logsumexp, sum and mean over the last dimension.

All compute in float32 (float64 for float64) and round once, to x's dtype. Sums are canonical sums, the maximum of a row
has no order, and the exponential and the logarithm are those of ``elementary.py``, to the bit.

Gradients are written with the same ops, under the policy of the forward, so that those of a row depend on that row.

Tolerance. With v = 2**-24 and u the unit roundoff of the result's dtype: a sum of N numbers of one sign has a relative
error of about sqrt(N) v in any order (Higham, Accuracy and Stability, 2nd ed., section 4.2), N = 65536 is granted; exp
has 2 v, the difference to the maximum (of numbers below 16) 16 v, log 2 v of a result below 12, each on both sides.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.op import register_op
from ir_core.ops.arguments import check_floating, row_length
from ir_core.ops.canonical import TREE, canonical_sum
from ir_core.ops.elementary import exp, log
from ir_core.ops.elementary_float64 import exp as exp_float64
from ir_core.ops.elementary_float64 import log as log_float64
from ir_core.tolerances import bound, unit_roundoff

INF: Final = float("inf")


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype that reductions compute in: float64 for float64, else float32."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _exp(x: Tensor) -> Tensor:
    return exp_float64(x) if x.dtype == torch.float64 else exp(x)


def _log(x: Tensor) -> Tensor:
    return log_float64(x) if x.dtype == torch.float64 else log(x)


def _maximum(x: Tensor) -> Tensor:
    """The largest element of each row, ``[..., 1]``, -inf of an empty one; a NaN in it is the largest."""
    return x.amax(-1, keepdim=True) if x.shape[-1] else x.new_full((*x.shape[:-1], 1), -INF)


def total(x: Tensor) -> Tensor:
    """The canonical sum of each row, ``[..., 1]``; +0 of zeros of either sign."""
    return canonical_sum(x) + 0.0


def average(x: Tensor) -> Tensor:
    """The sum of each row over its length, correctly rounded."""
    s = total(x)
    return s / torch.full_like(s, x.shape[-1])


@register_op(has_reduction=True, orders=[TREE])
def softmax(x: Tensor) -> Tensor:
    """``exp(x - max) / sum(exp(x - max))`` over the last dimension.

    Args:
        x: floating ``[..., N]``, any strides.

    Returns:
        Of x's shape and dtype, contiguous. A row with a NaN or with +inf, or all of -inf, is NaN.

    Raises:
        ArgumentError: x is not floating, or has no dimension.
    """
    return torch.softmax(wide(x), -1).to(x.dtype).contiguous()


@register_op(has_reduction=True, orders=[TREE])
def log_softmax(x: Tensor) -> Tensor:
    """``x - max - log(sum(exp(x - max)))`` over the last dimension; otherwise as :func:`softmax`."""
    return torch.log_softmax(wide(x), -1).to(x.dtype).contiguous()


@register_op(has_reduction=True, orders=[TREE])
def logsumexp(x: Tensor) -> Tensor:
    """``max + log(sum(exp(x - max)))`` over the last dimension.

    Args:
        x: floating ``[..., N]``, any strides.

    Returns:
        ``[...]``, of x's dtype, contiguous. An infinite maximum is the result; that of an empty row is -inf.

    Raises:
        ArgumentError: x is not floating, or has no dimension.
    """
    return torch.logsumexp(wide(x), -1).to(x.dtype).contiguous()


@register_op(name="sum", has_reduction=True, orders=[TREE])
def sum_(x: Tensor) -> Tensor:
    """Sum over the last dimension, in float32 (float64 for float64), rounded once.

    Args:
        x: floating ``[..., N]``, any strides.

    Returns:
        ``[...]``, of x's dtype, contiguous; +0 of an empty row.

    Raises:
        ArgumentError: x is not floating, or has no dimension.
    """
    return wide(x).sum(-1).to(x.dtype).contiguous()


@register_op(has_reduction=True, orders=[TREE])
def mean(x: Tensor) -> Tensor:
    """Mean over the last dimension; otherwise as :func:`sum_`. That of an empty row is a NaN."""
    return wide(x).mean(-1).to(x.dtype).contiguous()


def softmax_portable(x: Tensor) -> Tensor:
    w = wide(x)
    e = _exp(w - _maximum(w))
    s = total(e)
    return (e * (torch.ones_like(s) / s)).to(x.dtype).contiguous()


def log_softmax_portable(x: Tensor) -> Tensor:
    w = wide(x)
    shifted = w - _maximum(w)
    return (shifted - _log(total(_exp(shifted)))).to(x.dtype).contiguous()


def logsumexp_portable(x: Tensor) -> Tensor:
    w = wide(x)
    largest = _maximum(w)
    result = torch.where(largest.isinf(), largest, largest + _log(total(_exp(w - largest))))
    return result.squeeze(-1).to(x.dtype).contiguous()


def sum_portable(x: Tensor) -> Tensor:
    return total(wide(x)).squeeze(-1).to(x.dtype).contiguous()


def mean_portable(x: Tensor) -> Tensor:
    return average(wide(x)).squeeze(-1).to(x.dtype).contiguous()


@softmax.register_backward
def _softmax_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    (x,), (grad,) = args, grads
    if grad is None:
        return (None,)
    y, g = softmax(wide(x)), wide(grad)
    return ((y * (g - sum_(y * g).unsqueeze(-1))).to(x.dtype),)


@log_softmax.register_backward
def _log_softmax_backward(
    args: tuple[Any, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    (x,), (grad,) = args, grads
    if grad is None:
        return (None,)
    g = wide(grad)
    return ((g - softmax(wide(x)) * sum_(g).unsqueeze(-1)).to(x.dtype),)


@logsumexp.register_backward
def _logsumexp_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    (x,), (grad,) = args, grads
    if grad is None:
        return (None,)
    return ((softmax(wide(x)) * wide(grad).unsqueeze(-1)).to(x.dtype),)


@sum_.register_backward
def _sum_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    (x,), (grad,) = args, grads
    return (None if grad is None else grad.unsqueeze(-1).expand(x.shape),)


@mean.register_backward
def _mean_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    (x,), (grad,) = args, grads
    if grad is None:
        return (None,)
    share = wide(grad) / torch.full_like(wide(grad), x.shape[-1])
    return (share.to(x.dtype).unsqueeze(-1).expand(x.shape),)


def _inputs(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> tuple[Any, ...]:
    """Rows of standard deviation 3, as logits have it."""
    return (torch.randn(num_tokens, hidden_size, device=device).mul(3).to(dtype),)


def _check(name: str) -> Any:
    def check(x: Tensor) -> None:
        check_floating(name, x=x)
        row_length(name, x)

    return check


_SUM: Final = math.sqrt(65536)
for _op in (softmax, log_softmax, logsumexp, sum_, mean):
    _op.register_input_generator(_inputs)
    _op.register_check(_check(_op.name))
    for _dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        _v = 2.0**-53 if _dtype == torch.float64 else 2.0**-24
        _u = unit_roundoff(_dtype)
        if _op is softmax:
            _op.override_tolerance(_dtype, **bound(_dtype, 2 * _u + 2 * (_SUM + 22) * _v))
        elif _op in (log_softmax, logsumexp):
            # Absolute errors of the sum pass through the logarithm; results near zero keep them.
            _op.override_tolerance(_dtype, rtol=2 * _u, atol=2 * (_SUM + 22 + 24) * _v)
        else:
            # Terms of either sign: relative to the sum of magnitudes, which is below 16 N for numbers below 16.
            _terms = 65536 if _op is sum_ else 1
            _op.override_tolerance(_dtype, rtol=2 * _u, atol=2 * 4 * _SUM * _v * math.sqrt(_terms))
