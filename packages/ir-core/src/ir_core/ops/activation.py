# SPDX-License-Identifier: Apache-2.0
"""Gated activations. ``gelu_and_mul_sparse`` is Gemma 3n's (Gaussian top-k sparsification of the gate).

The meaning and its rounding points are those of vLLM 0.33. ``exp``, ``erf`` and ``tanh`` give other bits in every
library, so ``portable`` evaluates GELU by additions, products, one division and integer operations alone, each
correctly rounded float32: see :func:`canonical_gelu`.
"""

from typing import Any, Final

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.op import register_op
from ir_core.ops.arguments import check_floating, row_length
from ir_core.ops.canonical import TREE, canonical_mean, exact_sqrt
from ir_core.ops.elementary import LN2_HIGH, LN2_LOW, LOG2_E, ROUND
from ir_core.tolerances import unit_roundoff

# All constants are float32 numbers, written exactly.
EXP: Final = (
    0.4999999403953552,
    0.1666651964187622,
    0.04166840389370918,
    0.00836889911442995,
    0.001381422160193324,
)
"""exp(r) = 1 + r + r**2 * (EXP[0] + EXP[1] r + ...) for abs(r) <= 0.3475: minimax, relative error 4.0e-9."""
EXP_MIN: Final = -87.0
"""Below, exp is taken there: the scale 2**n stays normal, and 1 plus the result is 1 either way."""
TAIL_SCALE: Final = 0.3499999940395355
TAIL: Final = (
    0.13747163116931915,
    0.1558012068271637,
    0.07927102595567703,
    0.12243446707725525,
    0.0990028902888298,
    -0.12606550753116608,
    0.03208428621292114,
)
"""erfc(x / sqrt(2)) / 2 = exp(-x**2 / 2) * (TAIL[0] t + TAIL[1] t**2 + ...), t = 1 / (1 + TAIL_SCALE x), x >= 0:
the form of Abramowitz and Stegun 7.1.26 with seven terms of our own fit, absolute error 9.7e-9."""
CUBIC: Final = 0.044714998453855515
MINUS_TWO_ROOT_TWO_OVER_PI: Final = -1.5957691669464111


def canonical_exp(y: Tensor) -> Tensor:
    """exp of float32 ``y <= 0`` (from -87 on) by Cody and Waite's reduction; the error is below 4 * 2**-24 * exp(y).

    y = n log(2) + r with n an integer; the error of r is that of ``n * LN2_LOW`` and the last subtraction: below
    2**-24 * (0.35 + 0.03). Horner's steps shrink with r, so the last two roundings dominate.
    """
    y = torch.where(y < EXP_MIN, torch.full_like(y, EXP_MIN), y)
    n = (y * LOG2_E + ROUND) - ROUND
    r = (y - n * LN2_HIGH) - n * LN2_LOW
    p = torch.full_like(r, EXP[-1])
    for c in reversed(EXP[:-1]):
        p = p * r + c
    p = ((p * r) * r + r) + 1.0
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def canonical_gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU of float32 ``x >= 0``, with the same bits on every device.

    "tanh" is ``x / (1 + exp(-2 u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x**3)``, which equals the usual form with
    tanh; "none" is ``x (1 - erfc(x / sqrt(2)) / 2)``. Relative errors, with v = 2**-24:

    * "tanh", below 6 v: u has 5 v, which exp(-2 u) turns into at most 5 v * max(y exp(-y)) = 1.9 v of the sum
      1 + exp; exp 4 v of at most half of it; sum and division 2 v.
    * "none", below 12 v: 2 v of t and 3 v of Horner on at most 0.75, 0.4 v of x**2 and 4 v of exp on at most 0.5, all
      over at least 0.5, and 0.2 v of the fit.

    Seen in tests: below 3 v and 7 v.

    Written for x >= 0 because GELU follows a ReLU here: for x < 0 "none" would lose its digits.
    """
    if approximate == "tanh":
        e = canonical_exp((x + ((x * x) * x) * CUBIC) * MINUS_TWO_ROOT_TWO_OVER_PI)
        return x / (e + 1.0)
    if approximate != "none":
        raise ValueError(f"approximate must be 'none' or 'tanh', it is {approximate!r}")
    t = torch.ones_like(x) / (x * TAIL_SCALE + 1.0)
    p = torch.full_like(t, TAIL[-1])
    for c in reversed(TAIL[:-1]):
        p = p * t + c
    q = (p * t) * canonical_exp((x * x) * -0.5)
    return x * (1.0 - q)


@register_op(has_reduction=True, orders=[TREE])
def gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """Keep what of the gate exceeds ``mean + std_multiplier * std`` of its row, apply GELU, multiply by the other half.

    Args:
        x: floating ``[..., 2 * d]``: gate, then up; any strides.
        std_multiplier: the threshold, in standard deviations (population, of this shard's row).
        approximate: of GELU, "none" (erf) or "tanh".

    Returns:
        ``[..., d]``, of x's dtype, contiguous.

    Raises:
        ArgumentError: x is not floating, its rows have an odd number of elements, or approximate is another word.
    """
    d = x.shape[-1] // 2
    gate = x[..., :d]
    if isinstance(elements := gate.numel(), int) and elements == 0:  # torch.std warns of a mean over nothing
        return (gate * x[..., d:]).contiguous()
    mean = torch.mean(gate, dim=-1, keepdim=True)
    std = torch.std(gate, dim=-1, keepdim=True, unbiased=False)
    sparse = torch.relu(gate - (mean + std * std_multiplier))
    return (torch.nn.functional.gelu(sparse, approximate=approximate) * x[..., d:]).contiguous()


@gelu_and_mul_sparse.register_check
def _check_gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> None:
    check_floating("gelu_and_mul_sparse", x=x)
    if (length := row_length("gelu_and_mul_sparse", x)) % 2:
        raise ArgumentError(
            f"gelu_and_mul_sparse: the rows of 'x' have {length} elements, an odd number.",
            why="A row holds the gate and, as long, what it is multiplied by.",
            fix="Give it the shape [..., 2 * d].",
        )
    if approximate not in ("none", "tanh"):
        raise ArgumentError(
            f"gelu_and_mul_sparse: approximate is {approximate!r}.",
            why="It names the form of GELU.",
            fix="Write 'none' (by erf) or 'tanh'.",
        )


def gelu_and_mul_sparse_portable(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """Canonical sums (mean, then mean of squared deviations), and one rounding to x's dtype where the op has one."""

    def rounded(value: Tensor) -> Tensor:
        return value.to(x.dtype).to(torch.float32)

    d = x.shape[-1] // 2
    gate, up = x[..., :d].to(torch.float32), x[..., d:].to(torch.float32)
    mean = canonical_mean(gate)
    deviation = gate - mean
    std = rounded(exact_sqrt(canonical_mean(deviation * deviation)))
    threshold = rounded(rounded(mean) + rounded(std * torch.full_like(std, std_multiplier)))
    sparse = rounded(gate - threshold)
    sparse = torch.where(sparse <= 0, torch.zeros_like(sparse), sparse)
    return (rounded(canonical_gelu(sparse, approximate)) * up).to(x.dtype).contiguous()


@gelu_and_mul_sparse.register_input_generator
def _gelu_and_mul_sparse_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    std_multiplier: float = 1.6448536269514722,
    approximate: str = "tanh",
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    x = torch.randn(num_tokens, 2 * hidden_size, dtype=dtype, device=device)
    return x, std_multiplier, approximate


gelu_and_mul_sparse.register_values(
    approximate=("none", "tanh"), std_multiplier=(0.0, 1.0, 1.6448536269514722)
)

# Two correct implementations may round mean or std to neighbouring numbers of x's dtype, which moves the threshold by
# up to 1 (mean) + 1.65 (std, times the multiplier) + 1 (the roundings behind) units in [1, 2), with nothing to compare
# it to: an absolute error, times GELU's slope (at most 1.13) and the up half (below 6 for generated inputs). Behind the
# threshold there are three roundings (difference, GELU, product), and float32 errors of 12 units.
for _dtype in (torch.float16, torch.bfloat16, torch.float32):
    _u = unit_roundoff(_dtype)
    gelu_and_mul_sparse.override_tolerance(_dtype, atol=3.65 * 2 * _u * 1.13 * 6, rtol=3 * _u + 12 * 2.0**-24)
