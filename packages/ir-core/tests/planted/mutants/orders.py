# SPDX-License-Identifier: Apache-2.0
"""Mutants that declare the order ``tree`` and compute another arithmetic, each of them batch-invariant."""

import torch
from torch import Tensor

from ir_core.ops.canonical import canonical_mean, canonical_rstd
from mutants import Mutant, finish, norm


def _other_tree(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 64)


def _fused_square(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The mean of squares that are not rounded before they are added."""
    x32 = x.to(torch.float32)
    exact = x32.double() * x32.double()
    high = exact.float()
    mean = canonical_mean(high) + canonical_mean((exact - high.double()).float())
    return (x32 * (1.0 / torch.sqrt(mean + epsilon)) * weight.to(torch.float32)).to(x.dtype)


def _approximate_root(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    rstd = canonical_rstd(x32, x.shape[-1], epsilon)
    rstd = rstd * (1.5 - 0.5 * (rstd * rstd) * (canonical_mean(x32 * x32) + epsilon))  # one more Newton step
    return (x32 * rstd * weight.to(torch.float32)).to(x.dtype)


def _flushes_subnormals(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    x32 = torch.where(x32.abs() < torch.finfo(torch.float32).tiny, torch.zeros_like(x32), x32)
    return (x32 * canonical_rstd(x32, x.shape[-1], epsilon) * weight.to(torch.float32)).to(x.dtype)


def _without_padding(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The right order up to 1024 columns, and behind them one block after the other."""
    x32 = x.to(torch.float32)
    squares, n = x32 * x32, x.shape[-1]
    if n <= 1024:
        return (x32 * canonical_rstd(x32, n, epsilon) * weight.to(torch.float32)).to(x.dtype)
    total = torch.zeros_like(x32[..., :1])
    for start in range(0, n, 1024):
        part = squares[..., start : start + 1024]
        total = total + canonical_mean(part) * part.shape[-1]
    return finish(x32, total, weight, epsilon, x.dtype)


MUTANTS = [
    Mutant("other_tree", _other_tree, "adds in blocks of 64", ("order",), order="tree"),
    Mutant(
        "fused_square",
        _fused_square,
        "squares are not rounded before they are added",
        ("order",),
        order="tree",
    ),
    Mutant("approximate_root", _approximate_root, "the root is not the exact one", ("order",), order="tree"),
    Mutant(
        "flushes_subnormals", _flushes_subnormals, "takes subnormal inputs for zero", ("order",), order="tree"
    ),
    Mutant("without_padding", _without_padding, "another tree above 1024 columns", ("order",), order="tree"),
]
