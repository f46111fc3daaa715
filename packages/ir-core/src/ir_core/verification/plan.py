# SPDX-License-Identifier: Apache-2.0
"""What is tried: the numbers, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ir_core.verification.calls import Setting
from ir_core.verification.variants import cases_of, variants_of

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
FIRST_ROWS: Final = 64
"""Rows of the very first call, whose bits are compared with those of later calls."""

SHIFTS: Final = (1, 2, 3, 16, 35)
"""How far the batch is rolled: odd and even, within a tile and across; the last row moves to the front."""

ATTRIBUTION: Final = (
    "selection", "inputs", "aliasing", "repetition", "threads", "neighbours", "position", "memory", "rows",
    "inplace", "pair", "compiled", "graph", "history", "runs", "numerics", "fake", "opcheck",
)  # fmt: skip
"""Probes, the most specific first. Each holds fixed what the ones before it vary, so the first that refutes names
the cause: a kernel that treats odd rows differently is also seen by ``rows``, and ``position`` says why."""

INVARIANCE: Final = frozenset(
    (
        "repetition",
        "neighbours",
        "position",
        "memory",
        "rows",
        "inplace",
        "pair",
        "compiled",
        "graph",
        "history",
        "selection",
    )
)
"""Probes that refute batch invariance; the others refute the contract of an implementation."""


def hidden_sizes(subject: Subject, wanted: tuple[int, ...]) -> list[int]:
    """The wanted numbers of columns, or those nearest that the op's author allows."""
    own = cases_of(subject.op).hidden
    if not own:
        return list(wanted)
    return sorted({min(own, key=lambda size: abs(size - hidden)) for hidden in wanted})


def dtypes(subject: Subject) -> tuple[str, ...]:
    """Activation dtypes; float32 first: where results are float32, every reordered sum shows."""
    return cases_of(subject.op).dtypes


def variant_names(subject: Subject, setting: Setting) -> list[str]:
    """The variants of the other arguments."""
    return list(variants_of(subject.op, subject.pool(setting)))
