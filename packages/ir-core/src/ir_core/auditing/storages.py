# SPDX-License-Identifier: Apache-2.0
"""What is known of each storage that a run has seen: its ruler, and whether the run made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ir_core.auditing.placement import Rows, Ruler, read, ruler_of


@dataclass
class _Known:
    alive: StorageWeakRef
    ruler: Ruler | None
    made: bool
    # Whether its values speak of the batch as a whole: a maximum, a count, positions of rows.
    of_batch: bool = False
    # Views that no ruler can describe: one value expanded over the batch.
    views: dict[tuple[Any, ...], Rows] = field(default_factory=dict)


class Storages:
    """Rulers by storage. A storage that was freed is forgotten, so its address may be used again."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._purge_at = 4096

    def _find(self, tensor: Tensor) -> _Known | None:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known if known is not None and not known.alive.expired() else None

    def made_here(self, tensor: Tensor) -> bool:
        """Whether this storage was made by an operation of the run, or given to the model."""
        known = self._find(tensor)
        return known is not None and known.made

    def meet(self, tensor: Tensor, rows: Rows | None, *, made: bool) -> None:
        """Remember where the rows are in the storage behind ``tensor``, and whether the run has just made it."""
        storage = tensor.untyped_storage()
        ruler = ruler_of(tensor, rows) if rows is not None else None
        known = self._find(tensor)
        if known is None:
            known = self._known[storage._cdata] = _Known(StorageWeakRef(storage), ruler, made)
        else:
            known.ruler = ruler or known.ruler
        if rows is not None and ruler is None:
            known.views[_geometry(tensor)] = rows
        if len(self._known) > self._purge_at:
            self._known = {key: one for key, one in self._known.items() if not one.alive.expired()}
            self._purge_at = 4096 + 2 * len(self._known)

    def mark(self, tensor: Tensor) -> None:
        """Remember that these values speak of the batch as a whole."""
        known = self._find(tensor)
        if known is not None:
            known.of_batch = True

    def of_batch(self, tensor: Tensor) -> bool:
        """Whether these values speak of the batch as a whole."""
        known = self._find(tensor)
        return known is not None and known.of_batch

    def rows(self, tensor: Tensor) -> Rows | None:
        """Where the rows are in ``tensor``; ``None`` if it has none, or only one row's values."""
        known = self._find(tensor)
        if known is None or tensor.numel() == 0:
            return None
        if known.ruler is None:
            return known.views.get(_geometry(tensor))
        found = read(known.ruler, tensor)
        return found if isinstance(found, Rows) else None


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
