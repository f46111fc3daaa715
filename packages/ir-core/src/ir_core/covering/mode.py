# SPDX-License-Identifier: Apache-2.0
"""``batch_invariant_mode``: torch's own functions go to ops for a block, in this thread and task.

``mode.py`` sees the calls; ``table.py`` says what becomes of each function; ``presence.py`` keeps the mode where a
block is open; ``compiling.py`` makes compiled graphs right. Dynamo traces through the mode, so that a compiled graph
holds the ops that the eager calls would have run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar, cast

import torch
from torch.overrides import TorchFunctionMode

from ir_core import enabling
from ir_core import policy as policies
from ir_core.covering.compiling import covering, covering_in_graph
from ir_core.covering.presence import _PRESENCES, Presence
from ir_core.covering.table import COVERS, WRAPPED, notice
from ir_core.enabling import Enabled
from ir_core.policy import Policy

F = TypeVar("F", bound=Callable[..., Any])


class Covering(TorchFunctionMode):
    """Sends calls to their covers. While it handles one, torch has taken it off the stack: covers see plain torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        compiling = torch.compiler.is_compiling()
        if not (covering_in_graph() if compiling else covering()):
            return func(*args, **kwargs)
        cover = (compiling and WRAPPED.get(getattr(func, "__name__", ""))) or COVERS.get(func)
        if cover is not None:
            return cover(*args, **kwargs)
        notice(func)
        return func(*args, **kwargs)


PRESENCE: Final = Presence(Covering())
_PRESENCES.append(PRESENCE)
policies.on_covering_scope(PRESENCE.block)


class batch_invariant_mode:  # noqa: N801  used as a function, and as a decorator
    """Torch's own functions, eager and compiled, give bits that do not depend on the batch: inside a ``with`` block.

    ``F.linear``, ``matmul`` and its kin, reductions, softmax, norms, attention and the element-wise functions whose
    bits depend on an element's place go to ops of :mod:`ir_core.ops`, which select under the policy in force, made
    batch-invariant. It holds in this thread and task, and can be nested. Also a decorator, of functions, generators and
    coroutines. A function that is neither covered nor known to keep bits is named in a warning of the log ``ir_core``,
    once.

    Args:
        changes: further fields of :class:`ir_core.Policy`, ``strict=True`` say.

    Raises:
        UncoveredError: in a call inside the block, under a strict policy (``IR_STRICT=1``): what would be a warning.
        PolicyError: an unknown field, or contradictory values.
    """

    def __init__(self, **changes: Any) -> None:
        policies.check_fields(changes)
        self._changes = {"batch_invariant": True, "covers_torch": True, **changes}
        self._entered: list[contextlib.ExitStack] = []

    def __enter__(self) -> Policy:
        with contextlib.ExitStack() as stack:
            policy: Policy = stack.enter_context(policies.scope(**self._changes))
            self._entered.append(stack.pop_all())
        return policy

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)

    def __call__(self, function: F) -> F:
        """``function``, whose body runs inside the mode."""
        changes = self._changes
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with batch_invariant_mode(**changes):
                    return await function(*args, **kwargs)

            return cast("F", awaited)
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generated(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                return _each_step(function(*args, **kwargs), changes)

            return cast("F", generated)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with batch_invariant_mode(**changes):
                return function(*args, **kwargs)

        return cast("F", called)


def _each_step(steps: Any, changes: dict[str, Any]) -> Generator[Any, Any, Any]:
    """What the generator gives, each step inside the mode: the caller's code in between is not."""
    send, value = steps.send, None
    while True:
        try:
            with batch_invariant_mode(**changes):
                found = send(value)
        except StopIteration as end:
            return end.value
        try:
            value = yield found
            send = steps.send
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:  # handed to the generator, which may handle it
            value, send = error, steps.throw


def enable(**changes: Any) -> Enabled:
    """Change the policy of the process: every thread and task, those that run and those to come.

    A scope that is open keeps its policy. With ``batch_invariant=True`` it is also :class:`batch_invariant_mode` for
    the process: torch's own functions go to ops, in the thread that calls this at once, and in every other thread from
    the first call of an ``nn.Module`` on (a thread that calls functions alone opens a block of its own). It installs a
    hook on modules for that, of which ``torch.compile(module)`` warns.

    Args:
        changes: fields of :class:`Policy`.

    Returns:
        The change, which its ``undo()`` takes back.

    Raises:
        PolicyError: an unknown field, or contradictory values.
    """
    if not changes.get("batch_invariant"):
        return enabling.enable(**changes)
    changed = {"covers_torch": True, **changes}
    enabled = enabling.enable(**changed, undone=PRESENCE.disable if changed["covers_torch"] else None)
    if changed["covers_torch"]:
        PRESENCE.enable()
    return enabled
