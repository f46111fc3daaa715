# SPDX-License-Identifier: Apache-2.0
"""What the kernels take, as predicates on dtypes and options; each refusal says why.

Shapes, strides and alignment are never a reason: every layout is served. (Every fact that is asked for here is asked
again at each eager call. A weight of another length than the rows is no call of the op: the kernels raise ValueError.)
"""

from typing import Any, Final

FROM_ROWS: Final = 33
"""Rows from which cuBLAS may be faster than the Triton kernels of linear."""

_NAMES = ("torch.float16", "torch.bfloat16", "torch.float32")
_FLOATS = "float16, bfloat16 or float32"


def _dtype(name: str, tensor: Any) -> str | None:
    if str(tensor.dtype) not in _NAMES:
        return f"{name} must be {_FLOATS}, it is {str(tensor.dtype).removeprefix('torch.')}"
    return None


def _weight(weight: Any) -> str | None:
    return None if weight is None else _dtype("weight", weight)


def _variance(variance_size: int | None) -> str | None:
    if variance_size is not None and variance_size < 1:
        return f"variance_size must be at least 1, it is {variance_size}"
    return None


def rms_norm(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool | str:
    """``supports_args`` of rms_norm."""
    return _dtype("x", x) or _weight(weight) or _variance(variance_size) or True


def fused_add_rms_norm(
    x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None
) -> bool | str:
    """``supports_args`` of fused_add_rms_norm."""
    if reason := _dtype("x", x) or _weight(weight) or _variance(variance_size):
        return reason
    if x_residual.dtype != x.dtype:
        return f"x_residual must have x's dtype {x.dtype}, it has {x_residual.dtype}".replace("torch.", "")
    return True


def reduction(x: Any) -> bool | str:
    """``supports_args`` of softmax, log_softmax, logsumexp, sum and mean."""
    return _dtype("x", x) or True


def layer_norm(x: Any, weight: Any = None, bias: Any = None, epsilon: float = 1e-5) -> bool | str:
    """``supports_args`` of layer_norm."""
    others = (_dtype(name, t) for name, t in (("weight", weight), ("bias", bias)) if t is not None)
    return _dtype("x", x) or next(filter(None, others), None) or True


def gelu_and_mul_sparse(x: Any, std_multiplier: float, approximate: str = "none") -> bool | str:
    """``supports_args`` of gelu_and_mul_sparse."""
    if reason := _dtype("x", x):
        return reason
    if x.size(-1) % 2:
        return f"x must have rows of an even number of elements (gate and up), it has {x.size(-1)}"
    if approximate not in ("none", "tanh"):
        return f"approximate must be 'none' or 'tanh', it is {approximate!r}"
    return True


def linear(x: Any, weight: Any, bias: Any = None) -> bool | str:
    """``supports_args`` of linear in the order ``chain16``, which is defined for 16-bit numbers."""
    return _chain16(x)


def linear_fp32(x: Any, weight: Any, bias: Any = None) -> bool | str:
    """``supports_args`` of linear in the order ``fma_chain``."""
    return _fma_chain(x)


def many_rows(x: Any, weight: Any, bias: Any = None) -> bool:
    """``prefers_args`` of linear by cuBLAS: so many rows that the weights' way from memory no longer decides.

    With fewer the Triton kernels were faster at every shape measured: 1.1 to 3.8 times at 1 to 16 rows on an H200.
    """
    length = x.shape[-1]
    return bool(length) and x.numel() >= FROM_ROWS * length


def bmm(x: Any, weight: Any) -> bool | str:
    """``supports_args`` of bmm in the order ``chain16``."""
    return _chain16(x)


def bmm_fp32(x: Any, weight: Any) -> bool | str:
    """``supports_args`` of bmm in the order ``fma_chain``."""
    return _fma_chain(x)


def linear_partial(x: Any, weight: Any, chunks: int = 8) -> bool | str:
    """``supports_args`` of linear_partial where a chunk is in the order ``chain16``."""
    return _chain16(x)


def linear_partial_fp32(x: Any, weight: Any, chunks: int = 8) -> bool | str:
    """``supports_args`` of linear_partial where a chunk is in the order ``fma_chain``."""
    return _fma_chain(x)


WIDEST_HEAD: int = 256
"""Elements of a head that a program of attention holds."""


def attention(
    query: Any,
    key: Any,
    value: Any,
    scale: float | None = None,
    causal: bool = False,
    mask: Any = None,
    key_lengths: Any = None,
) -> bool | str:
    """``supports_args`` of attention in the order ``tiles64``."""
    if str(query.dtype) not in _NAMES[:2]:
        return f"tiles64 is defined for float16 and bfloat16, and query is {query.dtype}"
    return _heads(query, value)


def attention_fp32(
    query: Any,
    key: Any,
    value: Any,
    scale: float | None = None,
    causal: bool = False,
    mask: Any = None,
    key_lengths: Any = None,
) -> bool | str:
    """``supports_args`` of attention in the order ``tiles64_fma``."""
    if str(query.dtype) != "torch.float32":
        return f"tiles64_fma is defined for float32, and query is {query.dtype}"
    return _heads(query, value)


def _heads(query: Any, value: Any) -> bool | str:
    for name, tensor in (("query", query), ("value", value)):
        if tensor.shape[-1] > WIDEST_HEAD:
            return f"heads have at most {WIDEST_HEAD} elements, those of {name} have {tensor.shape[-1]}"
    return True


def _chain16(x: Any) -> bool | str:
    if str(x.dtype) in _NAMES[:2]:
        return True
    return f"chain16 is defined for float16 and bfloat16, and x is {x.dtype}"


def _fma_chain(x: Any) -> bool | str:
    return (
        True if str(x.dtype) == "torch.float32" else f"fma_chain is defined for float32, and x is {x.dtype}"
    )
