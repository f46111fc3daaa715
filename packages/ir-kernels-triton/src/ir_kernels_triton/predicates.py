# SPDX-License-Identifier: Apache-2.0
"""What the kernels take, as predicates on dtypes, ranks and the last dimension; each refusal says why.

Row counts, leading dimensions, strides and alignment are never a reason: every layout is served.
"""

from typing import Any

_NAMES = ("torch.float16", "torch.bfloat16", "torch.float32")
_FLOATS = "float16, bfloat16 or float32"


def _dtype(name: str, tensor: Any) -> str | None:
    if str(tensor.dtype) not in _NAMES:
        return f"{name} must be {_FLOATS}, it is {str(tensor.dtype).removeprefix('torch.')}"
    return None


def _rows(name: str, tensor: Any) -> str | None:
    if tensor.ndim < 1:
        return f"{name} must have at least one dimension, it has none"
    if tensor.size(-1) < 1:
        return f"{name} must have rows of at least one element"
    return _dtype(name, tensor)


def _weight(x: Any, weight: Any) -> str | None:
    if weight is None:
        return None
    if weight.ndim != 1 or weight.size(-1) != x.size(-1):
        shape = f"{weight.ndim} dimensions" if weight.ndim != 1 else f"{weight.size(-1)} elements"
        return f"weight must be one row of {x.size(-1)} elements, it has {shape}"
    if weight.device != x.device:
        return f"weight must be on {x.device}, it is on {weight.device}"
    return _dtype("weight", weight)


def _variance(variance_size: int | None) -> str | None:
    if variance_size is not None and variance_size < 1:
        return f"variance_size must be at least 1, it is {variance_size}"
    return None


def rms_norm(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool | str:
    """``supports_args`` of rms_norm."""
    return _rows("x", x) or _weight(x, weight) or _variance(variance_size) or True


def fused_add_rms_norm(
    x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None
) -> bool | str:
    """``supports_args`` of fused_add_rms_norm."""
    reason = (
        _rows("x", x) or _rows("x_residual", x_residual) or _weight(x, weight) or _variance(variance_size)
    )
    if reason:
        return reason
    if x_residual.dtype != x.dtype:
        return f"x_residual must have x's dtype {x.dtype}, it has {x_residual.dtype}".replace("torch.", "")
    if x_residual.ndim != x.ndim or x_residual.size(-1) != x.size(-1):
        return "x_residual must have x's shape"
    if x_residual.device != x.device:
        return f"x_residual must be on {x.device}, it is on {x_residual.device}"
    return True


def gelu_and_mul_sparse(x: Any, std_multiplier: float, approximate: str = "none") -> bool | str:
    """``supports_args`` of gelu_and_mul_sparse."""
    if reason := _rows("x", x):
        return reason
    if x.size(-1) % 2:
        return f"x must have rows of an even number of elements (gate and up), it has {x.size(-1)}"
    if approximate not in ("none", "tanh"):
        return f"approximate must be 'none' or 'tanh', it is {approximate!r}"
    return True
