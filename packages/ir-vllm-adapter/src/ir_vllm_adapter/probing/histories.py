# SPDX-License-Identifier: Apache-2.0
"""What an attention row depends on beside its query: the keys and values of its own sequence up to its position.

They lie in vLLM's paged cache. Its layout differs between backends, so the cache is not read: what each slot was given
is remembered when it is given, and the block table says which slots make a sequence. That needs no knowledge of
requests, and holds with chunks, with blocks of the prefix cache, and after a request has gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from torch import Tensor

from ir_vllm_adapter.probing import rows

Ints = np.ndarray[Any, np.dtype[np.int64]]
_BLOCKS: Final = (16, 32, 64, 128, 256, 8, 1)
"""Sizes of blocks that kernels of vLLM use, where the one of the cache does not fit the table."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """What vLLM told a backend of one pass, for one group of layers.

    Args:
        starts: where each request's rows start, [requests + 1].
        lengths: length of each request's sequence, its new rows included, [requests].
        blocks: the block table, [requests, blocks].
        slots: the slot of the cache of each row, [rows].
        block_size: slots of a block of the table; 0 if none fits the slots.
    """

    starts: Ints
    lengths: Ints
    blocks: Ints
    slots: Ints
    block_size: int

    @classmethod
    def of(cls, common: Any, block_size: int) -> Batch:
        """From vLLM's ``CommonAttentionMetadata``."""
        starts = common.query_start_loc_cpu.numpy().astype(np.int64)
        requests = int(common.num_reqs)
        total = int(starts[requests])
        batch = cls(
            starts[: requests + 1],
            _numpy(common.seq_lens)[:requests],
            _numpy(common.block_table_tensor)[:requests],
            _numpy(common.slot_mapping)[:total],
            0,
        )
        for size in dict.fromkeys((block_size, *_BLOCKS)):
            if size and batch.fits(size):
                return dataclasses.replace(batch, block_size=size)
        return batch

    @property
    def tokens(self) -> int:
        """Rows of the pass without padding."""
        return int(self.starts[-1])

    def sequence(self, request: int, block_size: int) -> Ints:
        """The slots of a request's positions, from its first on."""
        at = np.arange(self.lengths[request])
        index = np.minimum(at // block_size, self.blocks.shape[1] - 1)
        return np.asarray(self.blocks[request][index] * block_size + at % block_size, dtype=np.int64)

    def fits(self, block_size: int) -> bool:
        """Whether the table, read with this block size, gives the slots that the new rows really have."""
        for request, start, end in self.requests():
            if not np.array_equal(
                self.sequence(request, block_size)[-(end - start) :], self.slots[start:end]
            ):
                return False
        return True

    def requests(self) -> Iterator[tuple[int, int, int]]:
        """(request, first row, behind its last row), of requests with rows."""
        for request in range(len(self.lengths)):
            start, end = int(self.starts[request]), int(self.starts[request + 1])
            if end > start:
                yield request, start, end

    def positions(self) -> Ints:
        """The position of each row in its sequence."""
        found = np.zeros(self.tokens, dtype=np.int64)
        for request, start, end in self.requests():
            found[start:end] = np.arange(self.lengths[request] - (end - start), self.lengths[request])
        return found


def _seen(history: Ints, window: int | None) -> Ints:
    """For each position of a sequence, a digest of what it sees."""
    sums = rows.chained(history)
    if window is None or window >= len(sums):
        return sums
    before = np.concatenate([np.zeros(window, dtype=np.int64), sums[:-window]])
    with np.errstate(over="ignore"):
        return np.asarray(sums - before, dtype=np.int64)


def _numpy(tensor: Tensor) -> Ints:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.int64)


class Histories:
    """The sequences of a worker's attention layers.

    Args:
        runner: vLLM's model runner; the ``build`` of its metadata builders is watched until :meth:`close`.
    """

    def __init__(self, runner: Any) -> None:
        self.batches: dict[str, Batch] = {}
        self._given: dict[str, dict[int, int]] = {}
        self._ways_back: list[Callable[[], None]] = []
        for groups in getattr(runner, "attn_groups", ()):
            for group in groups:
                self._watch(group)

    def _watch(self, group: Any) -> None:
        builders = (
            group.metadata_builders if hasattr(group, "metadata_builders") else [group.get_metadata_builder()]
        )
        for builder in builders:
            self._watch_builder(builder, list(group.layer_names))

    def _watch_builder(self, builder: Any, layers: list[str]) -> None:
        size = int(getattr(getattr(builder, "kv_cache_spec", None), "block_size", 0) or 0)
        original = builder.build

        def build(*args: Any, **kwargs: Any) -> Any:
            common = kwargs.get("common_attn_metadata", args[1] if len(args) > 1 else None)
            if common is not None:
                batch = Batch.of(common, size)
                self.batches.update(dict.fromkeys(layers, batch))
            return original(*args, **kwargs)

        builder.build = build
        self._ways_back.append(lambda: delattr(builder, "build"))

        if (update := getattr(builder, "update_block_table", None)) is not None:

            def update_block_table(metadata: Any, blocks: Tensor, slots: Tensor) -> Any:
                if (like := next(iter(self.batches.values()), None)) is not None:
                    batch = dataclasses.replace(
                        like,
                        blocks=_numpy(blocks)[: len(like.lengths)],
                        slots=_numpy(slots)[: like.tokens],
                        block_size=0,
                    )
                    fitting = next((s for s in dict.fromkeys((size, *_BLOCKS)) if s and batch.fits(s)), 0)
                    self.batches.update(dict.fromkeys(layers, dataclasses.replace(batch, block_size=fitting)))
                return update(metadata, blocks, slots)

            builder.update_block_table = update_block_table
            self._ways_back.append(lambda: delattr(builder, "update_block_table"))

    def keys(
        self, layer: str, given: list[Tensor], *, shares: str | None = None, window: int | None = None
    ) -> tuple[Ints, str]:
        """For each row of an attention call, an integer of its query and its history.

        Args:
            layer: the layer's name, as vLLM's metadata has it.
            given: query, key, value; fewer where it shares.
            shares: the layer whose keys and values it reads instead of its own.
            window: how many positions it sees, its own included; ``None``: all. vLLM gives blocks away that lie before.

        Returns:
            The integers, and why the rows cannot be told ("" if they can).
        """
        batch = self.batches.get(layer)
        if batch is None:
            return np.zeros(
                0, dtype=np.int64
            ), "its backend builds its metadata in a way that is not known here"
        if not batch.block_size:
            return np.zeros(0, dtype=np.int64), "its block table and its slots do not fit together"
        total = batch.tokens
        found = rows.digests(given[0])[:total]
        table = self._given.setdefault(shares or layer, {})
        if len(given) > 1 and shares is None:
            said = rows.digests(given[1])[:total]
            for more in given[2:]:
                said = rows.mix(said, rows.digests(more)[:total])
            table.update(zip(batch.slots.tolist(), said.tolist(), strict=True))
        for request, start, end in batch.requests():
            slots = batch.sequence(request, batch.block_size)
            history = np.array([table.get(slot, 0) for slot in slots.tolist()], dtype=np.int64)
            found[start:end] = rows.mix(found[start:end], _seen(history, window)[-(end - start) :])
        return rows.mix(found, batch.positions()), ""

    def close(self) -> None:
        """Give the builders back as they were."""
        while self._ways_back:
            self._ways_back.pop()()
