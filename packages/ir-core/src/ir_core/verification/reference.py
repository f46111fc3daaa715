# SPDX-License-Identifier: Apache-2.0
"""The float64 reference of an op: its native implementation, with float64 wherever it says float32.

The rounding points of the semantics go with it; they are what the op's tolerance grants. Where the author of an op
sets no tolerance, the bound grows with the op's own errors (:func:`growth`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ir_core.tolerances import DEFAULT_TOLERANCES, unit_roundoff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ir_core.meaning import Meaning


SAMPLES: Final = 8
SPREAD: Final = 24.0
"""Standard deviations that an implementation without a declared tolerance may be off. The deviation is known from
16 errors: once in 10**6 elements it comes out 2.7 times too small, which leaves 9; a normal error passes 5 once in
10**6. Implementations with twice the native one's roundings stay inside, a lost digit does not."""


class _Wider(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].to(torch.float64)
        return func(*map(_widen, args), **{key: _widen(value) for key, value in (kwargs or {}).items()})


def _widen(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def in_float64(op: Meaning, args: Sequence[Any]) -> Any:
    """The native implementation on float64 copies of ``args``, computed in float64 throughout."""
    wide = [a.double() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in args]
    with _Wider(), torch.no_grad():
        return op.native_fn(*wide)


def flat(results: Any) -> list[Tensor]:
    """The tensors among an op's results."""
    return [
        r for r in (results if isinstance(results, tuple | list) else (results,)) if isinstance(r, Tensor)
    ]


def tolerance(op: Meaning, args: Sequence[Any], output: Tensor) -> dict[str, float]:
    """The op's tolerance for an output: of the narrowest floating dtype on the way to it."""
    bounds = [op.get_tolerance(dtype) for dtype in _dtypes(args, output)]
    return {key: max(bound[key] for bound in bounds) for key in ("atol", "rtol")}


def _dtypes(args: Sequence[Any], output: Tensor) -> set[torch.dtype]:
    return {output.dtype} | {a.dtype for a in args if isinstance(a, Tensor) and a.dtype.is_floating_point}


def declared(op: Meaning, args: Sequence[Any], output: Tensor) -> bool:
    """Whether the op's author set a tolerance for one of the dtypes on the way to an output."""
    return any(op.get_tolerance(dtype) != DEFAULT_TOLERANCES.get(dtype) for dtype in _dtypes(args, output))


def growth(op: Meaning, args: Sequence[Any]) -> list[Tensor]:
    """How large an error roundings make in each element of each output: standard deviations, in float64.

    Two things are measured at inputs next to ``args``, by float64: the errors that the native implementation really
    makes in its own precision (roundings in its order), and how far the exact result moves when every input moves by
    a float32 rounding (what another, equally good order or algorithm may do: backward error, Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd ed., section 1.5). Their squares are added. Random perturbation of inputs
    to see errors is Monte Carlo arithmetic (Parker, UCLA CSD-970002, 1997).
    """
    generator = torch.Generator().manual_seed(20)
    exact = flat(in_float64(op, args))
    total = [torch.zeros_like(out) for out in exact]
    for _ in range(SAMPLES):
        near = [_moved(a, unit_roundoff(a.dtype), generator).to(a.dtype) if _floats(a) else a for a in args]
        with torch.no_grad():
            found = flat(op.native_fn(*(a.clone() if isinstance(a, Tensor) else a for a in near)))
        for number, (mine, wanted) in enumerate(zip(found, flat(in_float64(op, near)), strict=True)):
            total[number] += torch.nan_to_num(mine.double() - wanted, 0.0, 0.0, 0.0) ** 2
        wide = [_moved(a, _working(a.dtype), generator) if _floats(a) else a for a in args]
        for number, (moved, wanted) in enumerate(zip(flat(in_float64(op, wide)), exact, strict=True)):
            total[number] += torch.nan_to_num(moved - wanted, 0.0, 0.0, 0.0) ** 2
    return [torch.sqrt(square / SAMPLES) for square in total]


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _working(dtype: torch.dtype) -> float:
    """The unit roundoff of the precision that narrow dtypes are computed in."""
    return min(unit_roundoff(dtype), unit_roundoff(torch.float32))


def _moved(tensor: Tensor, u: float, generator: torch.Generator) -> Tensor:
    """``tensor`` in float64, every element moved by a relative 2 u up or down or not at all."""
    step = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor.device)
    return tensor.double() * (1.0 + 2.0 * u * step)
