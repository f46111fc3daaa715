# SPDX-License-Identifier: Apache-2.0
"""From named arguments to the flat list that a kernel takes.

Names are resolved once, when a launch is prepared: the function made then has the arguments that change as its
parameters, and the others written into it. A call packs and looks up nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ir_core import codegen

Launch = Callable[..., None]
"""``launch(programs, *the arguments that change)``: by position, in the order in which they were named, or by name."""


class Arrangement:
    """The runtime arguments of one kernel: which of them change, and what the others are."""

    __slots__ = ("_given", "_source")

    def __init__(self, names: Sequence[str], given: Sequence[str], fixed: Mapping[str, int | str]) -> None:
        """Resolve every argument of a kernel.

        Args:
            names: the kernel's runtime arguments, in its order.
            given: those that change from call to call, in the order in which a caller gives them.
            fixed: the others: an integer, or the name of a given argument whose value is repeated.

        Raises:
            TypeError: an argument is missing, is named twice, or is none of the kernel's; or a repeated one is not
                given.
        """
        wrong = {
            "missing": [name for name in names if name not in given and name not in fixed],
            "named twice": sorted({name for name in given if name in fixed or given.count(name) > 1}),
            "unknown to the kernel": [name for name in (*given, *fixed) if name not in names],
            "repeated and not given": [
                value for value in fixed.values() if isinstance(value, str) and value not in given
            ],
        }
        if any(wrong.values()):
            what = "; ".join(f"{problem}: {', '.join(found)}" for problem, found in wrong.items() if found)
            raise TypeError(f"a kernel's arguments do not fit ({what}). It takes {', '.join(names)}.")
        self._given = tuple(given)
        self._source = ", ".join(str(fixed.get(name, name)) for name in names)

    def function(self, body: Sequence[str], space: dict[str, Any]) -> Launch:
        """The function ``launch(programs, *given)``.

        Args:
            body: its lines; ``{arguments}`` in them stands for all arguments of the kernel in its order, separated by
                commas.
            space: what the names marked with ``$`` in the body stand for, unless they are local.
        """
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in self._given])
        lines = [line.replace("{arguments}", self._source) for line in body]
        made: Launch = codegen.build("launch", "programs", signature, lines, space)
        return made
