# SPDX-License-Identifier: Apache-2.0
"""What an SM capability implies, as tables: generation, features, sizes, and the batch-invariant bound.

The driver's management library tells the capability of a card, but not what kernels may do there; CUDA would,
and creates a context for it. Source of the sizes: CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"; of the features: PTX ISA, the "Target ISA Notes" of the instructions named below.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from ir_platform import env
from ir_platform.errors import OverrideError

SM: TypeAlias = tuple[int, int]
"""(major, minor): tuples compare as capabilities do."""

MIN_BATCH_INVARIANT_SM: Final[SM] = (9, 0)
"""Lowest SM on which batch-invariant kernels count as supported: the one place that holds this bound.

vLLM pull request 36816 draws the line at the same capability.
"""

MIN_BATCH_INVARIANT_SM_VARIABLE: Final = env.IR_BATCH_INVARIANT_MIN_SM
"""Environment variable that moves the bound: ``8.0``, ``sm80``."""

FEATURES: Final[tuple[tuple[str, SM], ...]] = (
    ("bf16", (8, 0)),  # bfloat16 arithmetic in hardware
    ("fp8", (8, 9)),  # e4m3 and e5m2 conversions and matrix products
    ("clusters", (9, 0)),  # thread block clusters and distributed shared memory: barrier.cluster
    ("pdl", (9, 0)),  # programmatic dependent launch: griddepcontrol
    ("tma", (9, 0)),  # tensor memory accelerator: cp.async.bulk.tensor
)
"""Feature and the first SM that has it. All later ones have it too."""

GENERATIONS: Final[dict[SM, str]] = {
    (5, 0): "Maxwell", (5, 2): "Maxwell", (5, 3): "Maxwell",
    (6, 0): "Pascal", (6, 1): "Pascal", (6, 2): "Pascal",
    (7, 0): "Volta", (7, 2): "Volta", (7, 5): "Turing",
    (8, 0): "Ampere", (8, 6): "Ampere", (8, 7): "Ampere", (8, 9): "Ada",
    (9, 0): "Hopper",
    (10, 0): "Blackwell", (10, 1): "Blackwell", (10, 3): "Blackwell", (11, 0): "Blackwell",
    (12, 0): "Blackwell", (12, 1): "Blackwell",
}  # fmt: skip
"""Marketing generation of every SM known to this version."""

_KIB: Final = 1024

SHARED_MEMORY_PER_BLOCK: Final[dict[SM, int]] = {
    (5, 0): 48 * _KIB, (5, 2): 48 * _KIB, (5, 3): 48 * _KIB,
    (6, 0): 48 * _KIB, (6, 1): 48 * _KIB, (6, 2): 48 * _KIB,
    (7, 0): 96 * _KIB, (7, 2): 96 * _KIB, (7, 5): 64 * _KIB,
    (8, 0): 163 * _KIB, (8, 6): 99 * _KIB, (8, 7): 163 * _KIB, (8, 9): 99 * _KIB,
    (9, 0): 227 * _KIB,
    (10, 0): 227 * _KIB, (10, 1): 227 * _KIB, (10, 3): 227 * _KIB, (11, 0): 227 * _KIB,
    (12, 0): 99 * _KIB, (12, 1): 99 * _KIB,
}  # fmt: skip
"""Most shared memory that one block can opt in to, in bytes."""

_64_CORES: Final = frozenset({(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)})

_TOO_HIGH: Final = 50  # 90.0 is a slip for 9.0 or sm90, not a device to come
_SM_TEXT: Final = re.compile(r"(?:(\d+)\.(\d)|(?:sm_?|compute_?)?(\d+)(\d)[af]?)")


def parse_sm(text: str) -> SM | None:
    """Read ``9.0``, ``sm90``, ``sm_90a``, ``compute_90`` or ``90``; ``None`` when it is no capability.

    >>> parse_sm("sm_103a"), parse_sm("8.9"), parse_sm("hopper")
    ((10, 3), (8, 9), None)
    """
    match = _SM_TEXT.fullmatch(text.strip().lower())
    if match is None:
        return None
    major, minor = (match[1], match[2]) if match[1] else (match[3], match[4])
    return (int(major), int(minor)) if 0 < int(major) < _TOO_HIGH else None


def format_sm(sm: SM) -> str:
    """``(9, 0)`` as ``"9.0"``."""
    return f"{sm[0]}.{sm[1]}"


def features(sm: SM) -> frozenset[str]:
    """What kernels may ask about that a device of this SM has."""
    return frozenset(name for name, first in FEATURES if sm >= first)


def multiprocessors(sm: SM, cores: int) -> int | None:
    """Number of multiprocessors of a card with that many CUDA cores; ``None`` for an SM not known here.

    NVML counts cores, kernels count multiprocessors; the cores of one are fixed by the SM.
    """
    if sm not in GENERATIONS or not cores:
        return None
    return cores // (64 if sm in _64_CORES else 128)


def min_batch_invariant_sm() -> SM:
    """The bound in force: ``MIN_BATCH_INVARIANT_SM`` unless ``IR_BATCH_INVARIANT_MIN_SM`` is set.

    Raises:
        OverrideError: the variable is set to something that is no capability.
    """
    text = env.text(MIN_BATCH_INVARIANT_SM_VARIABLE)
    if text is None:
        return MIN_BATCH_INVARIANT_SM
    sm = parse_sm(text)
    if sm is None:
        raise OverrideError(
            f"{MIN_BATCH_INVARIANT_SM_VARIABLE}={text!r} is not an SM capability.",
            why="It moves the lowest SM on which batch-invariant kernels count as supported.",
            fix=f"Write it as 8.0 or sm80, or unset it for {format_sm(MIN_BATCH_INVARIANT_SM)}.",
        )
    return sm


def batch_invariant(sm: SM, label: str) -> tuple[bool, str]:
    """Whether batch-invariant kernels count as supported on a device of this SM, and why.

    Args:
        sm: capability of the device.
        label: the device in the middle of a sentence, ``"cuda:0 (Tesla T4)"``.
    """
    bound = min_batch_invariant_sm()
    moved = env.text(MIN_BATCH_INVARIANT_SM_VARIABLE) is not None
    origin = f"{'set by' if moved else 'see'} {MIN_BATCH_INVARIANT_SM_VARIABLE}"
    found = f"{label} is SM {format_sm(sm)}"
    if sm >= bound:
        return True, f"{found}, and batch-invariant kernels run from SM {format_sm(bound)} on ({origin})"
    return False, f"batch-invariant kernels need SM >= {format_sm(bound)} ({origin}), {found}"
