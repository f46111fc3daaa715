# SPDX-License-Identifier: Apache-2.0
"""The device functions exp, exp2 and log have the bits of ``ir_core.ops.elementary``, interpreted and on a GPU."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ir_core.ops import elementary
from ir_kernels_triton.elementary import exp, exp2, log


@triton.jit
def apply(x_ptr, y_ptr, n, WHICH: tl.constexpr, NONPOSITIVE: tl.constexpr, INTERPRET: tl.constexpr):
    """``WHICH``: 0 is exp, 1 is log, another number that of exp2's terms."""
    at = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    if WHICH == 0:
        y = exp(x, INTERPRET, NONPOSITIVE)
    elif WHICH == 1:
        y = log(x, INTERPRET)
    else:
        y = exp2(x, WHICH, INTERPRET, NONPOSITIVE)
    tl.store(y_ptr + at, y, mask=at < n)


def reference(which: int, x: torch.Tensor) -> torch.Tensor:
    if which == 0:
        return elementary.exp(x)
    return elementary.log(x) if which == 1 else elementary.exp2(x, which)


def run(x: torch.Tensor, which: int, nonpositive: bool) -> torch.Tensor:
    y = torch.empty_like(x)
    options = {} if x.device.type == "cpu" else {"enable_fp_fusion": False}
    programs = triton.cdiv(x.numel(), 4096)
    apply[(programs,)](
        x, y, x.numel(), WHICH=which, NONPOSITIVE=nonpositive, INTERPRET=x.device.type == "cpu", **options
    )
    return y


@pytest.mark.parametrize("nonpositive", [False, True])
@pytest.mark.parametrize("which", [0, 1, 3, 4, 5, 6])
def test_bits_of_the_definition(device, which, nonpositive):
    """Numbers of all exponents, NaNs, infinities and zeros; a GPU takes a hundred times as many."""
    step = 65_537 if device == "cpu" else 509
    x = torch.arange(-(1 << 31), 1 << 31, step, dtype=torch.int64).to(torch.int32).view(torch.float32)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 88.5, -87.5, 1e-45, -1e-45])
    x = torch.cat([x, torch.linspace(-130, 130, step), special])
    if nonpositive:
        x = x[~(x > 0)]
    got, want = run(x.to(device), which, nonpositive).cpu(), reference(which, x)
    same = (got.view(torch.int32) == want.view(torch.int32)) | (got.isnan() & want.isnan())
    assert same.all(), f"{int((~same).sum())} of {same.numel()} differ: " + ", ".join(
        f"f({a:.9g}) is {b:.9g}, not {c:.9g}"
        for a, b, c in zip(x[~same][:5], got[~same], want[~same], strict=False)
    )


@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("which", [0, 1, 6])
def test_compiled_code_fuses_what_the_definition_fuses(compiler, which, capability):
    """One element a thread: as many fused multiply-adds as the definition has, no approximation, no flush to zero."""
    source = ASTSource(
        apply,
        {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}
        | dict.fromkeys(("WHICH", "NONPOSITIVE", "INTERPRET"), "constexpr"),
        {"WHICH": which, "NONPOSITIVE": which != 1, "INTERPRET": False},
        {},
    )  # fmt: skip
    kernel = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "enable_fp_fusion": False}
    )
    ptx = kernel.asm["ptx"]
    elements = 4096 // 128
    assert ptx.count("fma.rn.f32") == elements * {0: 9, 1: 10, 6: 6}[which]
    for forbidden in ("approx", "ftz", "ex2", "lg2", "fma.rn.ftz", "f64"):
        assert forbidden not in ptx, forbidden
