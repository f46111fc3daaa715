# SPDX-License-Identifier: Apache-2.0
"""Which operation inside a module, or between two modules, gave a row other bits: torch operations and Triton kernels.

Operations are judged as modules are, by contents: the rows of the inputs of the nth operation since a module began, or
since it ended, and the rows of its outputs. This explains a difference that the tap has found; it finds none itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ir_core.auditing.calls import Call
from ir_core.auditing.watch import Watch
from ir_vllm_adapter.probing import rows


@dataclass(frozen=True)
class Operation:
    """An operation that ran.

    Args:
        name: namespace and name, ``aten.mm``.
        place: source file and line that called it.
        differs: whether a row had other bits; ``None`` where no row could be compared.
        other: whether no reference run called such an operation in this section.
    """

    name: str
    place: str
    differs: bool | None
    other: bool = False

    def __str__(self) -> str:
        said = f"{self.name} ({self.place})" if self.place else self.name
        return f"{said}, which is not called for a row alone" if self.other else said


class Operations(Watch):
    """Sees every operation of a thread, inside :meth:`running`.

    Attributes:
        total: rows of the call that is going on; the tap sets it.
        reference: whether what is called is remembered as the program's usual path; the tap sets it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.total = 0
        self.reference = True
        self._usual: dict[str, set[str]] = {}
        self._seen: dict[tuple[str, int, str], dict[int, int]] = {}
        self._sections: list[tuple[str, list[Operation], list[str]]] = [("", [], [])]

    # -- sections: inside a module, or after one ---------------------------------------------------------

    def enter(self, module: str) -> None:
        """A watched module begins."""
        self._sections.append((module, [], []))

    def leave(self, module: str) -> None:
        """It ends: what follows lies between modules."""
        if len(self._sections) > 1:
            self._sections.pop()
        self._sections[-1] = (f"after {module}", [], [])
        if self.reference:  # known, also where nothing is called in it
            self._usual.setdefault(f"after {module}", set())

    def begin(self) -> None:
        """A forward pass begins."""
        self._sections = [("", [], [])]

    def culprit(self) -> str:
        """The first operation of this section that differs; else what it ran that torch does not see into."""
        _, operations, kernels = self._sections[-1]
        launched = [f"Triton {', '.join(dict.fromkeys(kernels))}"] if kernels else []
        found = next((op for op in operations if op.differs or op.other), None)
        if found is not None:
            return str(found) if found.name.startswith("aten.") else "; ".join([str(found), *launched])
        # An operation that fills a tensor which it is given has never seen the bits that lay there before.
        opaque = dict.fromkeys(str(op) for op in operations if not op.name.startswith(("aten.", "prim.")))
        return "; ".join([*opaque, *launched])

    # -- seeing ------------------------------------------------------------------------------------------

    def see(self, call: Call) -> Any:
        section, operations, _ = self._sections[-1]
        given = list(rows.tensors((call.args, call.kwargs)))
        mine = rows.rowed(given, self.total) if self.total else []
        keys = rows.keys(mine, self.total) if mine else None
        result = call.run()
        differs = None
        if keys is not None:
            out = rows.rowed(
                [*rows.tensors(result), *(call.leaves[i] for i in sorted(call.written()))], self.total
            )
            differs = self._differs((section, len(operations), call.name), keys, out)
        place = f"{os.path.basename(call.place.file)}:{call.place.line}" if call.place.file else ""
        operations.append(Operation(call.name, place, differs, self._is_other(section, call.name)))
        return result

    def _is_other(self, section: str, name: str) -> bool:
        if self.reference:
            self._usual.setdefault(section, set()).add(name)
            return False
        return section in self._usual and name not in self._usual[section]

    def _differs(self, where: tuple[str, int, str], keys: Any, outputs: list[Tensor]) -> bool | None:
        if not outputs:
            return None
        answers = np.zeros(self.total, dtype=np.int64)
        for output in outputs:
            answers = rows.mix(answers, rows.digests(output))
        table = self._seen.setdefault(where, {})
        differs = None
        for key, answer in zip(keys.tolist(), answers.tolist(), strict=True):
            if (there := table.setdefault(key, answer)) != answer:
                return True
            differs = False if there == answer else differs
        return differs

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._seeing_kernels(), super().running():
            yield

    @contextlib.contextmanager
    def _seeing_kernels(self) -> Iterator[None]:
        """Remember the names of Triton kernels as they are launched, compiled or interpreted."""
        try:
            from triton.runtime.interpreter import InterpretedFunction
            from triton.runtime.jit import JITFunction
        except ImportError:
            yield
            return
        originals = [(kind, kind.run) for kind in (JITFunction, InterpretedFunction)]

        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
                self._sections[-1][2].append(str(getattr(kernel.fn, "__name__", kernel)))
                return original(kernel, *args, **kwargs)

            return run

        for kind, original in originals:
            kind.run = around(original)
        try:
            yield
        finally:
            for kind, original in originals:
                kind.run = original
