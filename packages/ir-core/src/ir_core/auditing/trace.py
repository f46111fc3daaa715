# SPDX-License-Identifier: Apache-2.0
"""A run that is written down: each operation with shapes, strides, plain arguments, and where its inputs came from."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from ir_core.auditing.calls import Call, Step
from ir_core.auditing.watch import Watch


class Sources:
    """Which step made a tensor object."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], tuple[int, int]]] = {}

    def made(self, tensor: Tensor, step: int, output: int) -> None:
        """Remember that this step made it."""
        self._made[id(tensor)] = weakref.ref(tensor), (step, output)

    def find(self, tensor: Tensor) -> tuple[int, int] | None:
        """The last step that made it, or overwrote it; nothing if it was there before."""
        ref, at = self._made.get(id(tensor), (None, (0, 0)))
        return at if ref is not None and ref() is tensor else None


class Trace(Watch):
    """Writes down the steps of one run. What was there before it (weights, above all) is referred to, not copied."""

    def __init__(self, model: object, inputs: list[Tensor]) -> None:
        super().__init__(model)
        self.steps: list[Step] = []
        self.sources = Sources()
        self.externals: dict[tuple[int, int], Tensor] = {}
        for i, tensor in enumerate(inputs):
            self.sources.made(tensor, -1, i)

    def see(self, call: Call) -> Any:
        found = {
            i: source
            for i, leaf in enumerate(call.leaves)
            if isinstance(leaf, Tensor) and (source := self.sources.find(leaf)) is not None
        }
        for i, leaf in enumerate(call.leaves):
            if isinstance(leaf, Tensor) and i not in found:
                self.externals[len(self.steps), i] = leaf
        result = call.run()
        step = Step.of(call, result)
        step.sources = found
        for i, out in enumerate(call.effects(result)):
            self.sources.made(out, len(self.steps), i)
        self.steps.append(step)
        return result

    def result_sources(self, results: list[Tensor]) -> list[tuple[int, int] | None]:
        """Which step made each of the model's results."""
        return [self.sources.find(tensor) for tensor in results]
