# SPDX-License-Identifier: Apache-2.0
"""The core's own ops, and by attribute access those that packs bring: ``ir_core.ops.<name>``."""

from typing import Any

from ir_core.ops.activation import gelu_and_mul_sparse
from ir_core.ops.layernorm import fused_add_rms_norm, rms_norm

__all__ = ["fused_add_rms_norm", "gelu_and_mul_sparse", "rms_norm"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    from ir_core import discovery
    from ir_core.errors import UnknownOpError

    try:
        return discovery.get_op(name)
    except UnknownOpError as error:
        raise AttributeError(str(error)) from error
