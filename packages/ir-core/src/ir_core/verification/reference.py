# SPDX-License-Identifier: Apache-2.0
"""The float64 reference of an op: its native implementation, with float64 wherever it says float32.

The rounding points of the semantics go with it; they are what the op's tolerance grants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ir_core.op import IrOp


class _Wider(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].to(torch.float64)
        return func(*map(_widen, args), **{key: _widen(value) for key, value in (kwargs or {}).items()})


def _widen(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def in_float64(op: IrOp, args: Sequence[Any]) -> Any:
    """The native implementation on float64 copies of ``args``, computed in float64 throughout."""
    wide = [a.double() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in args]
    with _Wider(), torch.no_grad():
        return op._impls["native"].impl_fn(*wide)


def tolerance(op: IrOp, args: Sequence[Any], output: Tensor) -> dict[str, float]:
    """The op's tolerance for an output: of the narrowest floating dtype on the way to it."""
    dtypes = {output.dtype} | {a.dtype for a in args if isinstance(a, Tensor) and a.dtype.is_floating_point}
    bounds = [op.get_tolerance(dtype) for dtype in dtypes]
    return {key: max(bound[key] for bound in bounds) for key in ("atol", "rtol")}
