# SPDX-License-Identifier: Apache-2.0
"""RMS normalisation, alone and fused with a residual addition (Zhang and Sennrich, arXiv:1910.07467), and layer
normalisation (Ba, Kiros and Hinton, arXiv:1607.06450).

The meaning of the first two and its rounding points are those of vLLM 0.33: statistics in float32, the normalised row
rounded to the weight's dtype, multiplied by the weight there, and rounded to the input's dtype.

Tolerance. Let u be the unit roundoff of the result's dtype and v = 2**-24 that of float32. The result is rounded
to the weight's dtype, multiplied, and rounded to x's dtype: at most 3 u (weight and x of the same width). Before
that, float32: the sum of N positive squares has a relative error of about sqrt(N) v in any order (Higham, Accuracy
and Stability, 2nd ed., section 4.2: rounding errors of random sign), half of which passes through the root, and the
square, division, addition of epsilon, root, reciprocal and product add at most 6 v. N = 65536 is granted.

``layer_norm`` computes in float32 (float64 for float64) and rounds once, as torch does. Its mean has an error of
sqrt(N) v / 2 of the numbers, which the reciprocal standard deviation scales; the bias may cancel the rest, so the error
is absolute: of a normalised row, weight and bias whose magnitudes are below 8.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.op import register_op
from ir_core.ops.arguments import check_floating, check_row, check_variance_size, row_length, wanted
from ir_core.ops.canonical import TREE, canonical_rstd, exact_sqrt
from ir_core.ops.reduction import average, mean, sum_, wide
from ir_core.tolerances import bound, unit_roundoff

_STATISTICS = (math.sqrt(65536) / 2 + 6) * 2.0**-24


def _reduced(x: Tensor, variance_size: int | None) -> int:
    return x.shape[-1] if variance_size is None else variance_size


def _scaled(x32: Tensor, rstd: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The row times its reciprocal standard deviation, times the weight, rounded to ``dtype``; contiguous."""
    y = x32 * rstd
    if weight is not None:
        y = y.to(weight.dtype) * weight
    return y.to(dtype).contiguous()


def _native_rstd(x32: Tensor, variance_size: int | None, epsilon: float) -> Tensor:
    head = x32 if variance_size is None else x32[..., :variance_size]
    return torch.rsqrt(head.pow(2).mean(dim=-1, keepdim=True) + epsilon)


def _sum(x: Tensor, x_residual: Tensor) -> Tensor:
    """The two as one float32 tensor.

    Raises:
        ArgumentError: one would be broadcast. The number of rows is no fact that a check may see.
    """
    if x.shape != x_residual.shape:
        raise ArgumentError(
            f"fused_add_rms_norm: 'x' has the shape {list(x.shape)}, and 'x_residual' {list(x_residual.shape)}.",
            why="They are added element by element; nothing is broadcast.",
            fix="Give both one shape.",
        )
    return x.to(torch.float32) + x_residual.to(torch.float32)


@register_op(has_reduction=True, orders=[TREE])
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """Weighted root-mean-square layer normalisation: ``x / sqrt(mean(x**2) + epsilon) * weight``.

    Args:
        x: floating ``[..., N]``, any strides; N >= 1.
        weight: floating ``[N]``, of x's dtype or another; ``None`` scales by nothing.
        epsilon: added to the mean square.
        variance_size: the mean runs over the first so many elements of a row, 1 to N; ``None`` means all.

    Returns:
        Of x's shape and dtype, contiguous.

    Raises:
        ArgumentError: a tensor is not floating, the weight is no row of N, or variance_size is not from 1 to N.
    """
    x32 = x.to(torch.float32)
    return _scaled(x32, _native_rstd(x32, variance_size, epsilon), weight, x.dtype)


@register_op(allow_inplace=True, has_reduction=True, orders=[TREE])
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum; the sum is not rounded before it is normalised.

    Args:
        x, x_residual: floating ``[..., N]``, any strides, of one shape; N >= 1.
        weight, epsilon, variance_size: as for :func:`rms_norm`.

    Returns:
        The normalised sum and the sum, each of x's shape and dtype, contiguous.

    Raises:
        ArgumentError: as for :func:`rms_norm`, or x and x_residual differ in shape.
    """
    x32 = _sum(x, x_residual)
    return _scaled(x32, _native_rstd(x32, variance_size, epsilon), weight, x.dtype), x32.to(
        x.dtype
    ).contiguous()


@register_op(has_reduction=True, orders=[TREE])
def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Layer normalisation over the last dimension: ``(x - mean) / sqrt(variance + epsilon) * weight + bias``.

    Args:
        x: floating ``[..., N]``, any strides.
        weight, bias: floating ``[N]``, of x's dtype or another; ``None`` scales by nothing and adds nothing.
        epsilon: added to the variance, the mean square of the differences to the mean.

    Returns:
        Of x's shape and dtype, contiguous.

    Raises:
        ArgumentError: a tensor is not floating, or weight or bias is no row of N.
    """
    w = wide(x)
    factor, summand = (None if t is None else t.to(w.dtype) for t in (weight, bias))
    y = torch.nn.functional.layer_norm(w, (x.shape[-1],), factor, summand, epsilon)
    return y.to(x.dtype).contiguous()


@rms_norm.register_check
def _check_rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> None:
    check_floating("rms_norm", x=x, weight=weight)
    check_row("rms_norm", "weight", weight, x)
    check_variance_size("rms_norm", variance_size, x)


@fused_add_rms_norm.register_check
def _check_fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> None:
    check_floating("fused_add_rms_norm", x=x, x_residual=x_residual, weight=weight)
    check_row("fused_add_rms_norm", "weight", weight, x)
    check_variance_size("fused_add_rms_norm", variance_size, x)


@layer_norm.register_check
def _check_layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5
) -> None:
    check_floating("layer_norm", x=x, weight=weight, bias=bias)
    row_length("layer_norm", x)
    check_row("layer_norm", "weight", weight, x)
    check_row("layer_norm", "bias", bias, x)


def rms_norm_portable(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    x32 = x.to(torch.float32)
    return _scaled(x32, canonical_rstd(x32, _reduced(x, variance_size), epsilon), weight, x.dtype)


def fused_add_rms_norm_portable(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    x32 = _sum(x, x_residual)
    rstd = canonical_rstd(x32, _reduced(x, variance_size), epsilon)
    return _scaled(x32, rstd, weight, x.dtype), x32.to(x.dtype).contiguous()


def layer_norm_portable(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    w = wide(x)
    deviation = w - average(w)
    variance = average(deviation * deviation)
    root = exact_sqrt(variance + torch.full_like(variance, epsilon))
    y = deviation * (torch.ones_like(root) / root)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype).contiguous()


@layer_norm.register_backward
def _layer_norm_backward(
    args: tuple[Any, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Those of weight and bias sum over the rows: they depend on the batch, as they must, in the order ``tree``."""
    x, weight, bias, epsilon = args
    if grads[0] is None:
        return None, None, None, None
    w, g = wide(x), wide(grads[0])
    deviation = w - mean(w).unsqueeze(-1)
    variance = mean(deviation * deviation).unsqueeze(-1)
    root = exact_sqrt(variance + torch.full_like(variance, epsilon))
    rstd = torch.ones_like(root) / root
    normal = deviation * rstd
    pushed = g if weight is None else g * weight.to(g.dtype)
    to_x = rstd * ((pushed - mean(pushed).unsqueeze(-1)) - normal * mean(pushed * normal).unsqueeze(-1))
    columns = (math.prod(x.shape[:-1]), x.shape[-1])
    return (
        to_x.to(x.dtype),
        sum_((g * normal).reshape(columns).T).to(weight.dtype) if wanted(weight) else None,
        sum_(g.reshape(columns).T).to(bias.dtype) if wanted(bias) else None,
        None,
    )


@rms_norm.register_input_generator
def _rms_norm_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    epsilon: float = 1e-5,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    x = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device)
    return x, torch.randn(hidden_size, dtype=dtype, device=device), epsilon


@fused_add_rms_norm.register_input_generator
def _fused_add_rms_norm_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    epsilon: float = 1e-5,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    x = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device)
    residual = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device)
    return x, residual, torch.randn(hidden_size, dtype=dtype, device=device), epsilon


@layer_norm.register_input_generator
def _layer_norm_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    epsilon: float = 1e-5,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    x = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device)
    weight, bias = (torch.randn(hidden_size, dtype=dtype, device=device) for _ in range(2))
    return x, weight, bias, epsilon


layer_norm.register_values(epsilon=(1e-6, 1e-5, 1e-3))
for _dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    _v = 2.0**-53 if _dtype == torch.float64 else 2.0**-24
    layer_norm.override_tolerance(
        _dtype, rtol=2 * unit_roundoff(_dtype), atol=8 * 8 * (math.sqrt(65536) / 2 + 8) * _v
    )

for _op in (rms_norm, fused_add_rms_norm):
    _op.register_values(
        epsilon=(1e-6, 1e-5, 1e-3),
        # The second ends within a vector of any width: a mask that is taken for a whole vector counts too much.
        variance_size={
            "half": lambda hidden: max(hidden // 2, 1),
            "all but one": lambda hidden: max(hidden - 1, 1),
        },
    )
    for _dtype in (torch.float16, torch.bfloat16, torch.float32):
        _op.override_tolerance(_dtype, **bound(_dtype, 3 * unit_roundoff(_dtype) + _STATISTICS))
