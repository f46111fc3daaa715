# SPDX-License-Identifier: Apache-2.0
"""What is known of the worker of this process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass
class State:
    """What is known of the worker of this process.

    Args:
        started: whether a worker's device was set up here.
        index: its device index.
        worker: the worker itself.
        loaded: whether a model was loaded.
        layers: norm-like layer classes of the loaded model and how many there are of each.
        linears: its linear layers: ``linear/<dtype>`` for ours, else the class of what computes them, and how many.
        compiled: whether the model runs compiled.
        parts: the parts of a forward pass of the model (``parts.py``), without evidence.
        collecting: whether this engine was started to make evidence; a lack of it does not end its start.
    """

    started: bool = False
    index: int | None = None
    worker: Any = None
    loaded: bool = False
    layers: Counter[str] = field(default_factory=Counter)
    linears: Counter[str] = field(default_factory=Counter)
    compiled: bool = False
    parts: list[Any] = field(default_factory=list)
    collecting: bool = False


STATE: Final = State()
