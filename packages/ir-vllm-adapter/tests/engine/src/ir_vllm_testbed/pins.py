# SPDX-License-Identifier: Apache-2.0
"""What a CPU makes batch-dependent and is not a norm: matmul. Pinned here, so that the tests see the norms alone.

BLAS picks another kernel, and with it another order of additions, for one row than for many. Every linear layer
therefore goes through one opaque op that multiplies row by row: a row's bits depend on that row only. (On a GPU
VLLM_BATCH_INVARIANT does the same job with its own matmul kernels and cuBLAS settings.) Attention is vLLM's own
Triton kernel, interpreted; the interpreter turns `tl.dot` into one BLAS call a tile, in which a row's bits depend on
where in the tile it stands, so that call is pinned the same way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_INSTALLED: list[torch.library.Library] = []


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] @ weight [N, K].T + bias [N], one row at a time from one aligned buffer; bits as of a lone row."""
    rows = x.reshape(-1, x.shape[-1])
    out = x.new_empty((rows.shape[0], weight.shape[0]))
    buffer = x.new_empty(rows.shape[1])
    for i in range(rows.shape[0]):
        buffer.copy_(rows[i])
        out[i] = torch.mv(weight, buffer)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def install() -> None:
    """Route F.linear of CPU tensors through the opaque op, eager and compiled. Idempotent."""
    if _INSTALLED:
        return
    library = torch.library.Library("ir_testbed", "FRAGMENT")
    library.define("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor")
    library.impl("linear", linear_rows, "CompositeExplicitAutograd")
    library._register_fake("linear", _fake)
    _INSTALLED.append(library)

    def pinned(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.ir_testbed.linear(x, weight, bias)

    _pin_interpreted_dot()
    F.linear = pinned  # type: ignore[assignment]


def _pin_interpreted_dot() -> None:
    """`tl.dot` of the interpreter: every row of the tile by itself (tensor cores treat all rows of a tile alike)."""
    import numpy as np
    from triton.runtime import interpreter

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        out = np.empty_like(d.data)
        columns = np.ascontiguousarray(b.data.astype(d.data.dtype))
        for i, row in enumerate(np.ascontiguousarray(a.data.astype(d.data.dtype))):
            out[i] = np.dot(row.copy(), columns)
        return interpreter.TensorHandle(out + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot
