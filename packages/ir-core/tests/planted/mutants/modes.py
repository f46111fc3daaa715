# SPDX-License-Identifier: Apache-2.0
"""Mutants that look at what surrounds a call: torch's modes, and whether inputs may be overwritten."""

import torch
from torch import Tensor

from mutants import ADD_NORM, Mutant, norm


def _inference_kernel(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if torch.is_inference_mode_enabled() else 64)


def _grad_kernel(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if torch.is_grad_enabled() and x.requires_grad else 64)


def _autocast_sum(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """A product that autocast turns into bfloat16."""
    scale = torch.ones(1, 1) / 3.0
    ninth = torch.nn.functional.linear(scale, scale)[0, 0].to(torch.float32)
    return norm(x, weight, epsilon * float(ninth) * 9.0)


def _deterministic_kernel(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if torch.are_deterministic_algorithms_enabled() else 64)


def _add(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float, block: int) -> tuple[Tensor, Tensor]:
    total = x.to(torch.float32) + x_residual.to(torch.float32)
    return norm(total, weight, epsilon, block).to(x.dtype), total.to(x.dtype)


def _add_in_place(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    made, total = _add(x, x_residual, weight, epsilon, 16)
    return x.copy_(made), x_residual.copy_(total)


def _add_apart(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return _add(x, x_residual, weight, epsilon, 64)


MUTANTS = [
    Mutant(
        "inference_kernel",
        _inference_kernel,
        "another order in inference mode",
        ("modes",),
        "vLLM runs in it",
    ),
    Mutant("grad_kernel", _grad_kernel, "another order where gradients are wanted", ("modes",)),
    Mutant("autocast_sum", _autocast_sum, "calls what autocast lowers", ("modes",)),
    Mutant(
        "deterministic_kernel",
        _deterministic_kernel,
        "another order with deterministic algorithms",
        ("modes",),
    ),
    Mutant(
        "functional_differs",
        _add_in_place,
        "another order in place than with memory of its own",
        ("inplace",),
        op=ADD_NORM,
        inplace=True,
        functional=_add_apart,
    ),
]
