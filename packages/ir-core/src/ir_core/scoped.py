# SPDX-License-Identifier: Apache-2.0
"""A value that holds inside a block, in one thread and task, whatever order overlapping blocks end in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Block(NamedTuple):
    value: object
    key: object
    outer: _Block | None


class Scoped(Generic[T]):
    """The values of the blocks that are open here, the innermost in force.

    A context variable's own tokens restore what was there when a block was entered; with blocks that overlap (two
    generators, an ``ExitStack`` closed early) that brings back a block that has ended. So each block takes out
    itself, and only itself. A thread starts outside of every block; a task starts inside those of its maker.
    """

    def __init__(self, name: str) -> None:
        self._blocks: ContextVar[_Block | None] = ContextVar(name, default=None)
        self.innermost: Callable[[], Any] = self._blocks.get
        """The innermost open block, whose ``value`` is in force, or ``None``: what :meth:`get` costs, less a call."""

    def get(self) -> T | None:
        """The value of the innermost open block, or ``None`` outside of all."""
        block = self._blocks.get()
        return None if block is None else block.value  # type: ignore[return-value]

    @contextlib.contextmanager
    def block(self, value: T) -> Iterator[T]:
        """``value`` is in force inside the ``with`` block."""
        key = object()
        self._blocks.set(_Block(value, key, self._blocks.get()))
        try:
            yield value
        finally:
            self._blocks.set(_without(self._blocks.get(), key))


def _without(block: _Block | None, key: object) -> _Block | None:
    """The open blocks less the one with this key; as they are when it is not among them (another context)."""
    if block is None or block.key is key:
        return None if block is None else block.outer
    outer = _without(block.outer, key)
    return block if outer is block.outer else block._replace(outer=outer)
