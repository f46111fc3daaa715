# SPDX-License-Identifier: Apache-2.0
"""The inputs of the model: which dimension of each tensor is the batch, and the same inputs for some rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ir_core.auditing.part import Part
from ir_core.auditing.placement import Ids, Rows
from ir_core.errors import AuditError


class Inputs:
    """What the model is called with.

    Args:
        given: a tensor, a tuple of positional arguments, or a mapping of keyword arguments; tensors may be nested.
        batch_dim: the dimension of the batch: of all tensors, or one for each tensor in order, ``None`` for a tensor
            that all rows share.

    Raises:
        AuditError: there is no tensor, or the tensors disagree about the number of rows.
    """

    def __init__(self, given: Any, batch_dim: int | Sequence[int | None] | None = 0) -> None:
        self._named = isinstance(given, Mapping)
        leaves, self._spec = pytree.tree_flatten(
            dict(given) if self._named else (given,) if isinstance(given, Tensor) else tuple(given)
        )
        self._leaves = leaves
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self.tensors:
            raise AuditError(
                "The inputs hold no tensor.",
                why=f"They are {type(given).__name__}.",
                fix="Give a tuple of the model's arguments, or a mapping of keyword arguments.",
            )
        dims = (
            list(batch_dim)
            if isinstance(batch_dim, Sequence)
            else [batch_dim if t.dim() else None for t in self.tensors]
        )
        if len(dims) != len(self.tensors):
            raise AuditError(
                f"batch_dim names {len(dims)} dimensions, and the inputs hold {len(self.tensors)} tensors.",
                fix="Give one dimension, or one for each tensor in order, None for one that all rows share.",
            )
        self.batch = self._rows(dims)
        self.dims = [None if d is None else d % t.dim() for d, t in zip(dims, self.tensors, strict=True)]

    def _rows(self, dims: list[int | None]) -> int:
        sizes: dict[int, list[str]] = {}
        for i, (dim, tensor) in enumerate(zip(dims, self.tensors, strict=True)):
            if dim is None:
                continue
            if not -tensor.dim() <= dim < tensor.dim():
                raise AuditError(
                    f"Tensor {i} of the inputs has no dimension {dim}.",
                    why=f"Its shape is {tuple(tensor.shape)}.",
                    fix="Say with batch_dim where its batch is.",
                )
            sizes.setdefault(tensor.shape[dim], []).append(f"tensor {i} {tuple(tensor.shape)}")
        if len(sizes) != 1:
            raise AuditError(
                "The inputs do not say how many rows there are.",
                why="; ".join(f"{n} rows: {', '.join(names)}" for n, names in sizes.items())
                or "No tensor has a batch.",
                fix="Say with batch_dim where each tensor's batch is, None for a tensor that all rows share.",
            )
        return next(iter(sizes))

    def rows(self) -> list[Rows | None]:
        """Where the rows are in each tensor."""
        ids = Ids(range(self.batch))
        return [None if dim is None else Rows(dim, ids) for dim in self.dims]

    def of(self, part: Part) -> tuple[list[Tensor], tuple[Any, ...], dict[str, Any]]:
        """The inputs for some rows: fresh copies (a model may overwrite them), as tensors and as arguments."""
        copies = []
        for tensor, rows in zip(self.tensors, self.rows(), strict=True):
            taken = (
                tensor
                if rows is None or part.rows == self.batch
                else rows.take(tensor, part.start, part.stop)
            )
            copies.append(
                torch.empty_like(taken, requires_grad=False).copy_(taken.detach())
                if taken.layout == torch.strided
                else taken.clone()
            )
        turn = iter(copies)
        leaves = [next(turn) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        built = pytree.tree_unflatten(leaves, self._spec)
        return (copies, (), built) if self._named else (copies, tuple(built), {})
