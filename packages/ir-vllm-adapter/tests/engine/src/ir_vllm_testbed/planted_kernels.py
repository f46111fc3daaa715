# SPDX-License-Identifier: Apache-2.0
"""Norms and a product whose order of additions depends on the number of rows, as a launch tuned by it has it."""

import torch
from torch import Tensor

ROWS = 8
"""From this many rows on, the terms are added back to front."""


def _normalize(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None) -> Tensor:
    used = x if variance_size is None else x[..., :variance_size]
    squares = used * used
    rows = squares.numel() // squares.shape[-1]
    total = torch.zeros_like(squares[..., 0])
    columns = range(squares.shape[-1])
    for i in columns if rows < ROWS else reversed(columns):
        total = total + squares[..., i]
    out = x * torch.rsqrt(total.unsqueeze(-1) / squares.shape[-1] + epsilon)
    return out if weight is None else out.to(weight.dtype) * weight


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """rms_norm, batch-variant."""
    return _normalize(x.float(), weight, epsilon, variance_size).to(x.dtype)


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """fused_add_rms_norm, batch-variant."""
    total = x.float() + x_residual.float()
    return _normalize(total, weight, epsilon, variance_size).to(x.dtype), total.to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """linear, batch-variant."""
    rows = x.numel() // x.shape[-1]
    total = x.new_zeros((*x.shape[:-1], weight.shape[0]))
    columns = range(x.shape[-1])
    for k in columns if rows < ROWS else reversed(columns):
        total = total + x[..., k, None] * weight[:, k]
    return total if bias is None else total + bias
