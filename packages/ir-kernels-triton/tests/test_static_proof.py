# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels have the properties that the bits and the speed rest on, shown without a GPU.

``IR_PROOF_TARGET=sm100`` checks all kernels for that target; without it, the everyday set: what sm_90 runs most, and a
few kernels for every other target.
"""

import dataclasses
import os

import pytest

pytestmark = pytest.mark.usefixtures("compiler")

ASKED = os.environ.get("IR_PROOF_TARGET")
TARGETS = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")


@pytest.mark.parametrize("target", [ASKED] if ASKED else TARGETS)
def test_compiled_kernels(target: str) -> None:
    from ir_kernels_triton.proof import cases, checks

    if ASKED:
        chosen = list(cases.cases())
    elif target == "sm90":
        chosen = list(cases.cases(core=True))
    else:
        chosen = list(cases.sample())
    complaints = list(checks.complaints(checks.compile_all(chosen, target), target))
    assert not complaints, "\n\n".join(complaints)


def test_targets_are_the_sessions_targets() -> None:
    from ir_kernels_triton.proof import cases

    assert cases.TARGETS == TARGETS


def test_nothing_of_a_call_reaches_the_compiler() -> None:
    """No attribute on any argument: neither alignment nor divisibility nor a value of 1 is specialised."""
    from ir_kernels_triton import compat
    from ir_kernels_triton.proof import cases

    for case in cases.cases():
        source = compat.source(case.spec)
        assert source.attrs == {}
        runtime = {name: kind for name, kind in source.signature.items() if kind != "constexpr"}
        assert runtime == dict(case.spec.signature)
        assert all(kind[0] == "*" or kind in ("i32", "i64", "fp32") for kind in runtime.values())
        assert {kind for name, kind in runtime.items() if name.endswith(("_outer", "_inner"))} == {"i64"}


def test_a_broken_kernel_is_caught_side_by_side() -> None:
    """The checks see what they are for: a layout that moves, contraction, approximation, spills, narrow accesses."""
    from ir_kernels_triton.proof import cases, checks

    good = next(case for case in cases.sample() if case.group == "rms 4096 bf16*bf16")
    plain = next(case for case in cases.cases() if case.group == "rms 4096 bf16*bf16 plain")
    ((_, compiled),) = checks.compile_all([good], "sm90", 1)
    ((_, other),) = checks.compile_all([plain], "sm90", 1)
    moved = dataclasses.replace(good, variant="misaligned", spec=plain.spec)
    (first, *rest) = checks.complaints([(good, compiled), (moved, other)], "sm90")
    assert "a call's layout changes the layout of a reduction" in first
    assert (
        first.count("as usual |")
        == first.count("misaligned |")
        == max(map(len, (compiled.reductions, other.reductions)))
    )
    assert any("contraction allowed" in text for text in rest)
    assert any("approximates or flushes" in text for text in rest)
    assert any("contracts multiplications and additions" in text for text in rest)
    spilled = dataclasses.replace(compiled, spilled=8, accesses=(2,) * 96)
    texts = list(checks.alone(good, spilled))
    assert any("spills 8 bytes" in text for text in texts) and any(
        "has 0 global accesses of 16" in text for text in texts
    )
    assert list(checks.within({"triton": "x", good.name: [0, 0, 0, 0]}, good, compiled))
    assert "has no budget" in next(checks.within({}, good, compiled))


def test_every_way_to_an_access_waits() -> None:
    """A kernel with the wait on all ways, and the same with any one of its waits taken out."""
    import re

    from ir_kernels_triton import compat
    from ir_kernels_triton.launch_config import rms_spec
    from ir_kernels_triton.proof import compiled

    spec = rms_spec(
        4096,
        4096,
        "bf16",
        "bf16",
        aligned=True,
        inner=False,
        residual=False,
        canonical=True,
        pdl=True,
    )
    ptx = compat.compile_for(spec, compiled.target("sm90")).asm["ptx"]
    found = list(re.finditer(r"griddepcontrol\.wait;", ptx))
    assert found
    assert compiled.waits(ptx)
    for wait in found:
        assert not compiled.waits(ptx[: wait.start()] + ptx[wait.end() :])


def test_a_wait_on_one_of_two_ways_is_not_enough() -> None:
    from ir_kernels_triton.proof.compiled import waits

    def ptx(*lines: str) -> str:
        return "\n".join((".entry kernel(", ")", "{", *lines, "}"))

    branch, load, wait = "@%p1 bra $L__BB0_2;", "ld.global.b32 {%r1}, [%rd1];", "griddepcontrol.wait;"
    assert not waits(ptx(branch, wait, "$L__BB0_2:", load, "ret;"))
    assert waits(ptx(branch, wait, "bra.uni $L__BB0_3;", "$L__BB0_2:", wait, "$L__BB0_3:", load, "ret;"))
    assert waits(ptx(branch, wait, load, "$L__BB0_2:", "ret;"))
    assert not waits(ptx(load, wait, "ret;"))
    assert not waits(ptx("ret;"))
