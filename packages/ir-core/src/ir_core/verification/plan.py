# SPDX-License-Identifier: Apache-2.0
"""What is tried: the numbers, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ir_core.verification.calls import Setting
from ir_core.verification.variants import cases_of, statics_of, variants_of

if TYPE_CHECKING:
    from ir_core.verification.subject import Subject

SMALL: Final = 160
"""Columns of the first setting: no power of two (masked lanes), a multiple of 16 bytes (alignment can be broken)."""
HEAD: Final = 128
"""Columns of an attention head: where two calls of a layer are one launch."""
MIDDLE: Final = (1031, 4096)
"""A prime above 1024 (a masked second block), and a usual hidden size: several blocks of 256 or 1024."""
WIDE: Final = (8200, 65536)
"""Beyond 8192 columns kernels change their loop; at 65536 torch splits a lone row over CPU threads."""
TALL: Final = (32768, 32771)
"""The last number of rows before 2**15 is passed, and one behind it that fills no tile."""

ROWS: Final = (
    1, 2, 3, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 511, 512, 513, 1024, 4096,
)  # fmt: skip
"""Numbers of rows: around the powers of two, where tiles, buckets and thresholds end."""
FEW_THREADS: Final = 1
"""Threads of the long lists on a CPU. More of them cost a barrier an operation; they are tried on ``THREADED_ROWS``
and with wide and tall inputs, where torch begins to use them."""
THREADED_ROWS: Final = (1, 2, 33, 257, 1024)
SOME_ROWS: Final = (1, 2, 7, 33, 65, 129, 257, 300, 513)
"""The same in short, for further dtypes and for slow implementations."""
FEW_ROWS: Final = (1, 2, 3, 8, 16, 17, 33)
MOST_ROWS: Final = 100_000
"""Rows of random cases: more than a large prefill has."""
WIDTHS: Final = (
    64, 80, 96, 128, 192, 256, 576, 896, 1024, 1152, 1536, 2048, 2304, 2560, 2880, 3072, 3584, 4096, 5120, 5376, 6144,
    6656, 7168, 8192, 12288, 14336, 16384, 18432, 28672,
)  # fmt: skip
"""Head, hidden and intermediate sizes of published models: Llama, Qwen, Gemma, DeepSeek, gpt-oss, SmolLM and others."""
MOST_COLUMNS: Final = 20_000
"""Columns of random cases that are no model's."""

FIRST_ROWS: Final = 64
"""Rows of the very first call, whose bits are compared with those of later calls."""

SHIFTS: Final = (1, 2, 3, 16, 35)
"""How far the batch is rolled: odd and even, within a tile and across; the last row moves to the front."""


def hidden_sizes(subject: Subject, wanted: tuple[int, ...]) -> list[int]:
    """The wanted numbers of columns, or those nearest that the op's author allows."""
    own = cases_of(subject.op).hidden
    if not own:
        return list(wanted)
    return sorted({min(own, key=lambda size: abs(size - hidden)) for hidden in wanted})


def dtypes(subject: Subject) -> tuple[str, ...]:
    """Activation dtypes; float32 first: where results are float32, every reordered sum shows."""
    return cases_of(subject.op).dtypes


def variant_names(subject: Subject, setting: Setting, *, every: bool = False) -> list[str]:
    """The variants of the other arguments; ``every``: those of random cases, too."""
    return list(variants_of(subject.op, subject.pool(subject.call(setting)), every=every))


def static_names(subject: Subject, setting: Setting) -> list[str]:
    """The arguments that are no activation and can have other values."""
    return statics_of(subject.op, subject.pool(subject.call(setting)))
