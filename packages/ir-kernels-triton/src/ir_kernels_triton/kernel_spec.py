# SPDX-License-Identifier: Apache-2.0
"""What reaches the compiler: one kernel with its constants and options, and what a kernel promises of alignment.

Nothing of a call's values is in it. So the number of rows, strides and addresses never cause a compilation; only a new
row length, dtype or flag does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

ITEMSIZE: Final = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Bytes of an element, by Triton's names of the dtypes that the kernels take."""

TRITON_NAMES: Final = {"torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float32": "fp32"}
"""Triton's names of those dtypes, by torch's."""

ACCESS_BYTES: Final = 16
"""The widest global access of a thread on sm_80 to sm_90."""


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One kernel to compile. Options that are left out, or None, are the compiler's own choice."""

    module: str
    """Module that defines the kernel."""
    kernel: str
    """Name of the ``triton.jit`` function in it."""
    signature: tuple[tuple[str, str], ...]
    """Runtime arguments in the kernel's order, with Triton's types; none is specialised on its value or alignment."""
    constants: tuple[tuple[str, Any], ...]
    """Compile-time arguments by name."""
    num_warps: int
    """Warps of a program."""
    rows_per_program: int = 1
    """Rows that one program computes; 1 for a kernel that is not launched over rows."""
    maxnreg: int | None = None
    """Registers of a thread at most."""
    num_stages: int | None = None
    """Stages of the software pipeline of loads."""
    fp_fusion: bool = False
    """Whether the compiler may contract a multiplication and an addition, which rounds once instead of twice."""
    pdl: bool = False
    """Programmatic dependent launch: the kernel may be started before the one ahead of it has ended."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the runtime arguments, in order."""
        return tuple(name for name, _ in self.signature)

    def programs(self, rows: int) -> int:
        """Programs of a launch over ``rows`` rows."""
        return -(-rows // self.rows_per_program)

    def options(self) -> dict[str, Any]:
        """Compiler options, by Triton's names."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "enable_fp_fusion": self.fp_fusion}
        if self.maxnreg is not None:
            options["maxnreg"] = self.maxnreg
        if self.num_stages is not None:
            options["num_stages"] = self.num_stages
        if self.pdl:
            options["launch_pdl"] = True
        return options


def vector(n: int, x: str) -> int:
    """Elements of an access to rows of ``n`` elements of dtype ``x``.

    16 bytes, or the largest power of two of elements that divides the row, so that no access crosses its end.
    """
    return min(ACCESS_BYTES // ITEMSIZE[x], n & -n)


def alignment(n: int, x: str) -> int:
    """Bytes that the start of each row of dtype ``x`` must be a multiple of, for the promise of alignment."""
    return vector(n, x) * ITEMSIZE[x]


def weight_alignment(n: int, x: str, w: str) -> int:
    """The same for a weight of dtype ``w``, whose elements may be wider or narrower than those of ``x``."""
    return min(ACCESS_BYTES, vector(n, x) * ITEMSIZE[w])
