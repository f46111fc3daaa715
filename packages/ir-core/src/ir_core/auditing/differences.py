# SPDX-License-Identifier: Apache-2.0
"""How two results differ: whether in any bit, in how many elements, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ir_core.verification.bits import as_bits

_WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """How much two results differ.

    Args:
        elements: elements with other bits.
        compared: elements looked at.
        largest: the largest absolute difference of two finite numbers; ``None`` where only digests are known.
        ulps: the largest distance in units in the last place, where both are finite; 0 for integers.
    """

    elements: int
    compared: int
    largest: float | None
    ulps: int

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.elements + other.elements,
            self.compared + other.compared,
            max((x for x in (self.largest, other.largest) if x is not None), default=None),
            max(self.ulps, other.ulps),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        by = f", up to {self.ulps} ulp" if self.ulps else ""
        if self.largest is None:
            return f"rows of {self.elements} of {self.compared} elements"
        return f"{self.elements} of {self.compared} elements{by}, up to {self.largest:.3g}"


NONE = Difference(0, 0, 0.0, 0)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether every element has the same bits; a NaN equals every NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.dtype.is_floating_point and not one.dtype.is_complex:
        return torch.equal(one, other)
    if one.dtype.is_floating_point and one.element_size() in _WIDTHS:
        width = _WIDTHS[one.element_size()]
        if torch.equal(one.view(width), other.view(width)):
            return True
    return torch.equal(as_bits(one), as_bits(other))


def difference(one: Tensor, other: Tensor) -> Difference:
    """How ``other`` differs from ``one``; shapes and dtypes are equal."""
    a, b = as_bits(one), as_bits(other)
    differing = a != b
    count = int(differing.sum())
    if count == 0:
        return Difference(0, a.numel(), 0.0, 0)
    if not one.dtype.is_floating_point:
        x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (one, other))
        return Difference(count, a.numel(), float((x.double() - y.double()).abs().max()), 0)
    finite = torch.isfinite(one.float()) & torch.isfinite(other.float())
    away = torch.where(finite, (one.double() - other.double()).abs(), 0.0)
    places = torch.where(finite, (_line(a) - _line(b)).abs(), 0)
    return Difference(count, a.numel(), float(away.max()), int(places.max()))


def _line(bits: Tensor) -> Tensor:
    """Bits of floating point numbers as integers in the numbers' own order: neighbours are 1 apart, -0 equals +0."""
    width = 8 * bits.element_size()
    wide = bits.long()
    return torch.where(wide < 0, -(wide + (1 << (width - 1))), wide) if width < 64 else wide
