# SPDX-License-Identifier: Apache-2.0
"""softmax, log_softmax, logsumexp, sum, mean and layer_norm: from a call to a launch. Provider
``triton_batch_invariant``.

Rows are read in place while two strides describe them and each starts at a multiple of 16 bytes (of less, where less
divides its length); other tensors are copied first. Results are contiguous.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

from ir_kernels_triton.kernel_spec import TRITON_NAMES, alignment, weight_alignment
from ir_kernels_triton.launcher import Kernel, RowLaunch
from ir_kernels_triton.reduction_config import layer_norm_spec, reduction_spec
from ir_kernels_triton.rows import Rows, copied, readable, row_starts

EMPTY: Final = {"sum": 0.0, "mean": float("nan"), "logsumexp": float("-inf")}
"""Results of a row without elements, of the ops that have one number for each row."""


@cache
def _prepared(op: str, n: int, x: str, two_strides: bool, device: torch.device) -> RowLaunch:
    spec = reduction_spec(op, n, x, inner=two_strides)
    return RowLaunch(Kernel(spec, device), {"x_ptr": "x", "y_ptr": "y"})


@cache
def _prepared_norm(
    n: int, x: str, w: str | None, b: str | None, two_strides: bool, device: torch.device
) -> RowLaunch:
    spec = layer_norm_spec(n, x, w, b, inner=two_strides)
    return RowLaunch(Kernel(spec, device), {"x_ptr": "x", "y_ptr": "y"}, "epsilon", others=("w_ptr", "b_ptr"))


def _name(op: str, tensor: Tensor) -> str:
    try:
        return TRITON_NAMES[str(tensor.dtype)]
    except KeyError:
        raise TypeError(f"{op} in Triton takes float16, bfloat16 and float32, not {tensor.dtype}") from None


def _aligned(x: Tensor, y: Tensor, name: str) -> tuple[Rows, Tensor]:
    """The rows of ``x`` and ``y``, and ``x`` or a copy whose rows keep the promise of alignment."""
    rows, (x,) = readable((x,), (y,))
    if row_starts(x.data_ptr(), rows, x.itemsize) % alignment(x.shape[-1], name):
        rows, (x,) = readable((copied(x),), (y,))
    return rows, x


def _run(op: str, x: Tensor) -> Tensor:
    if not x.dim():
        raise ValueError("x must have at least one dimension, it has none")
    name, n, one = _name(op, x), x.shape[-1], op in EMPTY
    y = torch.empty((*x.shape[:-1], 1) if one else x.shape, dtype=x.dtype, device=x.device)
    if not n and one:
        y.fill_(EMPTY[op])
    elif y.numel():
        rows, x = _aligned(x, y, name)
        _prepared(op, n, name, rows.inner > 0, x.device)(rows, (x, y), ())
    return y.squeeze(-1) if one else y


def _row(what: str, tensor: Tensor, x: Tensor, bytes_: int) -> Tensor:
    """A weight or bias as one contiguous row of ``x``'s length, aligned, beside it."""
    if tensor.shape != (x.shape[-1],):
        raise ValueError(
            f"{what} must be one row of {x.shape[-1]} elements, it has the shape {tuple(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise ValueError(f"{what} must be on x's device {x.device}, it is on {tensor.device}")
    tensor = tensor.contiguous()
    return copied(tensor) if tensor.data_ptr() % bytes_ else tensor


def layer_norm_batch_invariant(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """``layer_norm`` in the order ``tree``."""
    if not x.dim():
        raise ValueError("x must have at least one dimension, it has none")
    name, n = _name("layer_norm", x), x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    names: list[str | None] = []
    others: list[Tensor] = []
    for what, tensor in (("weight", weight), ("bias", bias)):
        names.append(None if tensor is None else _name("layer_norm", tensor))
        if tensor is not None:
            tensor = _row(what, tensor, x, weight_alignment(max(n, 1), name, names[-1] or name))
        others.append(x if tensor is None else tensor)
    if not y.numel():
        return y
    rows, x = _aligned(x, y, name)
    launch = _prepared_norm(n, name, names[0], names[1], rows.inner > 0, x.device)
    launch(rows, (x, y), tuple(others), epsilon)
    return y


def softmax_batch_invariant(x: Tensor) -> Tensor:
    """``softmax`` in the order ``tree``."""
    return _run("softmax", x)


def log_softmax_batch_invariant(x: Tensor) -> Tensor:
    """``log_softmax`` in the order ``tree``."""
    return _run("log_softmax", x)


def logsumexp_batch_invariant(x: Tensor) -> Tensor:
    """``logsumexp`` in the order ``tree``."""
    return _run("logsumexp", x)


def sum_batch_invariant(x: Tensor) -> Tensor:
    """``sum`` in the order ``tree``."""
    return _run("sum", x)


def mean_batch_invariant(x: Tensor) -> Tensor:
    """``mean`` in the order ``tree``."""
    return _run("mean", x)
