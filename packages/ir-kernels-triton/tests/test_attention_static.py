# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of attention have the properties that their order rests on, shown without a GPU."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.usefixtures("compiler")

LAUNCHES = [
    ("bf16", 128, 4, (128, 8, 3, False)),
    ("bf16", 128, 4, (64, 4, 3, False)),
    ("bf16", 128, 4, (64, 4, 2, False)),
    ("fp16", 64, 2, (64, 4, 2, True)),
    ("bf16", 96, 1, (64, 4, 2, False)),
    ("bf16", 256, 2, (64, 8, 2, False)),
    ("bf16", 128, 4, (16, 4, 3, False)),
    ("bf16", 128, 4, (16, 4, 2, True)),
    ("fp16", 80, 1, (16, 2, 2, False)),
    ("fp32", 64, 2, (16, 4, 2, False)),
]


def compiled(dtype: str, d: int, group: int, launch: tuple[int, int, int, bool]):
    from ir_kernels_triton import attention_config, compat
    from ir_kernels_triton.proof import compiled as proof

    shape = attention_config.Shape(dtype, d, d, group, True, False, "i64", True, True)
    spec = attention_config.rows_spec(shape, attention_config.Choice(*launch))
    kernel = compat.compile_for(spec, proof.target("sm90"))
    return kernel, proof.read(kernel.asm["ttgir"], kernel.asm["ptx"], kernel.asm["cubin"], kernel.metadata)


@pytest.mark.parametrize(("dtype", "d", "group", "launch"), LAUNCHES, ids=str)
def test_one_accumulator_goes_through_all_steps(dtype, d, group, launch):
    """Every product is of depth 16 with a float32 accumulator, and a chain of them keeps its registers."""
    kernel, facts = compiled(dtype, d, group, launch)
    ptx = kernel.asm["ptx"]
    found = set(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync\.[\w.]+", ptx))
    assert not facts.inexact, facts.inexact
    assert facts.waits
    if dtype == "fp32":
        assert not found and "tf32" not in ptx
        return
    kind = dtype.replace("fp", "f")
    if launch[0] == 16:
        assert found == {f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"}
    else:
        assert {re.sub(r"n\d+k", "nXk", name) for name in found} == {
            f"wgmma.mma_async.sync.aligned.m64nXk16.f32.{kind}.{kind}"
        }
        for chain in re.findall(r"wgmma\.fence\.sync\.aligned;(.*?)wgmma\.commit_group", ptx, re.S):
            tiles = re.findall(r"wgmma\.mma_async\S+ (\{[^}]*\})", chain)
            registers = [name for tile in set(tiles) for name in tile[1:-1].split(",")]
            assert len(registers) == len(set(registers)), "two accumulators share a register"
            assert {tiles.count(tile) for tile in set(tiles)} == {len(tiles) // len(set(tiles))}


@pytest.mark.parametrize(("dtype", "d", "group", "launch"), LAUNCHES[:6], ids=str)
def test_products_are_not_serialised(dtype, d, group, launch):
    """ptxas waits behind every wgmma when it sees accumulators touched in between, and says so."""
    import subprocess
    import tempfile
    from pathlib import Path

    import triton

    kernel, _ = compiled(dtype, d, group, launch)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        done = subprocess.run(
            [tool, "-v", "--gpu-name", "sm_90a", source, "-o", Path(folder) / "kernel.cubin"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "serialized" not in done.stderr, done.stderr


def test_the_merge_is_exact_and_waits():
    from ir_kernels_triton import attention_config, compat
    from ir_kernels_triton.proof import compiled as proof

    for dtype in ("bf16", "fp32"):
        shape = attention_config.Shape(dtype, 128, 128, 4, False, False, None, True, True)
        facts = proof.inspect(attention_config.merge_spec(shape), "sm90")
        assert not facts.inexact and not facts.spilled and facts.waits
    assert compat.source(attention_config.merge_spec(shape)).attrs == {}
