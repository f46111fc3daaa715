# SPDX-License-Identifier: Apache-2.0
"""Mutants that no planned case meets: random ones have to find them."""

from torch import Tensor

from mutants import ADD_NORM, Mutant, mixed, norm, rows_of


def _beyond_40000_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if rows_of(x) > 40_000 else 64)


def _some_widths(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if x.shape[-1] % 7 == 5 and rows_of(x) < 40 else 64)


def _rank_four(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if x.dim() == 4 else 64)


def _one_storage(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    same = x.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    return norm(x, weight, epsilon, 16 if same else 64)


def _far_offset(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if x.storage_offset() > 12 else 64)


def _third_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Every third row of a longer buffer: a stride that no power of two divides."""
    third = x.dim() == 2 and x.shape[0] > 1 and x.stride(0) >= 3 * x.shape[-1]
    return norm(x, weight, epsilon, 16 if third else 64)


def _cancelling(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rows whose exact sum is zero take a path of their own when there are few."""
    exact = x.double().sum(-1).reshape(-1) == 0
    return mixed(x, weight, epsilon, exact & (rows_of(x) < 16))


def _small_epsilon(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if epsilon < 2e-6 and rows_of(x) < 16 else 64)


def _mixed_residual(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + x_residual.float()
    other = x.dtype != x_residual.dtype and rows_of(x) < 64
    return norm(total, weight, epsilon, 16 if other else 64).to(x.dtype), total.to(x.dtype)


MUTANTS = [
    Mutant("beyond_40000_rows", _beyond_40000_rows, "another block above 40,000 rows", ("rows",), drawn=True),
    Mutant(
        "some_widths", _some_widths, "another block below 40 rows, for some widths", ("rows",), drawn=True
    ),
    Mutant("rank_four", _rank_four, "another block for four dimensions", ("memory",), drawn=True),
    Mutant(
        "one_storage",
        _one_storage,
        "another block where x and weight share a storage",
        ("memory",),
        drawn=True,
    ),
    Mutant("far_offset", _far_offset, "another block far into a storage", ("memory",), drawn=True),
    Mutant(
        "third_rows", _third_rows, "another block for every third row of a buffer", ("memory",), drawn=True
    ),
    Mutant("cancelling", _cancelling, "another block for few rows whose sum is zero", ("rows",), drawn=True),
    Mutant(
        "small_epsilon",
        _small_epsilon,
        "another block for few rows and a small epsilon",
        ("rows",),
        drawn=True,
    ),
    Mutant(
        "mixed_residual",
        _mixed_residual,
        "another block below 64 rows whose residual has another dtype",
        ("rows",),
        op=ADD_NORM,
        drawn=True,
    ),
]
