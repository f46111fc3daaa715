# SPDX-License-Identifier: Apache-2.0
"""What interpreting makes batch-dependent and a GPU does not: `tl.dot`, which vLLM's own attention kernel uses.

The interpreter turns it into one BLAS call a tile, in which a row's bits depend on where in the tile it stands. Tensor
cores treat all rows of a tile alike, so every row is multiplied by itself here. Products with weights are not pinned:
they are ir-core's `linear`.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """`tl.dot` of the interpreter: every row of the tile by itself (tensor cores treat all rows of a tile alike)."""
    import numpy as np
    from triton.runtime import interpreter

    def numbers(operand: Any) -> Any:
        """The values of an operand: the interpreter keeps bfloat16 as its bit patterns."""
        if operand.dtype.scalar.is_bf16():
            return (operand.data.astype(np.uint32) << 16).view(np.float32)
        return operand.data

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        out = np.empty_like(d.data)
        columns = np.ascontiguousarray(numbers(b).astype(d.data.dtype))
        for i, row in enumerate(np.ascontiguousarray(numbers(a).astype(d.data.dtype))):
            out[i] = np.dot(row.copy(), columns)
        return interpreter.TensorHandle(out + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot
