# SPDX-License-Identifier: Apache-2.0
"""What the kernels promise the compiler holds. The interpreter ignores promises, and a GPU acts on them.

A mask that is promised to be constant over each vector lets one predicate decide over eight elements: where the promise
is false, a GPU reads what the mask excludes, and the interpreter does not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ir_kernels_triton import gelu_and_mul_sparse as gelu
from ir_kernels_triton import rms_norm as norms

pytestmark = pytest.mark.interpreter


@pytest.fixture
def promises(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the promises of constancy that were made; one that does not hold fails where it is made."""
    from triton.runtime.interpreter import TensorHandle

    seen: list[int] = []
    original = TensorHandle.set_attr

    def set_attr(self: Any, name: str, values: Any) -> None:
        if name == "tt.constancy":
            groups = self.data.reshape(-1, values[-1])
            assert (groups == groups[:, :1]).all(), f"no mask that is constant over {values[-1]} elements"
            seen.append(values[-1])
        original(self, name, values)

    monkeypatch.setattr(TensorHandle, "set_attr", set_attr)
    return seen


SIZES = [
    (64, None), (63, None), (4096, None), (20000, None),
    (64, 63), (160, 159), (4096, 2047), (4096, 4), (4326, 2163), (20000, 17001), (40000, 39999),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("length", "size"), SIZES)
def test_masks_are_constant_over_a_vector(
    promises: list[int], length: int, size: int | None, dtype: torch.dtype
) -> None:
    x, residual = torch.ones(3, length, dtype=dtype), torch.ones(3, length, dtype=dtype)
    norms.rms_norm_batch_invariant(x, None, 1e-6, size)
    norms.rms_norm(x, torch.ones(length, dtype=dtype), 1e-6, size)
    norms.fused_add_rms_norm_batch_invariant_functional(x, residual, None, 1e-6, size)
    if length % 2 == 0 and size is None:
        gelu.gelu_and_mul_sparse_batch_invariant(x, 1.0)
    assert promises or length % 2
