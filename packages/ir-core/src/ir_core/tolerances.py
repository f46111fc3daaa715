# SPDX-License-Identifier: Apache-2.0
"""Default bounds for comparing an implementation with a reference of higher precision.

With p the bits of a dtype's significand, u = 2**-p is its unit roundoff: one correctly rounded operation has a
relative error of at most u. An op without a reduction rounds a handful of times on its way to a result; the
defaults grant four roundings to the result's dtype, and as absolute bound the same of the smallest normal
number, below which precision is lost gradually. Ops with reductions override them (see ``ops/``).
"""

from __future__ import annotations

from typing import Final, TypeAlias

import torch

Tolerance: TypeAlias = dict[str, float]

ROUNDINGS: Final = 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """u of a floating dtype: half the distance from 1.0 to the next larger number."""
    return torch.finfo(dtype).eps / 2


def bound(dtype: torch.dtype, relative: float) -> Tolerance:
    """The tolerance with this relative error, and its share of the smallest normal number as absolute error."""
    return {"rtol": relative, "atol": max(relative, unit_roundoff(dtype)) * torch.finfo(dtype).tiny}


DEFAULT_TOLERANCES: Final[dict[torch.dtype, Tolerance]] = {
    dtype: bound(dtype, ROUNDINGS * unit_roundoff(dtype))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
} | {
    # One rounding of a result computed in a wider dtype: quantised outputs are compared after that.
    torch.float8_e4m3fn: bound(torch.float8_e4m3fn, 2 * unit_roundoff(torch.float8_e4m3fn)),
    torch.float8_e5m2: bound(torch.float8_e5m2, 2 * unit_roundoff(torch.float8_e5m2)),
    # The neighbouring integer, when a tie rounds the other way.
    torch.int8: {"rtol": 0.0, "atol": 1.0},
}
