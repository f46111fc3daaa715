# SPDX-License-Identifier: Apache-2.0
"""Seeing every torch operation of a run, compiled graphs included, with the place it was called from."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ir_core.auditing.calls import Call, CompiledGraph
from ir_core.auditing.place import Modules

_lock = threading.Lock()
_watching = threading.local()
_users = 0
_original: Callable[..., Any] | None = None


class Watch(TorchDispatchMode):
    """A run under observation: :meth:`see` gets each call and returns its result.

    It counts as one of torch's own modes and lets Dynamo work: a compiled function runs its compiled code, as it does
    without an audit, and is seen as one operation.
    """

    def __init__(self, model: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = Modules(model)

    def see(self, call: Call) -> Any:
        """Run the call, and whatever the audit does with it."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.see(Call(func, args, kwargs or {}, self.modules.here()))

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch what this thread runs in the block."""
        before = getattr(_watching, "watch", None)
        with _seeing_compiled_graphs(), self.modules, self:
            _watching.watch = self
            try:
                yield
            finally:
                _watching.watch = before


@contextmanager
def _seeing_compiled_graphs() -> Iterator[None]:
    """Let calls of Inductor's graphs come by here. Only a process that has imported Dynamo can have any."""
    global _users, _original
    if "torch._dynamo" not in sys.modules:
        yield
        return
    from torch._inductor.output_code import CompiledFxGraph

    with _lock:
        if _users == 0:
            _original = CompiledFxGraph.__call__
            CompiledFxGraph.__call__ = _call_graph  # type: ignore[method-assign, assignment]
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                CompiledFxGraph.__call__ = _original  # type: ignore[method-assign, assignment]


def _call_graph(graph: Any, inputs: list[Any]) -> Any:
    original = _original
    assert original is not None
    watch: Watch | None = getattr(_watching, "watch", None)
    if watch is None:
        return original(graph, inputs)
    args = tuple(inputs)
    inputs.clear()  # the caller gives its references away
    with _disable_current_modes():
        return watch.see(Call(CompiledGraph(graph, original), args, {}, watch.modules.here()))
