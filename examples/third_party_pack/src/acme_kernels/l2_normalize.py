# SPDX-License-Identifier: Apache-2.0
"""A new op: its meaning, how to make inputs for it, and an implementation that keeps its bits."""

from typing import Any

import torch
from torch import Tensor

import ir_core
from ir_core.ops.canonical import canonical_sum, exact_sqrt


@ir_core.register_op(has_reduction=True)
def l2_normalize(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Scale each row to length one: ``x / max(sqrt(sum(x**2)), epsilon)``; any floating dtype, [..., N]."""
    x32 = x.to(torch.float32)
    length = x32.pow(2).sum(dim=-1, keepdim=True).sqrt()
    return (x32 / length.clamp_min(epsilon)).to(x.dtype)


@l2_normalize.register_input_generator
def _inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype, **kwargs: Any) -> tuple[Any, ...]:
    return (torch.randn(num_tokens, hidden_size, dtype=dtype, **kwargs),)


def in_canonical_order(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """``l2_normalize`` with ir-core's own order of the sum, which depends on N alone."""
    x32 = x.to(torch.float32)
    length = exact_sqrt(canonical_sum(x32 * x32))
    return (x32 / length.clamp_min(epsilon)).to(x.dtype)
