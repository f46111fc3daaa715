# SPDX-License-Identifier: Apache-2.0
"""How softmax, log_softmax, logsumexp, sum, mean and layer_norm are launched: a function of the row's length, dtypes
and flags, never of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ir_kernels_triton.kernel_spec import KernelSpec, alignment, vector, weight_alignment
from ir_kernels_triton.launch_config import MIN_WARPS, TILE_LIMIT, rows_of_tile
from ir_kernels_triton.tile import tile_of

KINDS: Final = {"softmax": 0, "log_softmax": 1, "logsumexp": 2}
"""The values of ``KIND`` in the kernels."""

OUT_PARTS: Final = 2
"""Parts in which a block of a long row is written: the result needs more registers than the sums."""

_ROWS: Final = (
    ("rows", "i32"),
    ("inner", "i32"),
    *((name, "i64") for name in ("x_outer", "x_inner", "y_outer", "y_inner")),
)


def reduction_spec(op: str, n: int, x: str, *, inner: bool) -> KernelSpec:
    """The kernel of ``op`` for rows of ``n`` elements of dtype ``x``, by Triton's name; ``inner``: two strides."""
    if op in KINDS:
        return _spec("softmax", n, x, {"KIND": KINDS[op]}, inner, writes_rows=op != "logsumexp", extra=())
    return _spec("sum", n, x, {"MEAN": op == "mean"}, inner, writes_rows=False, extra=())


def layer_norm_spec(n: int, x: str, w: str | None, b: str | None, *, inner: bool) -> KernelSpec:
    """The kernel of layer_norm, with a weight of dtype ``w`` and a bias of dtype ``b``, or without."""
    flags = {
        "W_BYTES": weight_alignment(n, x, w or x),
        "B_BYTES": weight_alignment(n, x, b or x),
        "HAS_WEIGHT": w is not None,
        "HAS_BIAS": b is not None,
    }
    extra = (("w_ptr", f"*{w or x}"), ("b_ptr", f"*{b or x}"))
    return _spec("layer_norm", n, x, flags, inner, writes_rows=True, extra=extra)


def _spec(
    family: str,
    n: int,
    x: str,
    flags: Mapping[str, Any],
    inner: bool,
    *,
    writes_rows: bool,
    extra: tuple[tuple[str, str], ...],
) -> KernelSpec:
    tile = tile_of(n, x)
    whole = n <= TILE_LIMIT
    rows = rows_of_tile(tile.elements) if whole else 1
    constants: dict[str, Any] = {"N": n, **({"ROWS": rows} if whole else {"BLOCKS": tile.blocks})}
    constants |= tile.constants()
    if not whole and family != "sum":
        out = tile.cut(n, OUT_PARTS)
        constants |= {"OUT_BLOCKS": out.blocks, "OUT_CHUNKS": out.chunks}
    constants |= {"VEC": vector(n, x), "BYTES": alignment(n, x), **flags, "INNER": inner, "INTERPRET": False}
    return KernelSpec(
        module="ir_kernels_triton.reduction_kernel",
        kernel=f"{family}_{'tile' if whole else 'long'}",
        signature=(
            ("x_ptr", f"*{x}"),
            ("y_ptr", f"*{x}"),
            *extra,
            *_ROWS,
            *((("epsilon", "fp32"),) if family == "layer_norm" else ()),
        ),
        constants=tuple(constants.items()),
        num_warps=max(MIN_WARPS, tile.warps),
        rows_per_program=rows,
    )
