# SPDX-License-Identifier: Apache-2.0
"""Comparing results by their bits.

Numbers are compared as integers: +0 and -0 differ, and so do two numbers one unit in the last place apart. A NaN
equals every NaN: IEEE 754 leaves its sign and payload open, and processors choose them by operand order, which a
vector loop and its remainder may not share. Where a NaN stands does count.
"""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import Tensor

_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """The bits of ``tensor`` as integers of the same width and shape, every NaN as -1."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor.detach().contiguous()
    integers = tensor.view(_INTEGERS[tensor.element_size()])
    if not tensor.dtype.is_floating_point:
        return integers
    nan = torch.isnan(tensor if tensor.element_size() > 1 else tensor.float())
    return integers.masked_fill(nan, -1)


def show(tensor: Tensor, row: int, column: int) -> str:
    """One element of a matrix of results, as a number and in hexadecimal."""
    value = tensor[row, column]
    width = 2 * value.element_size()
    raw = int(value.reshape(1).contiguous().view(_INTEGERS[value.element_size()]).item())
    return f"{value.item()!r} (0x{raw & (1 << 4 * width) - 1:0{width}x})"


def row_digests(outputs: list[Tensor]) -> list[str]:
    """One short digest a row, over all outputs; each output is a matrix with a row for each row of the batch."""
    parts = [as_bits(out).cpu().numpy() for out in outputs]
    return [
        hashlib.sha256(b"".join(p[row].tobytes() for p in parts)).hexdigest()[:16]
        for row in range(len(parts[0]))
    ]
