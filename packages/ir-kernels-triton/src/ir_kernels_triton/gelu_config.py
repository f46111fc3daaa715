# SPDX-License-Identifier: Apache-2.0
"""How gelu_and_mul_sparse is launched: a function of the gate's length, the dtype and flags, never of rows."""

from __future__ import annotations

from typing import Final

from ir_kernels_triton.kernel_spec import ITEMSIZE, KernelSpec, alignment, vector
from ir_kernels_triton.launch_config import MIN_WARPS, rows_of_tile
from ir_kernels_triton.tile import tile_of

SHORT_GATE: Final = 512
"""Elements of the longest padded gate whose tiles have ``SHORT_TILE_ELEMENTS``; longer gates were not measured."""

WHOLE_GATE_BYTES: Final = 32768
"""Largest gate held in registers, with its up half. float32 gates of 16384 (64 elements a thread) spill on sm_80."""


def gelu_spec(d: int, x: str, *, inner: bool, tanh: bool, canonical: bool) -> KernelSpec:
    """The kernel of gelu_and_mul_sparse for gates of ``d`` elements of dtype ``x``, by Triton's name.

    ``inner``: rows have two strides; ``tanh``: GELU's approximation; ``canonical``: in the canonical order. Rows keep
    the promise of alignment.
    """
    tile = tile_of(d, x)
    whole = d * ITEMSIZE[x] <= WHOLE_GATE_BYTES
    rows = rows_of_tile(tile.elements, SHORT_GATE) if whole else 1
    constants = {
        "N": d,
        **({"ROWS": rows} if whole else {"BLOCKS": tile.blocks}),
        **tile.constants(),
        "VEC": vector(d, x),
        "BYTES": alignment(d, x),
        "INNER": inner,
        "TANH": tanh,
        "CANONICAL": canonical,
        "INTERPRET": False,
    }
    return KernelSpec(
        module="ir_kernels_triton.gelu_kernel",
        kernel="gelu_tile" if whole else "gelu_long",
        signature=(
            ("x_ptr", f"*{x}"),
            ("y_ptr", f"*{x}"),
            ("rows", "i32"),
            ("inner", "i32"),
            *((name, "i64") for name in ("x_outer", "x_inner", "y_outer", "y_inner")),
            ("multiplier", "fp32"),
        ),
        constants=tuple(constants.items()),
        num_warps=max(MIN_WARPS, tile.warps),
        rows_per_program=rows,
        fp_fusion=not canonical,
    )
