# SPDX-License-Identifier: Apache-2.0
"""How each kernel is launched: a function of row length, dtypes and flags, never of the number of rows.

Every number here has its reason beside it: a compile-time one (what ptxas reports), or what was measured on an H200.
``benchmarks/tune_norms.py`` measures the alternatives on a device. Bits do not depend on any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from ir_core import env
from ir_core.ops.canonical import canonical_layout

ITEMSIZE: Final = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Element types of the kernels, by Triton's names, and their bytes."""

TRITON_NAMES: Final = {"torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float32": "fp32"}
"""The same by torch's names."""

ACCESS_BYTES: Final = 16
"""The widest global access of a thread on sm_80 to sm_90."""

TILE_ELEMENTS: Final = 4096
"""Elements of a program's tile at least: 32 a thread of 4 warps, four 16-byte loads of a 16-bit dtype in flight. With
60 to 64 registers a thread that leaves 32 warps on an SM and 64 KiB in flight there; about 25 KiB hide the latency
of HBM3 (4.8 TB/s, 700 ns, 132 SMs)."""

SHORT_ROW: Final = 1024
"""Up to this length a warp holds whole rows."""

SHORT_TILE_ROW: Final = 2048
"""Up to this length ..."""

SHORT_TILE_ELEMENTS: Final = 2048
"""... half of a tile's elements are enough: on an H200 q/k norm of 648720x128 takes 79.5 us instead of 81.4 (a copy:
80.2), rms_norm 65536x1024 64.9 instead of 65.7, 64x2048 1.13 instead of 1.25, 32768x2048 64.2 instead of 65.1, fused
65536x1024 130.1 instead of 132.0, 64x2048 1.35 instead of 1.57. (rms_norm 1024x2048 loses 6%.)"""

GELU_SHORT_ROW: Final = 512
"""``SHORT_TILE_ROW`` for gelu_and_mul_sparse, where longer gates were not measured."""

ROWS_LIMIT: Final = 128
"""Rows of a tile at most: each has its 64-bit offsets, and 32 rows a thread (N = 1) would spill."""

MIN_WARPS: Final = 4
"""Warps of a program, unless its rows have fewer: two of 1024 have two. (An SM holds 32 programs at most.)"""

TILE_LIMIT: Final = 16384
"""Longest row held in registers: 32 elements a thread of 16 warps. At 64 a thread float32 rows and weights spill."""

TIGHT_ABOVE: Final = 8192
"""Above this length two tiles share an SM only with ..."""

REGISTERS: Final = 64
"""... this many registers a thread, where ptxas takes 72 to 74 when free; and the weight is read after the reduction,
or that spills 8 bytes on sm_100. (4096 fits 64 by itself on sm_90, and would spill on sm_100.) float32 rows or
weights, rows without 16-byte accesses and rows with two strides spill at 64 and are left free."""

GELU_BYTES: Final = 32768
"""Largest gate held in registers, with its up half. float32 gates of 16384 (64 elements a thread) spill on sm_80."""

COPY_MISALIGNED_FROM: Final = TILE_LIMIT
"""Longer rows without the promise of alignment are copied first: their element-wise loads would spill."""

PDL: Final = True
"""Programmatic dependent launch, from SM 9.0 on: the next kernel is set up while this one runs, and each kernel waits
before its first access. On an H200 1x4096 takes 1.07 us instead of 1.92, 2048x4096 9.2 instead of 10.5, and nothing is
lost on large shapes. Part of that (0.2 at few rows) is touching the rows before the wait (``rms_kernel.py``), by the
first programs only: all programs of a launch asking for the same weight took 15 us for 2048x4096. A kernel behind ours
that is launched so must wait too before it reads what the kernel ahead of ours wrote."""

START_SHORT: Final = (132, 528)
"""Where a program of at most ``SHORT_TILE_ELEMENTS`` starts the next kernel: at once in a launch of at most so many
programs, behind the wait in one of at most so many, else after its reads.

At once lets several kernels be set up ahead, whose programs then share the processors evenly only where 132 is about a
multiple of their number. After its reads suits a launch that fills the GPU more than once. On an H200 192x1024 takes
1.16 us at once and 1.35 behind the wait, 384x1024 2.0 and 1.6, 1024x1024 2.2 behind the wait and 2.5 after its reads,
4096x1024 5.6 and 5.4."""

START: Final = (32, 396)
"""The same for larger programs. On an H200 32x4096 takes 1.23 us at once and 1.35 behind the wait, 64x4096 1.57 and
1.43, 264x4096 2.2 behind the wait and 2.5 after its reads, 600x8192 6.6 and 5.9, fused 512x4096 6.1 and 5.3."""

START_LONG: Final = (0, 396)
"""The same for rows of which a program reads ``LONG_ROW`` elements or more: fused 8x7168 takes 1.75 us at once and 1.68
behind the wait, 16x16384 2.05 and 2.02; but rms_norm 16x8192 1.45 and 1.51."""

LONG_ROW: Final = 16384
"""Padded elements, those of the residual counted too."""

ALWAYS: Final = (1 << 31) - 1
"""A launch has no more programs than this, and the compiler knows it: it leaves the question out."""

NEVER_LATER: Final = {1024, 16384}
"""Padded lengths of a fused add that starts the next kernel behind the wait in launches of any size, never later: to
ask for the size once more after the reads would spill 8 bytes, on sm_100 or on sm_120. On an H200 fused 16384x1024
takes 33.5 us either way, 600x16384 20.4 instead of 20.7."""

TOUCH_WHOLE: Final = 4096
"""Padded length from which a program's one row is touched by one bulk prefetch instead of one a line, unless the next
kernel is started at once. On an H200 fused add of 7168: 64 rows 2.11 us instead of 2.36, 264 rows 4.8 instead
of 5.4; rms_norm of 4096: 132 rows 1.69 instead of 1.80, 264 rows 2.17 instead of 2.31."""

UNPINNED: Final = 8192
"""Where each program has one row, its address is pinned before the wait (``pinned`` in ``tree.py``), but not for an
rms_norm of this padded length. On an H200 1x4096 takes 1.07 us instead of 1.11, 264x4096 2.14 instead of 2.22, fused
8x7168 1.68 instead of 1.70; but 264x8192 3.39 instead of 3.21, 1024x8192 9.4 instead of 9.0 (1x8192 1.43 instead of
1.44). Two rows a program would lose up to 4%."""

KEEP_FROM: Final = 8192
"""Padded length from which the rows that a fused add reads leave the L2 cache last (``evict_last``), so that it makes
room by writing out results. On an H200 65536x8192 takes 1001 us instead of 1050, 16384x7168 219 instead of 229: as long
as a copy of as many bytes. What nearly fits the cache loses: 1024x7168 15.0 instead of 14.7. Rows of 4096 would gain
from 8192 of them on (64.0 instead of 64.5; 16384 rows 126 instead of 131), and lose below: 1024 rows 9.7 instead of
9.1. To ask for the size of the launch would take 12 registers. rms_norm is as fast as a copy without it."""

HELD_BLOCKS: Final = 3
"""Blocks of a long 16-bit row, 16384 elements each, that stay in registers at most, as they were read
(``rms_hold_kernel.py``), with ..."""

HOLD_REGISTERS: Final = 128
"""... this many registers a thread: one program of 16 warps is all that an SM holds then. A fourth block spills on
sm_100, and so does a second one of a fused add. Two blocks of rms_norm are better served by one held block and 64
registers, two programs an SM. On an H200 1024x65536 takes 72 us instead of 89, 2048x32768 65 instead of 73, fused add
1024x65536 156 instead of 198; a copy 65.5, 65 and 129."""


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One kernel to compile: everything that reaches the compiler, and nothing of a call besides."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    """Runtime arguments in order, with Triton's types; pointers and integers carry no specialisation."""
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    rows: int
    """Rows of a program."""
    maxnreg: int | None = None
    fp_fusion: bool = False
    pdl: bool = False

    def options(self) -> dict[str, Any]:
        """Compiler options."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "enable_fp_fusion": self.fp_fusion}
        if self.maxnreg is not None:
            options["maxnreg"] = self.maxnreg
        if self.pdl:
            options["launch_pdl"] = True
        return options


def vector(n: int, x: str) -> int:
    """Elements of an access: 16 bytes of ``x``'s dtype, or what still divides the row (so that no mask cuts it)."""
    return min(ACCESS_BYTES // ITEMSIZE[x], n & -n)


def alignment(n: int, x: str) -> int:
    """Bytes that the start of a row of ``x`` must be a multiple of, for the alignment promise."""
    return vector(n, x) * ITEMSIZE[x]


def weight_alignment(n: int, x: str, w: str) -> int:
    """The same for the weight, whose elements may be wider or narrower than ``x``'s."""
    return min(ACCESS_BYTES, vector(n, x) * ITEMSIZE[w])


def _tile(n: int, x: str) -> dict[str, int]:
    """The canonical layout of ``n`` elements as a tile: see ``tree.py``."""
    layout = canonical_layout(n)
    halves = 2 if layout.vector * ITEMSIZE[x] > ACCESS_BYTES else 1
    q = layout.vector // halves
    return {
        "B": layout.blocks,
        "C": layout.chunks,
        "W": layout.warps,
        "T": layout.warps * layout.lanes * q,
        "H": halves,
        "Q": q,
    }


def _rows(padded: int, short: int = SHORT_TILE_ROW) -> int:
    """Rows of a tile of rows of ``padded`` elements."""
    elements = SHORT_TILE_ELEMENTS if padded <= short else TILE_ELEMENTS
    return min(max(elements // padded, 1), ROWS_LIMIT)


def _starts(tile: int, padded: int, residual: bool) -> dict[str, int]:
    """Where a program of ``tile`` elements, in rows of ``padded``, starts the next kernel."""
    long = padded * (2 if residual else 1) >= LONG_ROW
    early, later = START_SHORT if tile <= SHORT_TILE_ELEMENTS else START_LONG if long else START
    if residual and padded in NEVER_LATER:
        later = ALWAYS
    return {"EARLY": early, "LATER": later}


_POINTERS = ("x_ptr", "residual_ptr", "w_ptr", "y_ptr", "sum_ptr")
_PAIR_POINTERS = ("x_ptr", "w_ptr", "y_ptr", "x2_ptr", "w2_ptr", "y2_ptr")
_STRIDES = ("x_outer", "x_inner", "r_outer", "r_inner", "y_outer", "y_inner", "s_outer", "s_inner")


def rms_spec(
    d: int,
    n: int,
    x: str,
    w: str | None,
    *,
    aligned: bool,
    inner: bool,
    residual: bool,
    canonical: bool,
    pdl: bool = False,
    interpret: bool | None = None,
) -> KernelSpec:
    """The kernel of rms_norm (``residual``: fused_add_rms_norm) for rows of ``d`` elements, ``n`` of them reduced.

    ``x`` and ``w`` are dtypes by Triton's names, ``w`` is None without a weight; ``aligned``: every tensor keeps the
    promise of alignment (outputs always do); ``inner``: rows have two strides; ``pdl``: dependent launch, where the
    device has it; ``interpret``: Triton's interpreter runs it (by default what TRITON_INTERPRET says).
    """
    if interpret is None:
        interpret = env.interpreted()
    weight = w or x
    tile = _tile(n, x)
    constants: dict[str, Any] = {"N": n}
    registers: int | None = None
    wide = alignment(d, x) == ACCESS_BYTES
    if n == d <= TILE_LIMIT:
        kernel = "rms_tile"
        padded = tile["C"] * tile["T"] * tile["H"]
        rows = _rows(padded)
        warps = max(min(MIN_WARPS, rows * tile["W"]), tile["W"])
        constants |= {k: tile[k] for k in "CWTHQ"} | {
            "R": rows,
            "LATE": padded > TIGHT_ABOVE,
            **_starts(rows * padded, padded, residual),
            "WHOLE": pdl and aligned and not inner and wide and rows == 1 and padded >= TOUCH_WHOLE,
            "PIN": pdl and not inner and rows == 1 and (residual or padded != UNPINNED),
            "KEEP": residual and padded >= KEEP_FROM,
        }
        if d > TIGHT_ABOVE and aligned and not inner and wide and ITEMSIZE[x] == ITEMSIZE[weight] == 2:
            registers = REGISTERS
    elif n == d and aligned and wide and ITEMSIZE[x] == 2:
        kernel, rows, warps = "rms_hold", 1, tile["W"]
        held = 1 if residual else min(tile["B"], HELD_BLOCKS)
        registers = HOLD_REGISTERS
        if tile["B"] == 2 and not residual and canonical and ITEMSIZE[weight] == 2:
            held, registers = 1, REGISTERS
        constants |= {k: tile[k] for k in "BCWTHQ"} | {"K": held}
    else:
        kernel, rows = "rms_two_pass", 1
        product = _tile(d, x)
        if d > TILE_LIMIT and (residual or ITEMSIZE[weight] > ITEMSIZE[x]):
            # Halves of a block: the product needs more registers than the sum, and would spill (8 bytes on sm_120);
            # quarters without 16-byte accesses (8 bytes on sm_80).
            product["C"] //= 2 if wide else 4
            product["B"] = -(-d // (product["C"] * product["T"] * product["H"]))
        warps = max(MIN_WARPS, product["W"])
        constants |= tile | {"D": d} | {f"D{k}": product[k] for k in "BCTHQ"}
    if kernel != "rms_hold":
        constants["ALIGNED"] = aligned
    constants |= {
        "VEC": vector(d, x),
        "X_BYTES": alignment(d, x),
        "W_BYTES": weight_alignment(d, x, weight),
        "INNER": inner,
        "HAS_RESIDUAL": residual,
        "HAS_WEIGHT": w is not None,
        "CANONICAL": canonical,
        "PDL": pdl,
        "INTERPRET": interpret,
    }
    return KernelSpec(
        module=f"ir_kernels_triton.{'rms_hold_kernel' if kernel == 'rms_hold' else 'rms_kernel'}",
        kernel=kernel,
        signature=(
            *((p, f"*{weight if p == 'w_ptr' else x}") for p in _POINTERS),
            ("rows", "i32"),
            ("inner", "i32"),
            *((s, "i64") for s in _STRIDES),
            ("epsilon", "fp32"),
        ),
        constants=tuple(constants.items()),
        num_warps=warps,
        rows=rows,
        maxnreg=registers,
        fp_fusion=not canonical,
        pdl=pdl,
    )


def pair_spec(
    d: int, x: str, w: str, *, canonical: bool, pdl: bool = False, interpret: bool | None = None
) -> KernelSpec:
    """The kernel of two rms_norms of aligned rows of ``d`` elements, at most ``SHORT_ROW``, with a weight each.

    The flags are those of :func:`rms_spec`.
    """
    one = rms_spec(
        d,
        d,
        x,
        w,
        aligned=True,
        inner=True,
        residual=False,
        canonical=canonical,
        pdl=pdl,
        interpret=interpret,
    )
    fixed = ("ALIGNED", "LATE", "INNER", "WHOLE", "PIN", "KEEP", "HAS_RESIDUAL", "HAS_WEIGHT")
    return replace(
        one,
        kernel="rms_pair",
        signature=(
            *((name, f"*{w if name in ('w_ptr', 'w2_ptr') else x}") for name in _PAIR_POINTERS),
            *((name, "i32") for name in ("rows", "rows2", "inner", "inner2")),
            *((name, "i64") for name in ("x_outer", "x_inner", "x2_outer", "x2_inner")),
            ("epsilon", "fp32"),
        ),
        constants=tuple((name, value) for name, value in one.constants if name not in fixed),
    )


def gelu_spec(
    d: int, x: str, *, inner: bool, tanh: bool, canonical: bool, interpret: bool | None = None
) -> KernelSpec:
    """The kernel of gelu_and_mul_sparse for gates of ``d`` elements; the flags as in :func:`rms_spec`. Rows keep the
    promise of alignment."""
    if interpret is None:
        interpret = env.interpreted()
    tile = _tile(d, x)
    whole = d * ITEMSIZE[x] <= GELU_BYTES
    rows = _rows(tile["C"] * tile["T"] * tile["H"], GELU_SHORT_ROW) if whole else 1
    blocks = {"R": rows} if whole else {"B": tile["B"]}
    constants = {"N": d, **blocks, **{k: tile[k] for k in "CWTHQ"}}
    constants |= {
        "VEC": vector(d, x),
        "BYTES": alignment(d, x),
        "INNER": inner,
        "TANH": tanh,
        "CANONICAL": canonical,
        "INTERPRET": interpret,
    }
    strides = ("x_outer", "x_inner", "y_outer", "y_inner")
    return KernelSpec(
        module="ir_kernels_triton.gelu_kernel",
        kernel="gelu_tile" if whole else "gelu_long",
        signature=(
            ("x_ptr", f"*{x}"),
            ("y_ptr", f"*{x}"),
            ("rows", "i32"),
            ("inner", "i32"),
            *((s, "i64") for s in strides),
            ("multiplier", "fp32"),
        ),
        constants=tuple(constants.items()),
        num_warps=max(MIN_WARPS, tile["W"]),
        rows=rows,
        fp_fusion=not canonical,
    )
