# SPDX-License-Identifier: Apache-2.0
"""The canonical layout of a row as a tile of accesses: see ``tree.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ir_core.ops.canonical import canonical_layout
from ir_kernels_triton.kernel_spec import ACCESS_BYTES, ITEMSIZE


@dataclass(frozen=True, slots=True)
class Tile:
    """How the elements of a row lie over the threads that hold it."""

    blocks: int
    """Tiles of a row, one after the other."""
    chunks: int
    """Vectors of a thread in one tile."""
    warps: int
    """Warps that hold one row."""
    span: int
    """Elements that one access of all the threads of a row covers."""
    halves: int
    """Accesses to one vector of the canonical layout."""
    piece: int
    """Elements of one access of a thread."""

    @property
    def elements(self) -> int:
        """Elements of a tile's row."""
        return self.halves * self.chunks * self.span

    def constants(self) -> dict[str, int]:
        """As the kernels take it; those that take the number of blocks get it besides."""
        return {
            "CHUNKS": self.chunks,
            "WARPS": self.warps,
            "SPAN": self.span,
            "HALVES": self.halves,
            "PIECE": self.piece,
        }

    def cut(self, n: int, parts: int) -> Tile:
        """The tile of a row of ``n`` elements with a ``parts``-th of the chunks, and more blocks for it."""
        smaller = replace(self, chunks=self.chunks // parts)
        return replace(smaller, blocks=-(-n // smaller.elements))


def tile_of(n: int, x: str) -> Tile:
    """The tile of a row of ``n`` elements of dtype ``x``, by Triton's name."""
    layout = canonical_layout(n)
    halves = 2 if layout.vector * ITEMSIZE[x] > ACCESS_BYTES else 1
    piece = layout.vector // halves
    return Tile(
        blocks=layout.blocks,
        chunks=layout.chunks,
        warps=layout.warps,
        span=layout.warps * layout.lanes * piece,
        halves=halves,
        piece=piece,
    )
