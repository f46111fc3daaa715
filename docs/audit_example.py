# SPDX-License-Identifier: Apache-2.0
"""Models for docs/audit.md: one whose products depend on the batch on most machines, and two that never vary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A feed-forward block with a norm; ``round_to`` makes every product exact, whatever its order."""

    def __init__(self, round_to: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.round_to = round_to
        self.norm, self.act = nn.LayerNorm(256), nn.SiLU()
        self.up, self.down = nn.Linear(256, 512), nn.Linear(512, 256)
        for parameter in self.parameters():
            parameter.data = self.rounded(parameter.data)

    def rounded(self, x: Tensor) -> Tensor:
        return (x / self.round_to).round() * self.round_to if self.round_to else x

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.rounded(self.act(self.up(self.rounded(self.norm(x))))))


def block() -> tuple[nn.Module, tuple[Any, ...]]:
    """The block and 32 rows."""
    return Block(), (torch.randn(32, 256, generator=torch.Generator().manual_seed(1)),)


def exact() -> tuple[nn.Module, tuple[Any, ...]]:
    """The same with values of few bits, so that no sum is rounded."""
    return Block(1 / 64), (torch.randn(32, 256, generator=torch.Generator().manual_seed(1)),)


def whole() -> tuple[nn.Module, tuple[Any, ...]]:
    """Products of whole numbers, and nothing that a compiler may approximate."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    for parameter in model.parameters():
        parameter.data = (parameter.data * 8).round()
    return model, (torch.arange(2048.0).view(32, 64) % 5,)
