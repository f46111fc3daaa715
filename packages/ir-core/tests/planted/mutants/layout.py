# SPDX-License-Identifier: Apache-2.0
"""Mutants whose bits, or whose selection, depend on how the batch lies in memory; and mishandled memory."""

from typing import Any

import torch
from torch import Tensor

from mutants import ADD_NORM, Mutant, norm, rows_of


def _alignment(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 64 if x.data_ptr() % 16 == 0 else 16)


def _weight_alignment(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 64 if weight.data_ptr() % 16 == 0 else 16)


def _stride_alignment(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    aligned = x.dim() < 2 or x.stride(-2) % 16 == 0 or x.is_contiguous()
    return norm(x, weight, epsilon, 64 if aligned else 16)


def _contiguous_fast_path(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 64 if x.is_contiguous() else 16)


def _size_one_stride(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    regular = all(stride % x.shape[-1] == 0 for stride in x.stride()[:-1])
    return norm(x, weight, epsilon, 64 if regular or x.dim() < 3 else 16)


def _flattens_in_memory_order(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    n = x.shape[-1]
    if x.dim() == 3 and not x.is_contiguous() and x.stride(0) == n and x.stride(1) == x.shape[0] * n:
        return norm(x.transpose(0, 1), weight, epsilon, 16).transpose(0, 1).contiguous()
    return norm(x, weight, epsilon)


def _honest(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon)


def _by_rows(x: Any, weight: Any, epsilon: float) -> Any:
    return x.shape[0] < 256 or "too many rows"


def _by_hidden_rows(x: Any, weight: Any, epsilon: float) -> Any:
    return x._tensor.shape[0] < 256 or "too many rows"  # around the facts


def _by_contiguity(x: Any, weight: Any, epsilon: float) -> Any:
    return x._tensor.is_contiguous() or "not contiguous"  # true of any lone row, false of two strided ones


_asked: dict[tuple[Any, ...], int] = {}


def _with_memory(x: Any, weight: Any, epsilon: float) -> Any:
    key = (x.dtype, x.shape[-1])
    _asked[key] = _asked.get(key, 0) + 1
    return _asked[key] < 40 or "the workspace is used up"


_buffers: dict[Any, Tensor] = {}


def _static_output(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    key = (tuple(x.shape), x.dtype)
    made = norm(x, weight, epsilon)
    buffer = _buffers.setdefault(key, torch.empty_like(made))
    return buffer.copy_(made)


def _returns_input(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x.copy_(norm(x, weight, epsilon))


def _scales_weight(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    result = norm(x, weight, epsilon)
    weight.mul_(1.0 + 2.0**-7)  # folds a scale into the weight, each time anew
    return result


def _strided_output(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    made = norm(x, weight, epsilon)
    return made.reshape(-1, x.shape[-1]).t().contiguous().t().reshape(x.shape) if x.dim() == 2 else made


def _overlapping_tiles(
    x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Tiles of 4 rows; the last one is moved back to be full, over rows that are normalised already."""
    rows, n = rows_of(x), x.shape[-1]
    flat, residual = x.reshape(rows, n), x_residual.reshape(rows, n)
    for start in range(0, rows, 4):
        begin = max(min(start, rows - 4), 0)
        total = (flat[begin : begin + 4].float() + residual[begin : begin + 4].float()).to(x.dtype)
        residual[begin : begin + 4] = total
        flat[begin : begin + 4] = norm(total, weight, epsilon)
    return x.copy_(flat.reshape(x.shape)), x_residual.copy_(residual.reshape(x.shape))


def _add_by_alignment(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + x_residual.float()
    block = 64 if x_residual.data_ptr() % 16 == 0 else 16
    return norm(total, weight, epsilon, block).to(x.dtype), total.to(x.dtype)


MUTANTS = [
    Mutant("alignment", _alignment, "another order when x is not at 16 bytes", ("memory",), "Triton"),
    Mutant(
        "weight_alignment", _weight_alignment, "another order when the weight is not at 16 bytes", ("memory",)
    ),
    Mutant(
        "stride_alignment",
        _stride_alignment,
        "another order when rows are not 16 apart",
        ("memory",),
        "Triton",
    ),
    Mutant("contiguous_fast_path", _contiguous_fast_path, "another order for strided rows", ("memory",)),
    Mutant("size_one_stride", _size_one_stride, "looks at the stride of a dimension of size 1", ("memory",)),
    Mutant("memory_order", _flattens_in_memory_order, "flattens transposed batches as they lie", ("memory",)),
    Mutant("selection_by_rows", _honest, "refuses 256 rows", ("selection",), predicate=_by_rows),
    Mutant(
        "selection_around_facts",
        _honest,
        "refuses 256 rows, secretly",
        ("selection",),
        predicate=_by_hidden_rows,
    ),
    Mutant(
        "selection_by_contiguity",
        _honest,
        "takes one strided row and refuses two",
        ("selection",),
        "vLLM aiter and oink predicates",
        predicate=_by_contiguity,
    ),
    Mutant(
        "selection_with_memory", _honest, "refuses after some calls", ("selection",), predicate=_with_memory
    ),
    Mutant("static_output", _static_output, "every call returns the same buffer", ("aliasing",)),
    Mutant("returns_input", _returns_input, "writes its result over x and is not registered so", ("inputs",)),
    Mutant("scales_weight", _scales_weight, "changes the weight", ("inputs",)),
    Mutant(
        "strided_output", _strided_output, "returns other strides than the fake implementation", ("fake",)
    ),
    Mutant(
        "overlapping_tiles",
        _overlapping_tiles,
        "in place; the last tile reads rows that were written",
        ("position", "numerics"),
        op=ADD_NORM,
        inplace=True,
    ),
    Mutant(
        "residual_alignment",
        _add_by_alignment,
        "another order by the residual's address",
        ("memory",),
        op=ADD_NORM,
    ),
]
