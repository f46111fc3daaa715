# SPDX-License-Identifier: Apache-2.0
"""What holds for every run of an audit: no gradients, the same random numbers, and results as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Progress = Callable[[float, str], None]
"""Called with the share that is done and the module that runs."""

SEED: Final = 20
"""Every run starts with this seed, so that random numbers alone make no two runs of the same rows differ."""


def isolated(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """No gradients, and the stream of random numbers is afterwards where it was."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    devices = {t.device.index for t in tensors if t.device.type == "cuda"}
    stack.enter_context(torch.random.fork_rng(devices=[i for i in devices if i is not None]))
    return stack


def result_tensors(result: Any) -> list[Tensor]:
    """The tensors in what a model returned; of an object that torch cannot take apart, those in its attributes."""
    found = []
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | torch.nn.Module):
            found += [value for value in vars(leaf).values() if isinstance(value, Tensor)]
    return found


def quiet(share: float, doing: str) -> None:
    """No progress."""
