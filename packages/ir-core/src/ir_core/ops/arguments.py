# SPDX-License-Identifier: Apache-2.0
"""What the ops ask of their arguments, in the words of their errors. Each is handed tensors or their facts.

Only what is asked here can be wrong in a call that the eager path has seen before: every question is a fact that the
path compares at each call, so a check asks the fewest that tell a right call from a wrong one.
"""

from typing import Any

import torch
from torch import Tensor

from ir_core.errors import ArgumentError


def check_floating(op: str, **tensors: Any) -> None:
    """Refuse a tensor that holds no floating-point numbers; ``None`` is passed over.

    Raises:
        ArgumentError: the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ArgumentError(
                f"{op} takes floating-point tensors, and '{name}' is {dtype}.",
                why=f"Its result has the dtype of its input, and would be cut off to {dtype}.",
                fix=f"Convert it first: {name}.to(torch.float32), or bfloat16 or float16.",
            )


def check_row(op: str, name: str, tensor: Any, x: Any) -> None:
    """Refuse a tensor that is not one row as long as the rows of ``x``; ``None`` is passed over.

    Raises:
        ArgumentError: it has another length, or another number of dimensions.
    """
    if tensor is None:
        return
    length = row_length(op, x)
    if tensor.shape != (length,):
        sizes = ", ".join(str(tensor.shape[i]) for i in range(tensor.ndim))
        raise ArgumentError(
            f"{op}: '{name}' has the shape [{sizes}], and the rows of 'x' have {length} elements.",
            why=f"Each element of a row has its own element of '{name}'; nothing is broadcast.",
            fix=f"Give '{name}' the shape [{length}].",
        )


def check_variance_size(op: str, variance_size: Any, x: Any) -> None:
    """Refuse a part of the row that is empty or longer than the row; ``None`` is the whole row.

    Raises:
        ArgumentError: it is not from 1 to the length of a row.
    """
    if variance_size is None:
        return
    length = row_length(op, x)
    if not 1 <= variance_size <= length:
        raise ArgumentError(
            f"{op}: variance_size is {variance_size}, and the rows of 'x' have {length} elements.",
            why="The mean of squares runs over the first variance_size elements of a row.",
            fix=f"Give 1 to {length}, or None for the whole row.",
        )


def row_length(op: str, x: Any) -> int:
    """Number of elements of a row of ``x``.

    Raises:
        ArgumentError: it has no dimension.
    """
    if not x.ndim:
        raise ArgumentError(f"{op} takes rows, and 'x' has no dimension.", fix="Give it the shape [1, N].")
    length: int = x.shape[-1]
    return length


def wanted(tensor: Tensor | None) -> bool:
    """Whether a gradient of ``tensor`` is asked for; under ``torch.func`` tensors do not say, so it is computed."""
    if tensor is None:
        return False
    return tensor.requires_grad or bool(torch._C._are_functorch_transforms_active())
