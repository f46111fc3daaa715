# SPDX-License-Identifier: Apache-2.0
"""How linear in the order ``chain16x8`` is launched: by rows, N and K, which change no bit within an order.

Not tuned on a GPU yet: tiles were chosen so that registers hold the accumulators of the tree without spilling
(``tests/test_linear_split.py`` compiles them). ``benchmarks/linear_x8.py`` measures them beside ``chain16``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ir_kernels_triton.kernel_spec import ITEMSIZE, KernelSpec

SPLIT_ROWS: Final = 64
"""Up to this many rows each chunk has programs of its own."""
FOLD: Final = 1024
"""Outputs of a program of ``split_fold``."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A launch of ``split_tile`` or ``split_bulk``."""

    BM: int
    BN: int
    BK: int
    stages: int
    warps: int

    def programs(self, rows: int, n: int) -> int:
        """Tiles of the outputs."""
        return -(-rows // self.BM) * -(-n // self.BN)


BULK: Final = Tile(128, 64, 64, 4, 8)
"""Four accumulators of 128 x 64 are 128 registers of each of 256 threads; 128 x 128 spills."""


BULKS: Final = (
    BULK,
    Tile(64, 128, 64, 4, 8),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 64, 64, 6, 4),
    Tile(128, 64, 64, 6, 8),
)
SPLITS: Final = (
    Tile(16, 32, 128, 4, 2),
    Tile(16, 64, 128, 4, 4),
    Tile(16, 32, 64, 5, 2),
    Tile(64, 64, 64, 4, 4),
)
"""Tiles that ``benchmarks/linear_x8.py`` tries."""


def tile(rows: int, dtype: str, *, split: bool, interpret: bool) -> Tile:
    """The tile of a launch of ``split_tile``."""
    if interpret:
        return Tile(16, 16, 16, 1, 4)
    if dtype == "fp32":
        return Tile(16, 64, 32, 3, 4)
    if not split:
        return Tile(64, 64, 64, 3, 4)
    return Tile(16, 32, 128, 4, 2) if rows <= 16 else Tile(64, 64, 64, 4, 4)


def tile_spec(
    choice: Tile, dtype: str, out: str, each: int, *, aligned: bool, bias: bool, pdl: bool, interpret: bool
) -> KernelSpec:
    """The kernel of a launch of ``split_tile``; ``out`` is the dtype of what it stores."""
    integers = ("rows", "N", "K", "length")
    strides = ("x_row", "x_column", "w_row", "w_column", "y_part")
    constants: dict[str, Any] = {
        "BM": choice.BM,
        "BN": choice.BN,
        "BK": choice.BK,
        "STAGES": choice.stages,
        "EACH": each,
        "ALIGNED": aligned,
        "HAS_BIAS": bias,
        "PDL": pdl,
        "INTERPRET": interpret,
    }
    signature = [(name, f"*{dtype}") for name in ("x_ptr", "w_ptr", "b_ptr")] + [("y_ptr", f"*{out}")]
    signature += [(name, "i32") for name in integers] + [(name, "i64") for name in strides]
    return _spec("split_tile", signature, constants, choice.warps, fp_fusion=dtype == "fp32", pdl=pdl)


def fold_spec(dtype: str, out: str, chunks: int, *, bias: bool, pdl: bool, interpret: bool) -> KernelSpec:
    """The kernel of a launch of ``split_fold``."""
    constants = {"CHUNKS": chunks, "BLOCK": FOLD, "HAS_BIAS": bias, "PDL": pdl, "INTERPRET": interpret}
    signature = [
        ("p_ptr", "*fp32"),
        ("b_ptr", f"*{dtype}"),
        ("y_ptr", f"*{out}"),
        ("total", "i64"),
        ("N", "i32"),
    ]
    return _spec("split_fold", signature, constants, 4, pdl=pdl)


def bulk_spec(choice: Tile, dtype: str, out: str, chunks: int, *, bias: bool) -> KernelSpec:
    """The kernel of a launch of ``split_bulk``; nothing of rows, N and K is in it."""

    def blocks(kind: str, rows: int, columns: int) -> str:
        return f"tensordesc<{kind}[{rows}, {columns}]>"

    signature = [
        ("x", blocks(dtype, choice.BM, choice.BK)),
        ("w", blocks(dtype, choice.BN, choice.BK)),
        ("y", blocks(out, choice.BM, choice.BN)),
        ("b_ptr", f"*{dtype}"),
        *((name, "i32") for name in ("rows", "N", "steps")),
    ]
    constants = {
        "CHUNKS": chunks,
        "BM": choice.BM,
        "BN": choice.BN,
        "BK": choice.BK,
        "GROUP": 8,
        "HAS_BIAS": bias,
    }
    return _spec("split_bulk", signature, constants, choice.warps, pdl=True, stages=choice.stages)


def _spec(
    kernel: str,
    signature: list[tuple[str, str]],
    constants: dict[str, Any],
    warps: int,
    *,
    fp_fusion: bool = False,
    pdl: bool = False,
    stages: int | None = None,
) -> KernelSpec:
    assert all(kind.strip("*") in ITEMSIZE for _, kind in signature if kind.startswith("*"))
    return KernelSpec(
        module="ir_kernels_triton.linear_split_kernel",
        kernel=kernel,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        num_warps=warps,
        num_stages=stages,
        fp_fusion=fp_fusion,
        pdl=pdl,
    )
