# SPDX-License-Identifier: Apache-2.0
"""The launches that linear chooses compile for SM 9.0 to products of depth 16, without spills, not serialised."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ir_kernels_triton import linear_config
from ir_kernels_triton.linear_config import Bulk, Stream

pytestmark = pytest.mark.usefixtures("compiler")

CHOSEN = [*(tile for tile, _ in linear_config.BULK), *linear_config.MEASURED.values()]
CHOSEN += [linear_config.stream(64, 1024, 2048)]


@pytest.mark.parametrize("choice", list(dict.fromkeys(CHOSEN)), ids=str)
def test_tiles(choice: Stream | Bulk, tmp_path: Path) -> None:
    import triton

    from ir_kernels_triton import compat
    from ir_kernels_triton.proof import compiled

    if isinstance(choice, Bulk):
        spec = linear_config.bulk_spec(choice, "bf16", bias=True)
    else:
        spec = linear_config.stream_spec(choice, 4096, "bf16", bias=True)
    kernel = compat.compile_for(spec, compiled.target("sm90"))
    ptx = kernel.asm["ptx"]
    facts = compiled.read(kernel.asm["ttgir"], ptx, kernel.asm["cubin"], kernel.metadata)
    assert not facts.spilled and not facts.inexact and facts.waits
    assert facts.shared <= 227 << 10
    found = set(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync\.[\w.]+", ptx))
    assert found and all(re.search(r"n\d+k16\.", name) and ".f32.bf16.bf16" in name for name in found), found
    (tmp_path / "kernel.ptx").write_text(ptx)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    said = subprocess.run(
        [tool, "-v", "--gpu-name", "sm_90a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert "serialized" not in said, said
