# SPDX-License-Identifier: Apache-2.0
"""The ops by name, ``ir_core.ops.<name>``: the core's own (``pack.py``), and those that other packs bring."""

from typing import TYPE_CHECKING, Any

from ir_core import catalog
from ir_core.errors import UnknownOpError

if TYPE_CHECKING:
    from ir_core.ops.activation import gelu_and_mul_sparse
    from ir_core.ops.batched_matmul import bmm
    from ir_core.ops.layernorm import fused_add_rms_norm, layer_norm, rms_norm
    from ir_core.ops.matmul import linear
    from ir_core.ops.reduction import log_softmax, logsumexp, mean, softmax
    from ir_core.ops.reduction import sum_ as sum
    from ir_core.ops.scaled_dot_product import attention

__all__ = [
    "attention",
    "bmm",
    "fused_add_rms_norm",
    "gelu_and_mul_sparse",
    "layer_norm",
    "linear",
    "log_softmax",
    "logsumexp",
    "mean",
    "rms_norm",
    "softmax",
    "sum",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return catalog.get_op(name)
    except UnknownOpError as error:
        raise AttributeError(str(error)) from error
