# SPDX-License-Identifier: Apache-2.0
"""Where the mode stands: on torch's stack of function modes in each thread in which a block is open, and nowhere else.

A function mode belongs to a thread, a policy to a task. So the mode lies on a thread's stack as long as a block that
was entered there is open, or a task lives that was made inside one; whether it does anything is asked of the task's
policy at each call. Blocks may overlap and end in any order: each takes out itself alone, and the mode goes with the
last one, from wherever it lies in the stack.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


class _Block:
    """An open block; tasks that were made inside it refer to it as well."""

    __slots__ = ("__weakref__",)


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("ir_core_covering", default=())


class _Thread(threading.local):
    def __init__(self) -> None:
        self.blocks: weakref.WeakSet[_Block] = weakref.WeakSet()
        self.enabled = False
        self.ident = threading.get_ident()


class Presence:
    """Puts one mode on the stacks of the threads that need it, and takes it off again.

    Args:
        mode: the mode. One object for all threads: it has no state of its own.
    """

    def __init__(self, mode: TorchFunctionMode) -> None:
        self._mode = mode
        self._here = _Thread()
        self._enabled = 0
        self._hook: Any = None
        self._lock = threading.Lock()

    def block(self) -> contextlib.AbstractContextManager[None]:
        """The mode is on the stack of this thread inside the ``with`` block."""
        return _Entered(self)

    def settle(self) -> None:
        """Let the stack of this thread hold the mode exactly if it is needed."""
        stack = _get_current_function_mode_stack()
        wanted = bool(self._here.blocks) or (self._here.enabled and self._enabled > 0)
        there = any(mode is self._mode for mode in stack)
        if wanted and not there:
            _push_mode(self._mode)
        elif there and not wanted:
            above = []
            while (mode := _pop_mode()) is not self._mode:
                above.append(mode)
            for mode in reversed(above):
                _push_mode(mode)

    def opened(self, block: _Block) -> None:
        """Note a block of this thread."""
        here = self._here.ident

        def gone() -> None:  # the last task that was made inside has ended
            if threading.get_ident() == here:
                self.settle()

        weakref.finalize(block, gone).atexit = False
        self._here.blocks.add(block)  # after: of the callbacks for an object the last comes first
        self.settle()

    # -- the whole process ---------------------------------------------------------------------------------

    def enable(self) -> None:
        """The mode is on the stack of this thread, and of each thread from its first call of a module on."""
        with self._lock:
            self._enabled += 1
            if self._hook is None:
                self._hook = torch.nn.modules.module.register_module_forward_pre_hook(self._on_module)
        self.join()

    def disable(self) -> None:
        """Undo one :meth:`enable`. Other threads drop the mode when they next open a block; until then it is idle."""
        with self._lock:
            self._enabled -= 1
            if not self._enabled:
                self._hook.remove()
                self._hook = None
        self.settle()

    def join(self) -> None:
        """Take part in what :meth:`enable` asked for, in this thread."""
        self._here.enabled = True
        self.settle()

    def _on_module(self, module: torch.nn.Module, args: Any) -> None:
        _join_once()


_PRESENCES: Final[list[Presence]] = []


def _join_once() -> None:
    for presence in _PRESENCES:
        if not presence._here.enabled:
            presence.join()


_join_once._dynamo_marked_constant = True  # type: ignore[attr-defined]  # no part of a compiled graph


class _Entered(contextlib.AbstractContextManager[None]):
    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._block: _Block | None = None

    def __enter__(self) -> None:
        block = self._block = _Block()
        _blocks.set((*_blocks.get(), block))
        self._presence.opened(block)

    def __exit__(self, *exception: object) -> None:
        mine, self._block = self._block, None
        _blocks.set(tuple(block for block in _blocks.get() if block is not mine))
        del mine
        self._presence.settle()
