# SPDX-License-Identifier: Apache-2.0
"""How linear is launched: which kernel and which tile, by rows, N and K.

Rows may decide here, as they may not for the norms: all these kernels have one order (``chain16``), so no choice below
can change a bit. Microseconds were measured in bf16, by CUDA graphs, with weights rotating through more than the L2
cache: up to 32 rows on an H200, from 33 rows on on an H100 (``benchmarks/NOTES-linear.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ir_kernels_triton.kernel_spec import ITEMSIZE, KernelSpec

PROCESSORS: Final = 132
"""Programs that run at once, one a processor (H100, H200)."""
SHARED_BYTES: Final = 226 << 10
"""Shared memory of a program at most (227 KiB, and some for the compiler)."""
STREAM_ROWS: Final = 64
"""Up to this many rows the weights may stream once, whatever N and K are."""
TILE_ROWS: Final = 33
"""From so many rows on tiles are quicker, where they are enough to fill the processors (N above ``STREAM_N``): 64
rows of 4096x1024 take 5.24 us by tiles, by stream 6.11; of 6144x4096 21.0 and 21.1; of 24576x4096 73.1 and 74.2."""
STREAM_N: Final = 2048
"""64 rows of 1024x2048 take 4.48 us by stream, by tiles 5.19; of 1024x3072 5.92 and 6.70."""
TILES_N: Final = 32768
"""Above this N (lm_head) up to 64 rows stream, as they always did: tiles were not measured there."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A launch of ``linear_stream``: see there for the fields."""

    R: int
    BT: int
    BK: int
    STAGES: int
    WHOLE: bool
    TOUCH: bool
    START: int
    WARPS: int = 4

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        behind = max(16 * self.WARPS // self.R - 1, 0) * self.R * 128
        return self.STAGES * (self.BK // 64) * (self.R + self.BT) * 128 + behind

    def programs(self, rows: int, n: int) -> int:
        """Programs of a launch."""
        return -(-n // self.R) * -(-rows // self.BT)


@dataclass(frozen=True, slots=True)
class Bulk:
    """A launch of ``linear_bulk``: see there for the fields."""

    BM: int
    BN: int
    BK: int
    stages: int
    warps: int
    FLATTEN: bool
    HALVES: bool
    GROUP: int = 8
    MORE: int = 0
    SWAP: bool = False
    each: int = 1
    """Programs of a processor at once."""

    def tiles(self, rows: int, n: int) -> int:
        """Tiles of all outputs."""
        return -(-rows // self.BM) * -(-n // (self.BN + self.MORE))

    def programs(self, rows: int, n: int) -> int:
        """Programs of a launch."""
        return min(self.tiles(rows, n), self.each * PROCESSORS)

    @property
    def shared(self) -> int:
        """Bytes of shared memory, but for some of the compiler's."""
        width = max(self.BN // 2 if self.HALVES else self.BN, self.MORE)
        return 2 * (self.stages * (self.BM + self.BN + self.MORE) * self.BK + self.BM * width)


def stream(rows: int, n: int, k: int) -> Stream:
    """The launch of ``linear_stream`` for up to ``STREAM_ROWS`` rows.

    Few weight rows a program, so that all processors read: 1024x2048 at 8 rows takes 2.99 us with 16, 3.16 with 32 and
    over 4 with 64; 4096x1024 3.38 with 32, 3.57 with 16; 24576x4096 46.7 with 32 or 64. All of K in flight where it
    fits (1024x2048 at 8 rows 2.99 us, by stages 3.4). Weights are touched before the wait while a launch is one wave,
    more or less (four layers of Qwen3-0.6B at 8 rows: 15.6 us, untouched 17.1); beyond, touching all of them at once
    takes half as long again (24576x4096: 70 us).
    """
    bt = max(8, 1 << (min(rows, STREAM_ROWS) - 1).bit_length())
    touch = n * k <= 1 << 26
    if n <= 2048:
        bt = min(bt, 32)  # more programs: 64 rows of 1024x3072 take 7.5 us, in one tile of rows 7.8
        order = [(16, 256, k // 256, True)] if k % 256 == 0 and 1 <= k // 256 <= 12 else []
        if rows >= TILE_ROWS:
            order = []  # 64 rows of 1024x2048 take 4.48 us by stages, with all of K in flight 4.90
        order += [(32, 256, 6, False), (16, 256, 5, False), (32, 128, 8, False)]
    elif n <= 4096 or (n <= 16384 and k <= 1024):
        order = [(32, 256, k // 256, True)] if k % 256 == 0 and 1 <= k // 256 <= 4 else []
        order += [(32, 256, 6, False), (32, 128, 8, False)]
        if n > 4096 and bt > 16:
            order = [(64, 128, 6, False)]
    elif n <= 16384 and bt <= 8:
        order = [(16, 256, 5, False), (64, 128, 6, False)]
    elif bt <= 8:
        order = [(32, 128, 6, False), (64, 128, 6, False)]
    else:
        order = [(64, 128, 8, False), (64, 128, 6, False)]
    order += [(16, 128, 6, False), (16, 128, 4, False), (16, 64, 4, False), (16, 64, 3, False)]
    for r, bk, stages, whole in order:
        found = Stream(r, bt, bk, stages, whole, touch, 1)
        if (whole or (stages - 2) * bk <= max(k, 64)) and found.shared <= SHARED_BYTES:
            return found
    raise AssertionError("unreachable: the last tile is small enough")


BULK: Final = (
    (Bulk(128, 256, 64, 3, 8, True, True, 16), 1.0),
    (Bulk(128, 128, 64, 5, 4, True, True), 0.816),
    (Bulk(128, 128, 64, 4, 4, False, True, 8, 64, True), 0.757),
    (Bulk(64, 128, 128, 4, 4, True, False), 0.568),
    (Bulk(64, 64, 128, 5, 4, True, False), 0.520),
    (Bulk(64, 32, 256, 4, 4, True, False), 0.376),
)
"""Tiles of ``linear_bulk``, each with its rate while all processors work, as a share of the first's.

Fitted to 54 shapes of 64 to 4096 rows on an H100, where the tile that this chooses takes 0.4% (geometric mean) longer
than the best of up to 15. Two were added for what they gained there: 128 tiles of 128 by 192 are one turn for 512
rows of 6144x4096 (37.8 us; 64 by 128 50.9) and of 6144x1024 (11.6; without it 13.5); 64 by 32 fills the processors
where N is small (256 rows of 1024x2048 5.53 us; 64 by 64 6.22). With 16 tiles of rows a group, not 8, 2048 rows of
24576x4096 take 599 us, not 603, and 4096 rows 1188, not 1193."""
BULK_START: Final = 1821
"""What a tile costs besides its outputs, in outputs of the first tile; fitted with them."""

MEASURED: Final[dict[tuple[int, int, int], Stream | Bulk]] = {
    # 1024x2048: 5.28 us; by tiles of 64 by 32 5.35
    (128, 1024, 2048): Stream(32, 32, 256, 6, False, True, 1),
    # 4096x12288: 43.4 us; by tiles of 64 by 64 44.6
    (128, 4096, 12288): Stream(64, 64, 128, 6, False, False, 1),
    # 24576x4096: 77.1 us; by tiles of 128 by 192 79.3
    (128, 24576, 4096): Bulk(64, 128, 128, 4, 4, True, False),
    # 6144x4096: 27.2 us; by tiles of 128 by 128 28.5
    (256, 6144, 4096): Bulk(128, 64, 64, 6, 4, False, False, 8, 32),
    # 4096x12288: 53.2 us; by tiles of 64 by 128 54.3 and 56.1
    (256, 4096, 12288): Bulk(128, 64, 64, 8, 4, True, False),
    # 4096x4096: 25.9 us; by flattened tiles of 128 by 128, in 5 stages, 26.2
    (512, 4096, 4096): Bulk(128, 128, 64, 6, 4, False, True),
}
"""Launches that were over 1% quicker than what the rules choose, by rows (a multiple of 64, which the number of rows is
rounded up to: as many tiles), N and K."""


def choose(rows: int, n: int, k: int) -> Stream | Bulk | None:
    """The launch for aligned rows; None for many of them where N is no multiple of 8: no tensor descriptor takes it."""
    if n % 8:
        return stream(rows, n, k) if rows <= STREAM_ROWS else None
    found = MEASURED.get((-(-rows // 64) * 64, n, k))
    if found is not None:
        return found
    if rows > STREAM_ROWS or (rows >= TILE_ROWS and STREAM_N < n <= TILES_N):
        return bulk(rows, n)
    return stream(rows, n, k)


def bulk(rows: int, n: int) -> Bulk:
    """The launch of ``linear_bulk``: the tile for which the last wave of programs wastes least."""

    def cost(choice: tuple[Bulk, float]) -> float:
        tile, rate = choice
        waves = -(-tile.tiles(rows, n) // PROCESSORS)
        return waves * (BULK_START + tile.BM * (tile.BN + tile.MORE) / rate)

    return min(BULK, key=cost)[0]


_POINTERS: Final = ("x_ptr", "w_ptr", "b_ptr", "y_ptr")


def stream_spec(choice: Stream, k: int, dtype: str, *, bias: bool) -> KernelSpec:
    """The kernel of a launch of ``linear_stream``; of K only whether it is a multiple of the step matters."""
    integers = ("rows", "N", "K", "x_row", "w_row", "y_row")
    constants = {
        "R": choice.R,
        "BT": choice.BT,
        "BK": choice.BK,
        "STAGES": choice.STAGES,
        "WHOLE": choice.WHOLE,
        "EVEN": k % choice.BK == 0,
        "TOUCH": choice.TOUCH,
        "START": choice.START,
        "HAS_BIAS": bias,
        "WARPS": choice.WARPS,
    }
    return _spec("linear_stream_kernel", "linear_stream", dtype, integers, constants, choice.WARPS, pdl=True)


def bulk_spec(choice: Bulk, dtype: str, *, bias: bool) -> KernelSpec:
    """The kernel of a launch of ``linear_bulk``; nothing of rows, N and K is in it."""

    def blocks(rows: int, columns: int) -> str:
        return f"tensordesc<{dtype}[{rows}, {columns}]>"

    width = choice.BN // 2 if choice.HALVES else choice.BN
    signature = {
        "x": blocks(choice.BM, choice.BK),
        "w": blocks(choice.BN, choice.BK),
        "y": blocks(choice.BM, width),
        "b_ptr": f"*{dtype}",
        **dict.fromkeys(("rows", "N", "K"), "i32"),
    }
    constants: dict[str, Any] = {}
    if choice.MORE:
        signature |= {"w2": blocks(choice.MORE, choice.BK), "y2": blocks(choice.BM, choice.MORE)}
    else:
        constants = {"w2": None, "y2": None}
    constants |= {
        "BM": choice.BM,
        "BN": choice.BN,
        "MORE": choice.MORE,
        "BK": choice.BK,
        "GROUP": choice.GROUP,
        "PROGRAMS": choice.each * PROCESSORS,
        "FLATTEN": choice.FLATTEN,
        "HALVES": choice.HALVES,
        "SWAP": choice.SWAP,
        "HAS_BIAS": bias,
    }
    return KernelSpec(
        module="ir_kernels_triton.linear_tile_kernel",
        kernel="linear_bulk",
        signature=tuple(signature.items()),
        constants=tuple(constants.items()),
        num_warps=choice.warps,
        num_stages=choice.stages,
        pdl=True,
    )


def tile_spec(rows: int, dtype: str, *, aligned: bool, bias: bool, interpret: bool) -> KernelSpec:
    """The kernel of a launch of ``linear_tile``: small tiles, for whatever the others do not take."""
    bm, bn, bk, stages, warps = (16, 64, 64, 4, 4) if rows <= 16 else (64, 64, 64, 4, 4)
    if dtype == "fp32":
        bm, bn, bk, stages, warps = 16, 64, 32, 3, 4
    if interpret:
        bm, bn, bk, stages, warps = 16, 16, 32, 1, 4
    integers = (
        "rows",
        "N",
        "K",
        "x_row",
        "x_column",
        "w_row",
        "w_column",
        "y_row",
        "x_batch",
        "w_batch",
        "y_batch",
    )
    constants: dict[str, Any] = {
        "BM": bm,
        "BN": bn,
        "BK": bk,
        "STAGES": stages,
        "ALIGNED": aligned,
        "HAS_BIAS": bias,
        "INTERPRET": interpret,
    }
    return _spec(
        "linear_tile_kernel", "linear_tile", dtype, integers, constants, warps, fp_fusion=dtype == "fp32"
    )


def _spec(
    module: str,
    kernel: str,
    dtype: str,
    integers: tuple[str, ...],
    constants: dict[str, Any],
    warps: int,
    *,
    pdl: bool = False,
    fp_fusion: bool = False,
) -> KernelSpec:
    assert dtype in ITEMSIZE
    signature = [(name, f"*{dtype}") for name in _POINTERS]
    signature += [(name, "i32" if name in ("rows", "N", "K") else "i64") for name in integers]
    return KernelSpec(
        module=f"ir_kernels_triton.{module}",
        kernel=kernel,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        num_warps=warps,
        fp_fusion=fp_fusion,
        pdl=pdl,
    )
