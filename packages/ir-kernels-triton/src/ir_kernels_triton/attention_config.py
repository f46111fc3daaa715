# SPDX-License-Identifier: Apache-2.0
"""How attention is launched: rows of a program, warps and stages, and whether parts of the keys go side by side.

Anything may decide here: all launches have one order (``tiles64``), so no choice below can change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ir_kernels_triton.kernel_spec import KernelSpec

PROCESSORS: Final = 132
"""Of an H100 or H200."""
PART_KEYS: Final = 512
TILE_KEYS: Final = 64
SHARED_BYTES: Final = 226 << 10
"""Shared memory of a program at most (227 KiB, and some for the compiler)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a compiled kernel depends on.

    Attributes:
        dtype: Triton's name.
        d, c: elements of a key and of a value.
        group: heads that share keys.
        aligned: every row is contiguous, starts at a multiple of 16 bytes, and is a multiple of 16 bytes long.
        lengths: Triton's name of the lengths' dtype; None without.
    """

    dtype: str
    d: int
    c: int
    group: int
    causal: bool
    mask: bool
    lengths: str | None
    aligned: bool
    pdl: bool = False
    interpret: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A launch: rows, warps and stages of a program, and whether it has 512 keys (``parts``) or all."""

    BM: int
    warps: int
    stages: int
    parts: bool


def padded(size: int) -> int:
    """Elements of a row in a kernel: a power of two that a dot takes."""
    return max(16, 1 << (size - 1).bit_length())


def shared(shape: Shape, choice: Choice) -> int:
    """Bytes of shared memory that a launch takes, more or less: the queries, and keys and values of its stages."""
    size = 4 if shape.dtype == "fp32" else 2
    d, c = padded(shape.d), padded(shape.c)
    return size * (choice.BM * d + choice.stages * TILE_KEYS * (d + c))


def choose(shape: Shape, rows: int, keys: int, matrices: int) -> Choice:
    """The launch for ``matrices`` groups of heads, each with so many rows and keys.

    Measured with heads of 128 in bf16 on an H100 (``benchmarks/attention.py --tune``). Prefill of 2048 tokens with
    32 heads: 64 rows in 2 stages 133 us, in 3 stages 138; 128 rows in 3 stages 140. 512 queries against 4096 keys:
    in one pass 107 us, in parts 161, with 256 programs. Decode of 64 sequences, 512 programs: 512 keys in 2 stages
    51 us, in 3 stages 56; 8192 keys in one pass 701 us, in parts and 3 stages 726. Of 8, 64 programs: 512 keys in 3
    stages 12.7 us, in 4 stages 13.4; 8192 keys in parts, in 2 stages 99 us, in 3 stages 102.
    """
    parts = -(-keys // PART_KEYS)
    if shape.interpret:
        return Choice(16, 4, 1, parts > 1 and rows <= 16)
    wide = max(padded(shape.d), padded(shape.c))
    if shape.dtype == "fp32":
        bm, warps, stages = (16, 4, 2) if wide <= 128 else (16, 4, 1)
    elif rows <= 16:
        bm, warps, stages = 16, 4, 2
    else:
        bm, warps, stages = 64, 4 if wide <= 128 else 8, 2
    programs = matrices * -(-rows // bm)
    split = parts > 1 and programs < PROCESSORS * (2 if bm == 16 else 1)
    if bm == 16 and shape.dtype != "fp32" and wide <= 128 and not split and programs <= PROCESSORS:
        stages = 3  # a program has its processor to itself: more on its way
    return fitting(shape, Choice(bm, warps, stages, split))


def fitting(shape: Shape, choice: Choice) -> Choice:
    """``choice`` with no more stages than shared memory holds."""
    stages = choice.stages
    while stages > 1 and shared(shape, Choice(choice.BM, choice.warps, stages, choice.parts)) > SHARED_BYTES:
        stages -= 1
    return Choice(choice.BM, choice.warps, stages, choice.parts)


_SIZES: Final = ("rows", "keys", "queries", "groups")
_STRIDES: Final = (
    *("q_b", "q_h", "q_m", "k_b", "k_g", "k_n", "v_b", "v_g", "v_n"),
    *("mask_b", "mask_h", "mask_m", "mask_n"),
)


def rows_spec(shape: Shape, choice: Choice) -> KernelSpec:
    """The kernel ``attention_rows`` of a launch."""
    out = "fp32" if choice.parts else shape.dtype
    signature = [
        *((name, f"*{shape.dtype}") for name in ("q_ptr", "k_ptr", "v_ptr")),
        ("mask_ptr", "*u8"),
        ("lengths_ptr", f"*{shape.lengths or 'i32'}"),
        ("o_ptr", f"*{out}"),
        ("m_ptr", "*fp32"),
        ("l_ptr", "*fp32"),
        *((name, "i32") for name in _SIZES),
        *((name, "i64") for name in _STRIDES),
        ("factor", "fp32"),
    ]
    constants: dict[str, Any] = {
        "BM": choice.BM,
        "D": shape.d,
        "C": shape.c,
        "BD": padded(shape.d),
        "BC": padded(shape.c),
        "GROUP": shape.group,
        "CAUSAL": shape.causal,
        "HAS_MASK": shape.mask,
        "HAS_LENGTHS": shape.lengths is not None,
        "ALIGNED": shape.aligned,
        "PARTS": choice.parts,
        "STAGES": choice.stages,
        "PDL": shape.pdl,
        "INTERPRET": shape.interpret,
    }
    return _spec("attention_rows", shape, signature, constants, choice.warps)


MERGE_ROWS: Final = 1
MERGE_UNROLL: Final = 8


def merge_spec(
    shape: Shape, *, rows: int = MERGE_ROWS, unroll: int = MERGE_UNROLL, warps: int = 1
) -> KernelSpec:
    """The kernel that merges parts; of the shape it depends on the values, the heads and the lengths."""
    signature = [
        *((name, "*fp32") for name in ("c_ptr", "m_ptr", "l_ptr")),
        ("o_ptr", f"*{shape.dtype}"),
        ("lengths_ptr", f"*{shape.lengths or 'i32'}"),
        *((name, "i32") for name in _SIZES),
    ]
    constants: dict[str, Any] = {
        "BR": rows,
        "C": shape.c,
        "BC": padded(shape.c),
        "GROUP": shape.group,
        "CAUSAL": shape.causal,
        "HAS_LENGTHS": shape.lengths is not None,
        "TERMS": 6 if shape.dtype == "fp32" else 4,
        "UNROLL": 1 if shape.interpret else unroll,
        "PDL": shape.pdl,
        "INTERPRET": shape.interpret,
    }
    return _spec("attention_merge", shape, signature, constants, warps)


def _spec(
    kernel: str, shape: Shape, signature: list[tuple[str, str]], constants: dict[str, Any], warps: int
) -> KernelSpec:
    return KernelSpec(
        module="ir_kernels_triton.attention_kernel",
        kernel=kernel,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        num_warps=warps,
        fp_fusion=shape.dtype == "fp32",
        pdl=shape.pdl,
    )
