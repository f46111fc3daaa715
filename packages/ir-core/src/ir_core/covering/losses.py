# SPDX-License-Identifier: Apache-2.0
"""Losses over classes: that of a row depends on the row; a sum or mean over rows on all of them, in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ir_core.covering.reductions import log_softmax, mean, sum_


def _reduction(reduction: str, size_average: Any, reduce: Any) -> str:
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "mean" if size_average is None or size_average else "sum"


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """:func:`torch.nn.functional.cross_entropy`, with class indices or probabilities."""
    reduction = _reduction(reduction, size_average, reduce)
    classes = 0 if input.dim() == 1 else 1
    logs = log_softmax(input, classes).movedim(classes, -1)
    weights = None if weight is None else weight.to(logs.dtype)
    if target.is_floating_point():
        shares = target.movedim(classes, -1)
        if label_smoothing:
            shares = shares * (1 - label_smoothing) + label_smoothing / input.shape[classes]
        terms = logs * shares
        losses = -sum_(terms if weights is None else terms * weights, -1)
        if reduction == "mean":
            return sum_(losses) / max(losses.numel(), 1)
        return sum_(losses) if reduction == "sum" else losses
    losses, counted = _picked(logs, target, weights, ignore_index)
    if label_smoothing:
        every = -sum_(logs if weights is None else logs * weights, -1)
        every = torch.where(target == ignore_index, 0.0, every)
        losses = losses * (1 - label_smoothing) + every * (label_smoothing / input.shape[classes])
    return _total(losses, counted, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """:func:`torch.nn.functional.nll_loss`."""
    classes = 0 if input.dim() == 1 else 1
    losses, counted = _picked(input.movedim(classes, -1), target, weight, ignore_index)
    return _total(losses, counted, _reduction(reduction, size_average, reduce))


def _picked(logs: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> tuple[Tensor, Tensor]:
    """The loss of each target, zero where it is ignored, and what it counts in the mean."""
    here = target != ignored
    index = torch.where(here, target, 0)
    picked = logs.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    counts = torch.ones_like(picked) if weight is None else weight.to(picked.dtype)[index]
    counts = torch.where(here, counts, 0.0)
    return torch.where(here, -picked * counts, 0.0), counts


def _total(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return sum_(losses) / sum_(counted) if reduction == "mean" else sum_(losses)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.mse_loss`."""
    reduction = _reduction(reduction, size_average, reduce)
    off = input - target
    losses = off * off if weight is None else off * off * weight
    if reduction == "none":
        return losses
    return mean(losses) if reduction == "mean" else sum_(losses)
