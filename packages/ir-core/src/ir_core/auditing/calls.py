# SPDX-License-Identifier: Apache-2.0
"""One call of an operation, and what a run remembers of it: metadata, never contents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ir_core.auditing.place import Place


class CompiledGraph:
    """A graph that Inductor compiled, as an operation on a list of inputs."""

    def __init__(self, graph: Any, run: Callable[..., Any]) -> None:
        self._graph, self._run = graph, run
        self.writes = frozenset(getattr(graph, "mutated_input_idxs", ()) or ())

    def __call__(self, *inputs: Any) -> Any:
        return self._run(self._graph, list(inputs))

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """Names of the generated kernels and library calls in it, in order, as far as its source can be read."""
        try:
            source = self._graph.source_code or ""
        except AttributeError:
            return ()
        calls = re.findall(
            r"^ +(?:extern_kernels\.(\w+)\(|(\w+?)(?:\.run)?\(.*(?:buf|arg))", source, re.MULTILINE
        )
        names = [extern or own for extern, own in calls]
        return tuple(name for name in names if name.startswith(("cpp_", "triton_")) or name in _LIBRARY)


_LIBRARY = {"mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm"}


@dataclass(frozen=True)
class Meta:
    """A tensor without its contents."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Meta:
        """What is known of ``tensor`` besides its contents."""
        plain = tensor.layout == torch.strided
        return cls(tuple(tensor.shape), tensor.stride() if plain else (), tensor.dtype, tensor.device)


@dataclass
class Call:
    """One call as it comes."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place

    def __post_init__(self) -> None:
        self.leaves: list[Any] = []
        self.spec = _flatten((self.args, self.kwargs), self.leaves)

    @classmethod
    def of(cls, step: Step, leaves: list[Any]) -> Call:
        """The call that a step remembers, of these arguments."""
        args, kwargs = _rebuild(step.spec, iter(leaves))
        return cls(step.func, args, kwargs, step.place)

    def run(self) -> Any:
        """What the operation returns."""
        return self.func(*self.args, **self.kwargs)

    @property
    def name(self) -> str:
        """Namespace and name without the overload: ``aten.mm``."""
        return name_of(self.func)

    def rebuilt(self, leaves: list[Any], func: Any = None) -> Call:
        """The same call of other arguments."""
        args, kwargs = _rebuild(self.spec, iter(leaves))
        return Call(func or self.func, args, kwargs, self.place)

    def written(self) -> frozenset[int]:
        """Positions among the leaves of the tensors that the call overwrites."""
        if isinstance(self.func, CompiledGraph):
            return self.func.writes
        schema = getattr(self.func, "_schema", None)
        if schema is None or not schema.is_mutable:
            return frozenset()
        names = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        positional = [argument.name for argument in schema.arguments]
        found: set[int] = set()
        at = 0
        for name, value in [*zip(positional, self.args, strict=False), *self.kwargs.items()]:
            inside: list[Any] = []
            _flatten(value, inside)
            width = len(inside)
            if name in names:
                found.update(range(at, at + width))
            at += width
        return frozenset(i for i in found if isinstance(self.leaves[i], Tensor))

    def effects(self, result: Any) -> list[Tensor]:
        """The tensors that it returned, and those it overwrote without returning them."""
        found = tensors(result)
        overwritten = [self.leaves[i] for i in sorted(self.written())]
        return found + [leaf for leaf in overwritten if not any(leaf is out for out in found)]

    @property
    def may_be_random(self) -> bool:
        """Whether torch says that it may take random numbers."""
        return torch.Tag.nondeterministic_seeded in getattr(self.func, "tags", ())


def name_of(func: Any) -> str:
    """Namespace and name without the overload: ``aten.mm``."""
    if isinstance(func, CompiledGraph):
        return "compiled graph"
    packet = str(getattr(func, "overloadpacket", func))
    return packet.replace("::", ".")


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a result."""
    leaves: list[Any] = []
    _flatten(value, leaves)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """Collect what is in tuples, lists and mappings, and return the structure. Nothing else nests in arguments."""
    if isinstance(value, tuple | list):
        return type(value) is tuple, tuple([_flatten(item, leaves) for item in value])
    if isinstance(value, dict):
        return tuple(value), tuple([_flatten(item, leaves) for item in value.values()])
    leaves.append(value)
    return None


def _rebuild(spec: Any, leaves: Iterator[Any]) -> Any:
    if spec is None:
        return next(leaves)
    kind, inside = spec
    items = [_rebuild(item, leaves) for item in inside]
    if isinstance(kind, tuple):
        return dict(zip(kind, items, strict=True))
    return tuple(items) if kind else items


@dataclass
class Step:
    """What a run remembers of one call.

    Args:
        leaves: its arguments, flattened; a tensor as its :class:`Meta`.
        outputs: the tensors it returned or overwrote.
        sources: for each leaf that an earlier step made, that step and the place among its outputs; the model's own
            inputs are those of step -1.
    """

    func: Any
    name: str
    place: Place
    leaves: list[Any]
    spec: Any
    outputs: list[Meta]
    sources: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What two runs of one program have in common here. Whole numbers may follow the rows; others may not."""
        numbers = " ".join(repr(leaf) for leaf in self.leaves if isinstance(leaf, float | bool | str))
        return self.name, self.place.module, self.place.line, numbers

    @classmethod
    def of(cls, call: Call, result: Any) -> Step:
        """The metadata of a call that was run."""
        leaves = [Meta.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
        outputs = [Meta.of(out) for out in call.effects(result)]
        return cls(call.func, call.name, call.place, leaves, call.spec, outputs)
