# SPDX-License-Identifier: Apache-2.0
"""What is known of the worker of this process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final


@dataclass
class State:
    """What is known of the worker of this process.

    Args:
        started: whether a worker's device was set up here.
        index: its device index.
        loaded: whether a model was loaded.
        layers: norm-like layer classes of the loaded model and how many there are of each.
        compiled: whether the model runs compiled.
    """

    started: bool = False
    index: int | None = None
    loaded: bool = False
    layers: Counter[str] = field(default_factory=Counter)
    compiled: bool = False


STATE: Final = State()
