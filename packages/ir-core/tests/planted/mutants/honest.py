# SPDX-License-Identifier: Apache-2.0
"""Honest implementations: unusual, slow or careful, and batch-invariant."""

import weakref

import torch
from torch import Tensor

from ir_core.ops.canonical import canonical_rstd
from mutants import ADD_NORM, SCALED, Mutant, blocked_sum, finish, norm


def _canonical(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    return (x32 * canonical_rstd(x32, x.shape[-1], epsilon) * weight.to(torch.float32)).to(x.dtype)


_weights: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}


def _keeps_weights(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """A derived weight, kept while it is the same tensor with the same contents."""
    kept = _weights.get(id(weight))
    if weight.is_inference():  # has no version
        return norm(x, weight, epsilon)
    if kept is None or kept[0]() is not weight or kept[1] != weight._version:
        kept = _weights[id(weight)] = (weakref.ref(weight), weight._version, weight.clone())
    return norm(x, kept[2], epsilon)


def _both_forms(x: Tensor, weight: Tensor, epsilon: float, form: str = "plain") -> Tensor:
    made = norm(x.to(torch.float32), weight, epsilon)
    return (made if form == "plain" else made * 0.5).to(x.dtype)


def _row_by_row(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] > 512:  # so that a test does not take minutes
        return norm(x, weight, epsilon)
    return torch.stack([norm(row, weight, epsilon) for row in rows.unbind()]).reshape(x.shape)


def _order_by_columns(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 256 if x.shape[-1] > 1000 else 32)


def _order_by_dtype(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 64 if x.dtype == torch.float32 else 128)


def _copies_what_is_odd(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x.contiguous(), weight.contiguous(), epsilon)


def _add_in_place(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.to(torch.float32) + x_residual.to(torch.float32)
    made = finish(total, blocked_sum(total * total, 64), weight, epsilon, x.dtype)
    return x.copy_(made), x_residual.copy_(total.to(x.dtype))


MUTANTS = [
    Mutant("canonical", _canonical, "the order 'tree', and says so", order="tree"),
    Mutant("keeps_weights", _keeps_weights, "keeps a derived weight by identity and version"),
    Mutant("both_forms", _both_forms, "both values of an option", op=SCALED),
    Mutant("row_by_row", _row_by_row, "a loop over rows, slow"),
    Mutant("order_by_columns", _order_by_columns, "another order by the number of columns, which is static"),
    Mutant("order_by_dtype", _order_by_dtype, "another order by dtype, which is static"),
    Mutant("copies_what_is_odd", _copies_what_is_odd, "copies what is not contiguous"),
    Mutant("add_in_place", _add_in_place, "in place, after everything was read", op=ADD_NORM, inplace=True),
]
