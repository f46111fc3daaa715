# SPDX-License-Identifier: Apache-2.0
"""Convolutions as ``linear`` of the patches: one sum for each output, over channels and places, ascending."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ir_core.covering.known import report
from ir_core.covering.products import linear, matmul
from ir_core.covering.shapes import autocast, floating


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value) * (count if len(value) == 1 else 1)


def conv(count: int, function: Any) -> Any:
    """The cover of ``F.conv1d``, ``conv2d`` or ``conv3d``: ``count`` dimensions of places."""

    def cover(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        x, weight, bias = autocast(input, weight, bias)
        if not floating(x, weight) or x.dtype != weight.dtype:
            report(f"conv{count}d of {input.dtype} and {weight.dtype}")
            return function(input, weight, bias, stride, padding, dilation, groups)
        batched = x.dim() == count + 2
        x = x if batched else x.unsqueeze(0)
        steps, apart = _each(stride, count), _each(dilation, count)
        y = _product(_padded(x, weight, padding, apart), weight, bias, steps, apart, groups)
        return y if batched else y.squeeze(0)

    return cover


def _padded(x: Tensor, weight: Tensor, padding: Any, apart: tuple[int, ...]) -> Tensor:
    count = len(apart)
    if padding == "valid":
        return x
    if padding == "same":
        sides: list[int] = []
        for d in reversed(range(count)):
            total = apart[d] * (weight.shape[2 + d] - 1)
            sides += [total // 2, total - total // 2]
    else:
        sides = [n for side in reversed(_each(padding, count)) for n in (side, side)]
    return torch.nn.functional.pad(x, sides) if any(sides) else x


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[int, ...],
    apart: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Of padded ``x`` [B, C, *places]: patches [B, *places, C, *kernel] times the weight."""
    count = len(steps)
    patches = x
    for d in range(count):
        span = apart[d] * (weight.shape[2 + d] - 1) + 1
        patches = patches.unfold(2 + d, span, steps[d])[..., :: apart[d]]
    places = patches.shape[2 : 2 + count]
    rows = patches.permute(0, *range(2, 2 + count), 1, *range(2 + count, 2 + 2 * count))
    rows = rows.reshape(x.shape[0], *places, groups, -1)
    if groups == 1:
        y = linear(rows.squeeze(-2), weight.flatten(1), bias)
    else:
        each = weight.reshape(groups, weight.shape[0] // groups, -1)  # [G, O, K]
        flat = rows.reshape(-1, groups, rows.shape[-1]).transpose(0, 1)  # [G, rows, K]
        y = matmul(flat, each.mT).transpose(0, 1).reshape(x.shape[0], *places, weight.shape[0])
        y = y if bias is None else y + bias
    return y.movedim(-1, 1)
