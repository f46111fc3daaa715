# SPDX-License-Identifier: Apache-2.0
"""What is told to the compiler, and what a launch covers."""

from __future__ import annotations

import pytest

from ir_kernels_triton.kernel_spec import KernelSpec, alignment, vector, weight_alignment

PLAIN = KernelSpec("module", "kernel", (("x", "*bf16"), ("rows", "i32")), (), num_warps=4)


def test_options_that_are_left_out_are_the_compilers() -> None:
    assert PLAIN.options() == {"num_warps": 4, "enable_fp_fusion": False}
    assert PLAIN.names == ("x", "rows")


def test_options_have_tritons_names() -> None:
    spec = KernelSpec("m", "k", (), (), num_warps=8, maxnreg=64, num_stages=3, fp_fusion=True, pdl=True)
    assert spec.options() == {
        "num_warps": 8,
        "enable_fp_fusion": True,
        "maxnreg": 64,
        "num_stages": 3,
        "launch_pdl": True,
    }


@pytest.mark.parametrize(("rows", "programs"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_programs_cover_all_rows(rows: int, programs: int) -> None:
    spec = KernelSpec("m", "k", (), (), num_warps=1, rows_per_program=4)
    assert spec.programs(rows) == programs and isinstance(spec.programs(rows), int)


@pytest.mark.parametrize(
    ("n", "x", "w", "elements", "row", "weight"),
    [
        (4096, "bf16", "bf16", 8, 16, 16),
        (4096, "fp32", "fp32", 4, 16, 16),
        (4096, "bf16", "fp32", 8, 16, 16),
        (4096, "fp32", "bf16", 4, 16, 8),
        (12, "fp16", "fp32", 4, 8, 16),
        (6, "fp16", "fp16", 2, 4, 4),
        (7, "fp16", "fp32", 1, 2, 4),
    ],
)
def test_alignment_is_of_the_widest_access_that_divides_a_row(
    n: int, x: str, w: str, elements: int, row: int, weight: int
) -> None:
    assert (vector(n, x), alignment(n, x), weight_alignment(n, x, w)) == (elements, row, weight)
    assert type(vector(n, x)) is int  # a float would be another constant to the compiler
