# SPDX-License-Identifier: Apache-2.0
"""Which module is running, and which line of whose source: where in a model an operation was called."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules import module as hooks

_SKIPPED: Final = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
"""Whose lines are not the model's: torch's own, and the audit's."""


@dataclass(frozen=True)
class Place:
    """Where an operation was called.

    Args:
        module: path of the module from the root of the model, or the root's class.
        file: the source file that called, outside torch; empty if there is none.
        line: the line in it.
    """

    module: str
    file: str
    line: int

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.line}" if self.file else ""
        return f"{self.module} ({where})" if self.module and where else self.module or where or "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"module": self.module, "file": self.file, "line": self.line}


def source_line() -> tuple[str, int]:
    """The nearest line that is neither torch's nor the audit's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_SKIPPED) and not name.startswith("<"):
            return name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0


class Modules:
    """The stack of modules that this thread is in, while the block runs; their names from the first one met."""

    def __init__(self, model: object) -> None:
        self._names: dict[int, str] = {}
        self._stack: list[tuple[nn.Module, str]] = []
        self._thread = threading.get_ident()
        if isinstance(model, nn.Module):
            self._learn(model)

    def _learn(self, root: nn.Module) -> None:
        for name, module in root.named_modules():
            self._names.setdefault(id(module), name or type(module).__name__)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() == self._thread:
            if id(module) not in self._names:
                self._learn(module)
            self._stack.append((module, self._names[id(module)]))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() == self._thread and any(entered is module for entered, _ in self._stack):
            while self._stack.pop()[0] is not module:
                pass

    def __enter__(self) -> Modules:
        self._handles = (
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        )
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._stack.clear()

    def here(self) -> Place:
        """Where the thread is now."""
        return Place(self._stack[-1][1] if self._stack else "", *source_line())
