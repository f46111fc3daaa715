# SPDX-License-Identifier: Apache-2.0
"""``ir_core.patch(model)``: modules that call ops, for those who prefer modules to a mode.

A patched module keeps its class, parameters and hooks: it gets a ``forward`` of its own, which ``undo`` removes. It
asks for batch invariance in each call, whatever the policy in force, and covers nothing else: what the model computes
outside of these modules (attention, softmax, element-wise functions) stays torch's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from ir_core import ops
from ir_core import policy as policies
from ir_core.covering import norms, products
from ir_core.errors import ArgumentError


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    return products.linear(input, self.weight, self.bias)


def _layer_norm(self: nn.LayerNorm, input: Tensor) -> Tensor:
    return norms.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def _rms_norm(self: nn.RMSNorm, input: Tensor) -> Tensor:
    return norms.rms_norm(input, self.normalized_shape, self.weight, self.eps)


def _rms_norm_of_llama(self: Any, hidden_states: Tensor) -> Tensor:
    return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _rms_norm_of_gemma(self: Any, x: Tensor) -> Tensor:
    return ops.rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).type_as(x)


FORWARDS: Final[dict[type[nn.Module], Callable[..., Tensor]]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}
"""The forward of each of torch's classes; a subclass may compute something else, and is not swapped."""


def _forward_of(module: nn.Module) -> tuple[Callable[..., Tensor] | None, str]:
    """The forward that calls ops, or why there is none (empty where nothing was to be expected)."""
    kind = type(module)
    if kind in FORWARDS:
        return FORWARDS[kind], ""
    name = kind.__name__
    if not kind.__module__.startswith("transformers.") or not name.endswith("RMSNorm"):
        wanted = name.endswith(("Norm", "Linear")) or isinstance(module, tuple(FORWARDS))
        return None, f"{kind.__module__}.{name} is no class that is known" if wanted else ""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and hasattr(module, "variance_epsilon"):
        return _rms_norm_of_llama, ""
    if (
        isinstance(weight, Tensor)
        and hasattr(module, "eps")
        and name.startswith("Gemma")
        and "3n" not in name
    ):
        return _rms_norm_of_gemma, ""
    return None, f"{name} has neither the form of Llama's nor that of Gemma's"


@dataclass
class Patched:
    """What :func:`patch` did. ``undo()`` takes it back, once; leaving a ``with`` block over it does too.

    Attributes:
        swapped: the modules that call ops now, by name, with their classes.
        kept: the modules that were not swapped, by name, with the reason: norms and linear layers that are not
            known, and other modules with parameters of their own.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    _modules: list[nn.Module] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Give each module its own forward back."""
        while self._modules:
            del self._modules.pop().forward

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def explain(self) -> str:
        """The report as text: one line for each class, and one for each module that was kept."""
        kinds: dict[str, int] = {}
        for kind in self.swapped.values():
            kinds[kind] = kinds.get(kind, 0) + 1
        lines = [f"swapped {count} of {kind}" for kind, count in sorted(kinds.items())]
        return "\n".join(lines + [f"kept {name}: {why}" for name, why in self.kept.items()])


def patch(model: nn.Module) -> Patched:
    """Let the norms and linear layers of a model call batch-invariant ops, reversibly.

    Swapped are ``nn.Linear``, ``nn.LayerNorm``, ``nn.RMSNorm`` and the RMSNorm classes of transformers. The rest of the
    model is not touched: for a whole model there is :class:`ir_core.batch_invariant_mode`.

    Args:
        model: changed in place.

    Returns:
        What was swapped and what was not, and the way back.

    Raises:
        ArgumentError: it is no module, or one of its modules has a forward of its own already.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"patch takes an nn.Module, and this is {type(model).__name__}.")
    report = Patched()
    found = [(name, module, *_forward_of(module)) for name, module in model.named_modules()]
    for name, module, forward, _ in found:
        if forward is not None and "forward" in vars(module):
            raise ArgumentError(
                f"patch: '{name}' has a forward of its own already.",
                why="It was patched before, or by another tool, whose forward would be lost.",
                fix="Undo that first.",
            )
    for name, module, forward, why in found:
        if forward is not None:
            module.forward = types.MethodType(_invariant(forward), module)
            report.swapped[name] = type(module).__name__
            report._modules.append(module)
        elif why or next(module.parameters(recurse=False), None) is not None:
            report.kept[name] = why or f"{type(module).__name__} has no op"
    return report


def _invariant(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``forward`` under a batch-invariant policy; a graph that is compiled must be so from outside."""

    @functools.wraps(forward)
    def called(self: Any, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or policies.current().batch_invariant:
            return forward(self, input)
        with policies.scope(batch_invariant=True):
            return forward(self, input)

    return called
