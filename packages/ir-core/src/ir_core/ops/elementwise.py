# SPDX-License-Identifier: Apache-2.0
"""Element-wise functions with an arithmetic of their own: the same bits at any place, on any device, eager or compiled.

Each is made of :mod:`ir_core.ops.elementary`'s exponential and logarithm and of single operations, rounded to nearest;
numbers of 16 bits are computed in float32 and rounded once, to nearest. With ``e = exp``:

=========  ==============================================================================================
exp, log   those of ``elementary``
sigmoid    ``1 / (1 + e(-x))``
silu       ``x / (1 + e(-x))``
tanh       ``t = e(-2 |x|)``, ``(1 - t) / (1 + t)`` with the sign of x; below 0.25 the odd Taylor polynomial to x**11
gelu_tanh  ``x / (1 + e(-2 u))``, ``u = sqrt(2 / pi) * (x + 0.044715 * ((x * x) * x))``
gelu       ``x * (1 - q)`` for x > 0 and ``x * q`` else; ``q = erfc(z) / 2``, ``z = |x| / sqrt(2)``, in float64 by
           ``erfc(z) = t * exp(P(2 t - 1) - z * z)``, ``t = 2 / (2 + z)``, P a Chebyshev series of degree 18
softplus   ``max(x, 0) + l``, ``l = log(1 + e(-|x|))``, below an exponential of 0.01 its Taylor polynomial to e**5
cos, sin   in float64: x less the nearest multiple of pi / 2 (in three parts), and Taylor's polynomial there
=========  ==============================================================================================

Derivatives are those of the formulas, computed with these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.op import register_op
from ir_core.ops.elementary import exp as _exp32
from ir_core.ops.elementary import log as _log32

_HALF_PI: Final = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21)
"""pi / 2 in three parts of at most 33 bits: their products with a whole number below 2**20 are exact."""
_FAR: Final = 1e6
"""From there on the parts do not suffice: torch's own function of float64, rounded."""
_SIN: Final = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9))
_COS: Final = tuple((-1) ** k / math.factorial(2 * k) for k in range(1, 9))
_TANH: Final = (-1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925)
"""Taylor's series of tanh(x) / x, without its 1; the next term is below 3e-10 for abs(x) <= 0.25."""
_ERFC: Final = (
    -0.6513268598908412, 0.6419697923564641, 0.019476473204209394, -0.009561514786827563, -0.0009465953444685751,
    0.0003668394978456619, 4.252332480687598e-05, -2.0278578105386995e-05, -1.624290018295434e-06,
    1.3036558546951312e-06, 1.5626418696130648e-08, -8.523807001978084e-08, 6.529027668458082e-09,
    5.059369026362466e-09, -9.913869240598402e-10, -2.2734662803868425e-10, 9.645509617090095e-11,
    2.4003702852986684e-12, -6.885754335878944e-12,
)  # fmt: skip
"""Chebyshev coefficients of log(erfc(z) / t) + z * z over 2 t - 1: our own fit, error below 1.2e-12."""
_SQRT_2_OVER_PI: Final = 0.7978845608028654
_CUBE: Final = 0.044715


def _sigmoid(x: Tensor) -> Tensor:
    return torch.ones_like(x) / (_exp32(-x) + 1.0)


def _silu(x: Tensor) -> Tensor:
    return x / (_exp32(-x) + 1.0)


def _tanh(x: Tensor) -> Tensor:
    size = x.abs()
    t = _exp32(size * -2.0)
    large = torch.copysign((1.0 - t) / (t + 1.0), x)
    square = x * x
    p = torch.full_like(x, _TANH[-1])
    for c in reversed(_TANH[:-1]):
        p = p * square + c
    return torch.where(size < 0.25, x + x * (square * p), large)


def _inner(x: Tensor) -> Tensor:
    return (x + (x * x * x) * _CUBE) * _SQRT_2_OVER_PI


def _gelu_tanh(x: Tensor) -> Tensor:
    return x / (_exp32(_inner(x) * -2.0) + 1.0)


def _tail(x: Tensor) -> Tensor:
    """Half of erfc of ``abs(x) / sqrt(2)``, in float64: the weight of the normal distribution beyond abs(x)."""
    z = x.double().abs() * math.sqrt(0.5)
    t = 2.0 / (z + 2.0)
    c = t * 2.0 - 1.0
    b, after = torch.zeros_like(c), torch.zeros_like(c)
    for a in reversed(_ERFC[1:]):  # Clenshaw's recurrence
        b, after = c * 2.0 * b - after + a, b
    power = (c * b - after + _ERFC[0]) - z * z
    near = power.float()
    # exp of the float32 next to it; what is left is so small that 1 + it is its exponential.
    return _exp32(near).double() * ((power - near.double()) + 1.0) * t * 0.5


def _gelu(x: Tensor) -> Tensor:
    tail, wide = _tail(x), x.double()
    y = (wide * torch.where(x > 0.0, 1.0 - tail, tail)).float()
    return torch.where(x.isinf(), x.clamp(min=0.0), y)


def _softplus(x: Tensor) -> Tensor:
    e = _exp32(-x.abs())
    series = e * (1.0 - e * (0.5 - e * (1 / 3 - e * (0.25 - e * 0.2))))
    return x.clamp(min=0.0) + torch.where(e < 0.01, series, _log32(e + 1.0))


def _turn(x: Tensor, quarter: int) -> Tensor:
    """sin (``quarter`` 0) or cos (1) of float32 ``x``: the sine of x and so many right angles."""
    wide = x.double()
    n = torch.round(wide * (2.0 / math.pi))
    r = ((wide - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    square = r * r
    place = (n.clamp(-_FAR, _FAR).to(torch.int64) + quarter) & 3
    value = torch.where((place & 1) == 1, _series(square, _COS), _series(square, _SIN) * r)
    value = torch.where(place > 1, -value, value)
    far = torch.cos(wide) if quarter else torch.sin(wide)
    return torch.where(wide.abs() < _FAR, value, far).float()


def _series(square: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = torch.full_like(square, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * square + c
    return p * square + 1.0


def _cos(x: Tensor) -> Tensor:
    return _turn(x, 1)


def _sin(x: Tensor) -> Tensor:
    return _turn(x, 0)


FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "cos": _cos,
    "exp": _exp32,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "log": _log32,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "sin": _sin,
    "softplus": _softplus,
    "tanh": _tanh,
}
"""The functions of float32, by name."""

_NATIVE: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "cos": torch.cos,
    "exp": torch.exp,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "sin": torch.sin,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
}


def _slope(x: Tensor, function: str) -> Tensor:
    """The derivative of a function at float32 ``x``."""
    match function:
        case "exp":
            return _exp32(x)
        case "log":
            return 1.0 / x
        case "sigmoid":
            return (y := _sigmoid(x)) * (1.0 - y)
        case "softplus":
            return _sigmoid(x)
        case "silu":
            return (s := _sigmoid(x)) + x * (s * (1.0 - s))
        case "tanh":
            return 1.0 - (y := _tanh(x)) * y
        case "gelu_tanh":
            s = _sigmoid(_inner(x) * 2.0)
            inner = ((x * x) * (3 * _CUBE) + 1.0) * (2 * _SQRT_2_OVER_PI)
            return s + x * ((s * (1.0 - s)) * inner)
        case "gelu":
            tail = _tail(x).float()
            density = _exp32((x * x) * -0.5) * (1 / math.sqrt(2 * math.pi))
            return torch.where(x > 0.0, 1.0 - tail, tail) + x * density
        case "cos":
            return -_sin(x)
    return _cos(x)


@register_op(has_reduction=False)
def pointwise(x: Tensor, function: str) -> Tensor:
    """A function of each element: cos, exp, gelu, gelu_tanh, log, sigmoid, silu, sin, softplus or tanh.

    Args:
        x: fp16, bf16 or fp32, any shape and strides.
        function: its name; ``gelu`` is that with the error function.

    Returns:
        Of x's shape and dtype, contiguous.

    Raises:
        ArgumentError: another dtype or function.
    """
    return _NATIVE[function](x).contiguous()


@pointwise.register_check
def check(x: Tensor, function: str) -> None:
    """Refuse what is no call of ``pointwise``; given tensors or their facts."""
    if function not in FUNCTIONS:
        raise ArgumentError(f"pointwise has no function {function!r}.", fix=f"It has {', '.join(FUNCTIONS)}.")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ArgumentError(
            f"pointwise takes float16, bfloat16 and float32, and 'x' is {x.dtype}.",
            why="Its arithmetic is that of float32.",
            fix="Convert it first.",
        )


def pointwise_portable(x: Tensor, function: str) -> Tensor:
    return FUNCTIONS[function](x.to(torch.float32).contiguous()).to(x.dtype)


@pointwise.register_fake
def _pointwise_fake(x: Tensor, function: str) -> Tensor:
    return x.new_empty(x.shape)


@pointwise.register_backward
def _pointwise_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    x, function = args
    grad = grads[0]
    if grad is None:
        return None, None
    slope = _slope(x.detach().to(torch.float32), function)
    return (grad.to(torch.float32) * slope).to(x.dtype), None


@pointwise.register_input_generator
def _pointwise_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    function: str = "silu",
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    """Numbers of variance 4, positive for ``log``."""
    x = torch.randn(num_tokens, hidden_size, dtype=dtype, device=device) * 2
    return (x.abs() if function == "log" else x), function


pointwise.register_values(function=tuple(FUNCTIONS))
