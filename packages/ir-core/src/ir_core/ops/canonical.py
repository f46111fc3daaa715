# SPDX-License-Identifier: Apache-2.0
"""The canonical order: the project's definition of the right bits of a row reduction.

The order depends on the row's length and on nothing else: not on the number of rows, their layout, the dtype
they came from, the device or the launch configuration. Every step is one float32 addition of two tensors, so
each result is fixed by IEEE 754, in any library and on any device. ``docs/canonical-order.md`` states the order
so that it can be written again in another language.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ir_core.meaning import Order

TREE = Order(
    "tree",
    "Sums of a row are canonical sums: the row, padded with zeros to the size of its canonical layout (a function of "
    "its length alone), is added as a tree of float32 additions of two numbers: the elements of a vector, the chunks "
    "of a thread, the blocks of a long row one after the other, the lanes of a warp, the warps. Squares are rounded "
    "before they are added; means are divided by the float32 length; divisions, roots and reciprocals are correctly "
    "rounded; everything else is rounded where the op's meaning says. docs/canonical-order.md has each step.",
)
"""The order of every op here that reduces a row; ``portable`` computes it."""

VECTOR = 8
"""Adjacent elements that one thread loads together: 16 bytes of a 16-bit dtype."""
LANES = 32
"""Threads of one warp: the steps over them are shuffles."""
WARP_ELEMENTS = 1024
"""A row gets one warp for each 1024 elements: 32 elements, four 16-byte loads, a thread."""
MAX_WARPS = 16
"""Longer rows than 16 warps hold are cut into blocks, which are added one after the other."""


class CanonicalLayout(NamedTuple):
    """How the index of an element splits: ``i = (((b * C + c) * W + w) * L + l) * V + v``.

    The product of the five sizes is the row's length, padded with zeros.
    """

    blocks: int
    chunks: int
    warps: int
    lanes: int
    vector: int

    @property
    def block(self) -> int:
        """Elements of one block."""
        return self.chunks * self.warps * self.lanes * self.vector

    @property
    def padded(self) -> int:
        """Elements of the padded row."""
        return self.blocks * self.block


def canonical_layout(n: int) -> CanonicalLayout:
    """Return the split of the indices of a row of ``n`` elements; it is a function of ``n`` alone."""
    if n < 0:
        raise ValueError(f"a row cannot have {n} elements")
    padded = 1 << (max(n, 1) - 1).bit_length()
    block = min(padded, WARP_ELEMENTS * MAX_WARPS)
    vector = min(VECTOR, block)
    lanes = min(LANES, block // vector)
    warps = max(block // WARP_ELEMENTS, 1)
    chunks = block // (vector * lanes * warps)
    return CanonicalLayout(math.ceil(max(n, 1) / block), chunks, warps, lanes, vector)


def _fold(x: Tensor, dim: int) -> Tensor:
    """Add the upper half of ``dim`` (negative, a power of two long) to the lower half until one is left."""
    size = x.shape[dim]
    while size > 1:
        size //= 2
        x = x.narrow(dim, 0, size) + x.narrow(dim, size, size)
    return x.squeeze(dim)


def canonical_sum(x: Tensor) -> Tensor:
    """Sum the last dimension of ``x`` in the canonical order.

    ``x`` is float32 or float64 ``[..., N]``; the result is ``[..., 1]`` of its dtype. Element-wise additions only, so
    it can be differentiated and compiled, and its bits do not depend on the other rows.

    Raises TypeError for another dtype.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"canonical_sum takes float32 and float64, got {x.dtype}")
    n = x.shape[-1]
    layout = canonical_layout(n)
    if layout.padded != n:
        x = torch.nn.functional.pad(x, (0, layout.padded - n))
    x = x.reshape(*x.shape[:-1], *layout)  # [..., B, C, W, L, V]
    x = _fold(x, -1)  # the elements of a vector
    x = _fold(x, -3)  # the chunks of a thread
    total = x.select(-3, 0)
    for b in range(1, layout.blocks):  # the blocks of a long row, in order
        total = total + x.select(-3, b)
    total = _fold(total, -1)  # the lanes of a warp
    total = _fold(total, -1)  # the warps
    return total.unsqueeze(-1)


def canonical_mean(x: Tensor) -> Tensor:
    """Mean of the last dimension of ``x``, as ``[..., 1]`` of its dtype: the canonical sum over the rounded N."""
    total = canonical_sum(x)
    # By a tensor: some backends turn the division by a scalar into a product with its rounded reciprocal.
    return total / torch.full_like(total, x.shape[-1])


def exact_sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root of a float32 or float64 tensor.

    torch's own float32 root is not that on a CPU: where it calls MKL, a sixth of the results are one unit off.
    A float64 root rounded to float32 is: for float32 x, sqrt(x) is at least 2**-50 (relative) away from the middle
    between two float32 numbers, which is more than the error of any float64 root in use (below 2**-51).
    A float64 root, which may be off as well, is compared with its neighbours.
    """
    return _sqrt_of_float64(x) if x.dtype == torch.float64 else torch.sqrt(x.double()).float()


def _sqrt_of_float64(x: Tensor) -> Tensor:
    """``s`` or its neighbour, where the exact ``m - s**2`` says that the root lies beyond the middle to it."""
    usual = torch.isfinite(x) & (x > 0)
    m, e = torch.frexp(torch.where(usual, x, torch.ones_like(x)))
    odd = e & 1
    m, e = torch.where(odd == 1, m * 2, m), (e - odd) // 2  # m from 0.5 to 2, so that nothing is lost below
    s = torch.sqrt(m)
    high = s * 134217729.0  # 2**27 + 1: Veltkamp's split, then Dekker's exact square
    high = high - (high - s)
    low = s - high
    square = s * s
    left = (m - square) - (((high * high - square) + 2 * high * low) + low * low)
    above = torch.nextafter(s, torch.full_like(s, 4.0))
    below = torch.nextafter(s, torch.zeros_like(s))
    s = torch.where(left > s * (above - s), above, torch.where(left <= s * (below - s), below, s))
    return torch.where(usual, torch.ldexp(s, e), torch.sqrt(x))


def canonical_rstd(x32: Tensor, n: int, epsilon: float) -> Tensor:
    """Return ``1 / sqrt(mean(x32[..., :n] ** 2) + epsilon)`` as float32 ``[..., 1]``, in the canonical order.

    ``x32`` is float32 ``[..., D]`` with ``n <= D``; ``epsilon`` is rounded to float32. The square is rounded before
    it is added, and the division by ``n``, the root and the reciprocal are each correctly rounded.
    """
    head = x32 if n == x32.shape[-1] else x32[..., :n]
    mean = canonical_mean(head * head)
    root = exact_sqrt(mean + torch.full_like(mean, epsilon))
    return torch.ones_like(root) / root
