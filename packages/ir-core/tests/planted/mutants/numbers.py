# SPDX-License-Identifier: Apache-2.0
"""Wrong numbers in ops without a tolerance of their own: the bound comes from the errors of the op's meaning."""

import torch
from torch import Tensor

from ir_core.ops.activation import canonical_exp
from ir_core.ops.canonical import canonical_mean, canonical_sum, exact_sqrt
from mutants import LAYER_NORM, SOFTMAX, Mutant


def _softmax(x: Tensor) -> Tensor:
    x32 = x.to(torch.float32)
    e = canonical_exp(x32 - x32.amax(-1, keepdim=True))
    return (e / canonical_sum(e)).to(x.dtype)


def _softmax_in_bfloat16(x: Tensor) -> Tensor:
    x32 = x.to(torch.float32)
    e = canonical_exp(x32 - x32.amax(-1, keepdim=True)).to(torch.bfloat16).to(torch.float32)
    return (e / canonical_sum(e)).to(x.dtype)


def _layer_norm(x: Tensor, weight: Tensor, epsilon: float, lost: int = 0) -> Tensor:
    x32 = x.to(torch.float32)
    n = x.shape[-1]
    centred = x32 - canonical_mean(x32)
    variance = canonical_sum(centred * centred) / float(max(n - lost, 1))
    return (centred / exact_sqrt(variance + epsilon) * weight.to(torch.float32)).to(x.dtype)


def _sample_variance(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return _layer_norm(x, weight, epsilon, 1)


def _population_variance(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return _layer_norm(x, weight, epsilon)


MUTANTS = [
    Mutant(
        "softmax_in_bfloat16",
        _softmax_in_bfloat16,
        "exponentials lose their digits",
        ("numerics",),
        op=SOFTMAX,
    ),
    Mutant("sample_variance", _sample_variance, "divides by n - 1", ("numerics",), op=LAYER_NORM),
    Mutant("polynomial_softmax", _softmax, "an exponential of its own", op=SOFTMAX),
    Mutant("two_pass_layer_norm", _population_variance, "mean first, then deviations", op=LAYER_NORM),
]
