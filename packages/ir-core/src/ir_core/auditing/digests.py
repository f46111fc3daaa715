# SPDX-License-Identifier: Apache-2.0
"""A few bytes that stand for a tensor's bits, the same on every device and with every version of torch.

Each element's bits are mixed with its position and the results are added, in integers that wrap around: the sum has no
order, so a GPU and a CPU agree.
"""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import Tensor

from ir_core.verification.bits import as_bits

ROWS: Final = 64
"""A tensor whose first dimension is at most this long has a digest for each of its rows; any other has one."""
_CHUNK: Final = 1 << 22
"""Elements at a time: 32 MiB of integers."""
# Odd, of no structure, and below 2**63.
_POSITION: Final = 0x1E3779B97F4A7C15
_FIRST: Final = 0x3F58476D1CE4E5B9
_SECOND: Final = 0x14D049BB133111EB


def digests(tensor: Tensor) -> tuple[str, ...]:
    """A digest for each row of ``tensor``, or one for all of it."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    rows = tensor.shape[0] if tensor.dim() and 0 < tensor.shape[0] <= ROWS else 1
    bits = as_bits(tensor).reshape(rows, -1)
    sums = torch.zeros(rows, dtype=torch.int64, device=tensor.device)
    step = max(1, _CHUNK // rows)
    for start in range(0, bits.shape[1], step):
        value = bits[:, start : start + step].long()
        at = torch.arange(start, start + value.shape[1], device=value.device)
        value = (value ^ (at * _POSITION)) * _FIRST
        value = (value ^ (value >> 31)) * _SECOND
        sums += (value ^ (value >> 29)).sum(1)
    head = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return tuple(
        hashlib.sha256(head + total.to_bytes(8, "little", signed=True)).hexdigest()[:12]
        for total in sums.tolist()
    )
