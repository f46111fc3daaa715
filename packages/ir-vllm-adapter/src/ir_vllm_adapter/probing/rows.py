# SPDX-License-Identifier: Apache-2.0
"""Digests of rows: a 64-bit integer that stands for the bits of one row of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_CHUNK: Final = 1 << 22
"""Elements at a time: 32 MiB of integers."""
# Odd, of no structure, and below 2**63.
_POSITION: Final = 0x1E3779B97F4A7C15
_FIRST: Final = 0x3F58476D1CE4E5B9
_SECOND: Final = 0x14D049BB133111EB


def digests(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One integer for each row (index of the first dimension) of a tensor on any device.

    Bits are mixed with their place in the row and added, in integers that wrap around: the sum has no order.
    """
    from ir_core.verification.bits import as_bits

    rows = tensor.shape[0]
    if tensor.numel() == 0:
        return np.zeros(rows, dtype=np.int64)
    bits = as_bits(tensor if tensor.dtype != torch.bool else tensor.to(torch.uint8)).reshape(rows, -1)
    sums = torch.zeros(rows, dtype=torch.int64, device=tensor.device)
    step = max(1, _CHUNK // rows)
    for start in range(0, bits.shape[1], step):
        value = bits[:, start : start + step].long()
        at = torch.arange(start, start + value.shape[1], device=value.device)
        value = (value ^ (at * _POSITION)) * _FIRST
        value = (value ^ (value >> 31)) * _SECOND
        sums += (value ^ (value >> 29)).sum(1)
    return sums.cpu().numpy()


def mix(first: Any, second: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Combine digests; which is first counts."""
    with np.errstate(over="ignore"):
        value = np.asarray(first, dtype=np.int64) * np.int64(_FIRST) ^ np.asarray(second, dtype=np.int64)
        value = (value ^ (value >> 31)) * np.int64(_SECOND)
        return np.asarray(value ^ (value >> 29), dtype=np.int64)


def chained(
    digests_of_a_sequence: np.ndarray[Any, np.dtype[np.int64]],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each position of a sequence, a digest of everything up to it."""
    at = np.arange(len(digests_of_a_sequence), dtype=np.int64)
    with np.errstate(over="ignore"):
        return np.asarray(np.cumsum(mix(at, digests_of_a_sequence)), dtype=np.int64)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of arguments or results, in order; parameters are weights, not rows."""
    if isinstance(value, Tensor):
        if not isinstance(value, torch.nn.Parameter):
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each)


def count(given: Sequence[Tensor]) -> int:
    """How many rows a call has: the first dimension of its last tensor (positions of some models come as [3, rows])."""
    return int(given[-1].shape[0]) if given and given[-1].dim() else 0


def rowed(given: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Those of the tensors that have a row for each row of the call, rows first."""
    found = []
    for tensor in given:
        if tensor.dim() and tensor.shape[0] == rows:
            found.append(tensor)
        elif tensor.dim() == 2 and tensor.shape[1] == rows:
            found.append(tensor.t())
    return found


def keys(given: Sequence[Tensor], rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One integer for each row of a call, of all its tensors that have rows."""
    found = np.zeros(rows, dtype=np.int64)
    for tensor in rowed(given, rows):
        found = mix(found, digests(tensor))
    return found
