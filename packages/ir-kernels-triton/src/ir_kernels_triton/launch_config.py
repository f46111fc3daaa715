# SPDX-License-Identifier: Apache-2.0
"""How the norms are launched: a function of row length, dtypes and flags, never of the number of rows.

Every number here has its reason beside it: a compile-time one (what ptxas reports), or what was measured on an H200.
``benchmarks/tune_norms.py`` measures the alternatives on a device. Bits do not depend on any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from ir_kernels_triton.kernel_spec import (
    ACCESS_BYTES,
    ITEMSIZE,
    KernelSpec,
    alignment,
    vector,
    weight_alignment,
)
from ir_kernels_triton.tile import tile_of

TILE_ELEMENTS: Final = 4096
"""Elements of a program's tile at least: 32 a thread of 4 warps, four 16-byte loads of a 16-bit dtype in flight. With
60 to 64 registers a thread that leaves 32 warps on an SM and 64 KiB in flight there; about 25 KiB hide the latency of
HBM3 (4.8 TB/s, 700 ns, 132 SMs)."""

SHORT_ROW: Final = 1024
"""Elements of the longest row that one warp holds."""

SHORT_TILE_ROW: Final = 2048
"""Elements of the longest padded row whose tiles have ``SHORT_TILE_ELEMENTS``."""

SHORT_TILE_ELEMENTS: Final = 2048
"""Elements of a program's tile of short rows, half of ``TILE_ELEMENTS``: on an H200 q/k norm of 648720x128 takes 79.5
us instead of 81.4 (a copy: 80.2), rms_norm 65536x1024 64.9 instead of 65.7, 64x2048 1.13 instead of 1.25, 32768x2048
64.2 instead of 65.1, fused 65536x1024 130.1 instead of 132.0, 64x2048 1.35 instead of 1.57. (rms_norm 1024x2048 loses
6%.)"""

ROWS_LIMIT: Final = 128
"""Rows of a tile at most: each has its 64-bit offsets, and 32 rows a thread (N = 1) would spill."""

MIN_WARPS: Final = 4
"""Warps of a program at least, unless its rows have fewer: two rows of 1024 have two. (An SM holds 32 programs.)"""

TILE_LIMIT: Final = 16384
"""Elements of the longest row held in registers: 32 elements a thread of 16 warps. At 64 a thread float32 rows and
weights spill."""

TIGHT_ABOVE: Final = 8192
"""Elements of a row above which its tile is compiled for ``TIGHT_REGISTERS``, so that two tiles share an SM."""

TIGHT_REGISTERS: Final = 64
"""Registers of a thread then, where ptxas takes 72 to 74 when free. The weight is read after the reduction there, or
the tile spills 8 bytes on sm_100. (4096 elements fit 64 registers without a limit on sm_90, and would spill on
sm_100.) float32 rows or weights, rows without 16-byte accesses and rows with two strides spill at 64 and have no
limit."""

COPY_MISALIGNED_ABOVE: Final = TILE_LIMIT
"""Elements of a row. Longer rows without the promise of alignment are copied first: their element-wise loads would
spill."""

DEPENDENT_LAUNCH: Final = True
"""Programmatic dependent launch where the device has it, from SM 9.0 on: the next kernel is set up while this one
runs, and each kernel waits before its first access. On an H200 1x4096 takes 1.07 us instead of 1.92, 2048x4096 9.2
instead of 10.5, and nothing is lost on large shapes. Part of that (0.2 with few rows) is touching the rows before the
wait (``rms_kernel.py``), by the first programs only: all programs of a launch asking for the same weight took 15 us
for 2048x4096. A kernel behind ours that is launched so must wait too before it reads what the kernel ahead of ours
wrote."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a program starts the next kernel: at once, behind its wait for the kernel ahead, or after its reads."""

    at_once_programs: int
    """Programs of the largest launch that does so at once."""
    behind_wait_programs: int
    """Programs of the largest launch that does so behind the wait; a larger one does after its reads."""

    def constants(self) -> dict[str, int]:
        """As the kernels take it."""
        return {"EARLY": self.at_once_programs, "LATER": self.behind_wait_programs}


START_SHORT: Final = Start(at_once_programs=132, behind_wait_programs=528)
"""For programs of at most ``SHORT_TILE_ELEMENTS``.

At once lets several kernels be set up ahead, whose programs then share the processors evenly only where 132 is about a
multiple of their number. After its reads suits a launch that fills the GPU more than once. On an H200 192x1024 takes
1.16 us at once and 1.35 behind the wait, 384x1024 2.0 and 1.6, 1024x1024 2.2 behind the wait and 2.5 after its reads,
4096x1024 5.6 and 5.4."""

START: Final = Start(at_once_programs=32, behind_wait_programs=396)
"""For larger programs. On an H200 32x4096 takes 1.23 us at once and 1.35 behind the wait, 64x4096 1.57 and 1.43,
264x4096 2.2 behind the wait and 2.5 after its reads, 600x8192 6.6 and 5.9, fused 512x4096 6.1 and 5.3."""

START_LONG: Final = Start(at_once_programs=0, behind_wait_programs=396)
"""For rows of which a program reads ``LONG_ROW`` elements or more: fused 8x7168 takes 1.75 us at once and 1.68 behind
the wait, 16x16384 2.05 and 2.02; but rms_norm 16x8192 1.45 and 1.51."""

LONG_ROW: Final = 16384
"""Padded elements of a row, those of its residual counted too, from which ``START_LONG`` holds."""

ALWAYS: Final = (1 << 31) - 1
"""Programs of the largest launch there is. The compiler knows this limit, and leaves out a comparison with it."""

NEVER_LATER: Final = frozenset({1024, 16384})
"""Padded elements of the rows of a fused add that starts the next kernel behind the wait in launches of any size,
never later: to ask for the size once more after the reads would spill 8 bytes, on sm_100 or on sm_120. On an H200
fused 16384x1024 takes 33.5 us either way, 600x16384 20.4 instead of 20.7."""

TOUCH_WHOLE: Final = 4096
"""Padded elements from which a program's one row is touched by one bulk prefetch instead of one a line, unless the
next kernel is started at once. On an H200 fused add of 7168: 64 rows 2.11 us instead of 2.36, 264 rows 4.8 instead of
5.4; rms_norm of 4096: 132 rows 1.69 instead of 1.80, 264 rows 2.17 instead of 2.31."""

UNPINNED: Final = 8192
"""Padded elements. Where each program has one row, its address is pinned before the wait (``pinned`` in ``tree.py``),
but not for an rms_norm of this length. On an H200 1x4096 takes 1.07 us instead of 1.11, 264x4096 2.14 instead of 2.22,
fused 8x7168 1.68 instead of 1.70; but 264x8192 3.39 instead of 3.21, 1024x8192 9.4 instead of 9.0 (1x8192 1.43 instead
of 1.44). Two rows a program would lose up to 4%."""

KEEP_FROM: Final = 8192
"""Padded elements from which the rows that a fused add reads leave the L2 cache last (``evict_last``), so that it
makes room by writing out results. On an H200 65536x8192 takes 1001 us instead of 1050, 16384x7168 219 instead of 229:
as long as a copy of as many bytes. What nearly fits the cache loses: 1024x7168 15.0 instead of 14.7. Rows of 4096
would gain from 8192 of them on (64.0 instead of 64.5; 16384 rows 126 instead of 131), and lose below: 1024 rows 9.7
instead of 9.1. To ask for the size of the launch would take 12 registers. rms_norm is as fast as a copy without it."""

HELD_BLOCKS: Final = 3
"""Blocks of a long 16-bit row, 16384 elements each, that stay in registers at most, as they were read
(``rms_hold_kernel.py``)."""

HOLD_REGISTERS: Final = 128
"""Registers of a thread of that kernel: one program of 16 warps is all that an SM holds then. A fourth block spills on
sm_100, and so does a second one of a fused add. For rows of two blocks, rms_norm is faster with one held block and
``TIGHT_REGISTERS``, which lets two programs share an SM. On an H200 1024x65536 takes 72 us instead of 89, 2048x32768
65 instead of 73, fused add 1024x65536 156 instead of 198; a copy 65.5, 65 and 129."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How one norm kernel is compiled and launched."""

    kernel: str
    rows_per_program: int
    warps_per_program: int
    registers_per_thread: int | None
    """At most; None leaves it to the compiler."""
    constants: dict[str, Any]
    """Compile-time arguments that this kernel takes beside those of all norm kernels."""


def rows_of_tile(padded: int, short_row: int = SHORT_TILE_ROW) -> int:
    """Rows of a program's tile of rows of ``padded`` elements."""
    elements = SHORT_TILE_ELEMENTS if padded <= short_row else TILE_ELEMENTS
    return min(max(elements // padded, 1), ROWS_LIMIT)


def _start(tile_elements: int, padded: int, residual: bool) -> Start:
    """Where a program of ``tile_elements``, in rows of ``padded``, starts the next kernel."""
    long = padded * (2 if residual else 1) >= LONG_ROW
    start = START_SHORT if tile_elements <= SHORT_TILE_ELEMENTS else START_LONG if long else START
    return replace(start, behind_wait_programs=ALWAYS) if residual and padded in NEVER_LATER else start


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm's launch is chosen by; the arguments of :func:`rms_spec`."""

    d: int
    n: int
    x: str
    w: str
    """Dtype of the weight; that of ``x`` without one."""
    aligned: bool
    inner: bool
    residual: bool
    canonical: bool
    pdl: bool

    @property
    def wide(self) -> bool:
        """Whether accesses have 16 bytes."""
        return alignment(self.d, self.x) == ACCESS_BYTES

    def launch(self) -> LaunchConfig:
        """The kernel for these rows."""
        if self.n == self.d <= TILE_LIMIT:
            return self._whole_rows()
        if self.n == self.d and self.aligned and self.wide and ITEMSIZE[self.x] == 2:
            return self._held_rows()
        return self._two_passes()

    def _whole_rows(self) -> LaunchConfig:
        tile = tile_of(self.n, self.x)
        padded = tile.elements
        rows = rows_of_tile(padded)
        tight = self.d > TIGHT_ABOVE and self.aligned and not self.inner and self.wide
        touched_whole = self.pdl and self.aligned and not self.inner and self.wide and rows == 1
        return LaunchConfig(
            kernel="rms_tile",
            rows_per_program=rows,
            warps_per_program=max(min(MIN_WARPS, rows * tile.warps), tile.warps),
            registers_per_thread=(
                TIGHT_REGISTERS if tight and ITEMSIZE[self.x] == ITEMSIZE[self.w] == 2 else None
            ),
            constants={
                **tile.constants(),
                "ROWS": rows,
                "ALIGNED": self.aligned,
                "LATE": padded > TIGHT_ABOVE,
                **_start(rows * padded, padded, self.residual).constants(),
                "WHOLE": touched_whole and padded >= TOUCH_WHOLE,
                "PIN": self.pdl and not self.inner and rows == 1 and (self.residual or padded != UNPINNED),
                "KEEP": self.residual and padded >= KEEP_FROM,
            },
        )

    def _held_rows(self) -> LaunchConfig:
        tile = tile_of(self.n, self.x)
        held, registers = 1 if self.residual else min(tile.blocks, HELD_BLOCKS), HOLD_REGISTERS
        if tile.blocks == 2 and not self.residual and self.canonical and ITEMSIZE[self.w] == 2:
            held, registers = 1, TIGHT_REGISTERS
        return LaunchConfig(
            kernel="rms_hold",
            rows_per_program=1,
            warps_per_program=tile.warps,
            registers_per_thread=registers,
            constants={**tile.constants(), "BLOCKS": tile.blocks, "HELD": held},
        )

    def _two_passes(self) -> LaunchConfig:
        tile, out = tile_of(self.n, self.x), tile_of(self.d, self.x)
        if self.d > TILE_LIMIT and (self.residual or ITEMSIZE[self.w] > ITEMSIZE[self.x]):
            # Halves of a block: the product needs more registers than the sum, and would spill (8 bytes on sm_120);
            # quarters without 16-byte accesses (8 bytes on sm_80).
            out = out.cut(self.d, 2 if self.wide else 4)
        return LaunchConfig(
            kernel="rms_two_pass",
            rows_per_program=1,
            warps_per_program=max(MIN_WARPS, out.warps),
            registers_per_thread=None,
            constants={
                **tile.constants(),
                "BLOCKS": tile.blocks,
                "D": self.d,
                "OUT_BLOCKS": out.blocks,
                **{f"OUT_{name}": value for name, value in out.constants().items() if name != "WARPS"},
                "ALIGNED": self.aligned,
            },
        )


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
) -> KernelSpec:
    """The kernel of rms_norm (``residual``: fused_add_rms_norm) for rows of ``d`` elements, ``n`` of them reduced.

    ``x`` and ``w`` are dtypes by Triton's names, ``w`` is None without a weight; ``aligned``: every tensor keeps the
    promise of alignment (outputs always do); ``inner``: rows have two strides; ``pdl``: dependent launch, where the
    device has it.
    """
    weight = w or x
    norm = Norm(
        d=d, n=n, x=x, w=weight, aligned=aligned, inner=inner, residual=residual, canonical=canonical, pdl=pdl
    )
    launch = norm.launch()
    constants = {
        "N": n,
        **launch.constants,
        "VEC": vector(d, x),
        "X_BYTES": alignment(d, x),
        "W_BYTES": weight_alignment(d, x, weight),
        "INNER": inner,
        "HAS_RESIDUAL": residual,
        "HAS_WEIGHT": w is not None,
        "CANONICAL": canonical,
        "PDL": pdl,
        "INTERPRET": False,
    }
    return KernelSpec(
        module=f"ir_kernels_triton.{'rms_hold_kernel' if launch.kernel == 'rms_hold' else 'rms_kernel'}",
        kernel=launch.kernel,
        signature=(
            *((p, f"*{weight if p == 'w_ptr' else x}") for p in _POINTERS),
            ("rows", "i32"),
            ("inner", "i32"),
            *((s, "i64") for s in _STRIDES),
            ("epsilon", "fp32"),
        ),
        constants=tuple(constants.items()),
        num_warps=launch.warps_per_program,
        rows_per_program=launch.rows_per_program,
        maxnreg=launch.registers_per_thread,
        fp_fusion=not canonical,
        pdl=pdl,
    )


def pair_spec(d: int, x: str, w: str, *, canonical: bool, pdl: bool = False) -> KernelSpec:
    """The kernel of two rms_norms of aligned rows of ``d`` elements, at most ``SHORT_ROW``, with a weight each.

    The flags are those of :func:`rms_spec`.
    """
    one = rms_spec(d, d, x, w, aligned=True, inner=True, residual=False, canonical=canonical, pdl=pdl)
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
