# SPDX-License-Identifier: Apache-2.0
"""The policy for the whole process, and for a function that another thread runs.

A scope holds in its own thread and task: a thread that is started inside begins outside of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from ir_core import policy as policies
from ir_core.policy import Policy

P = ParamSpec("P")
R = TypeVar("R")


class Enabled:
    """What :func:`enable` changed. ``undo()`` takes it back, once; leaving a ``with`` block over it does too."""

    def __init__(self, change: Callable[[Policy], Policy], undone: Callable[[], None] | None = None) -> None:
        self._change: Callable[[Policy], Policy] | None = change
        self._undone = undone

    def undo(self) -> None:
        """Take the change back; changes that were made since stay."""
        change, self._change = self._change, None
        if change is not None:
            policies.forget_change(change)
            if self._undone is not None:
                self._undone()

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


def enable(*, undone: Callable[[], None] | None = None, **changes: Any) -> Enabled:
    """Change the default policy; ``undone`` is called when the change is taken back.

    :func:`ir_core.enable` is this, and with ``batch_invariant=True`` covers torch's functions too.

    Raises:
        PolicyError: an unknown field, or contradictory values.
    """
    policies.check_fields(changes)

    def change(old: Policy) -> Policy:
        return replace(old, **changes)

    policies.change_default(change)
    return Enabled(change, undone)


def bind_policy(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` under the policy in force here, whichever thread or task calls it.

    ``pool.submit(ir_core.bind_policy(work), x)`` and ``Thread(target=ir_core.bind_policy(work))`` take the scope along.
    """
    here = policies.current()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        with policies.scope(here):
            return function(*args, **kwargs)

    return bound
