# SPDX-License-Identifier: Apache-2.0
"""Normalisations: rows by the ops, the rest by means and variances of the ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ir_core import ops
from ir_core.covering.reductions import _wide, root
from ir_core.covering.shapes import product


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """:func:`torch.nn.functional.layer_norm`."""
    count = len(normalized_shape)
    rows = input if count == 1 else input.flatten(-count)
    y = ops.layer_norm(
        rows,
        None if weight is None else weight.reshape(-1),
        None if bias is None else bias.reshape(-1),
        eps,
    )
    return y.reshape(input.shape)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """:func:`torch.nn.functional.rms_norm`."""
    count = len(normalized_shape)
    rows = input if count == 1 else input.flatten(-count)
    epsilon = torch.finfo(input.dtype).eps if eps is None else eps
    y = ops.rms_norm(rows, None if weight is None else weight.reshape(-1), epsilon)
    return y.reshape(input.shape)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`torch.nn.functional.group_norm`."""
    rows = input.reshape(input.shape[0], num_groups, product(input.shape[1:]) // num_groups)
    y = ops.layer_norm(_wide(rows), None, None, eps).reshape(input.shape)
    return _affine(y, weight, bias).to(input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`torch.nn.functional.batch_norm`; with statistics of the batch it depends on the batch, as it means to."""
    if training or running_mean is None or running_var is None:
        return torch.nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    y = (_wide(input) - _channels(running_mean, input)) / root(_wide(_channels(running_var, input)) + eps)
    return _affine(y, weight, bias).to(input.dtype)


def _channels(row: Tensor, like: Tensor) -> Tensor:
    return row.reshape(1, -1, *[1] * (like.dim() - 2))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * _channels(weight, y)
    return y if bias is None else y + _channels(bias, y)
