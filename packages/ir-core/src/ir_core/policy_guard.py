# SPDX-License-Identifier: Apache-2.0
"""The policy as a guard of a compiled graph: what was selected for one policy never runs under another.

A scope lives in a context variable, which Dynamo of torch 2.11 to 2.13 cannot trace, and guards on values that traced
code reads from an object would miss threads and tasks. So a guard of our own is put among those of the graph: a
function that Dynamo calls, in the caller's thread and task, before each run of the compiled code. Under another policy
it is false: Dynamo then takes the graph of that policy, compiles one, or raises where the user forbade compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from ir_core import policy as policies
from ir_core.policy import Policy

if TYPE_CHECKING:
    from torch._guards import Guard

GUARD_TYPE: Final = "ir_core_policy"
"""The name of the guard, ``guard_type`` of an entry that a ``guard_filter_fn`` is given."""

_ON_CONTEXT: Final = "_ir_core_policy"


def pin() -> Policy:
    """The policy of the graph that is being compiled, and a guard that holds the graph to it.

    The first call while a graph is compiled takes the policy in force; later ones get the same, also for the backward,
    which is compiled when the scope may have ended. Outside of a compilation: the policy in force.
    """
    context = torch._guards.TracingContext.try_get()
    if context is None:
        return policies.current()
    kept: Policy | None = getattr(context, _ON_CONTEXT, None)
    if kept is None:
        kept = policies.current()
        setattr(context, _ON_CONTEXT, kept)
        _install(context, kept)
    return kept


def _install(context: Any, pinned: Policy) -> None:
    from torch._dynamo.source import GlobalStateSource
    from torch._guards import Guard

    # A partial of a function of this module, so that a precompiled graph can be stored with its guards.
    context.guards_context.dynamo_guards.add(
        Guard(GlobalStateSource(), functools.partial(ir_core_policy, pinned=pinned)),
        collect_debug_stack=False,
    )


def ir_core_policy(builder: Any, guard: Guard, *, pinned: Policy) -> None:
    """Add the check to the guards that Dynamo builds; called by Dynamo, which shows this name to filters."""
    scope, default = policies.innermost_scope, policies.default

    def unchanged(_: object) -> bool:
        block = scope()
        here = default() if block is None else block.value
        return here is pinned or here == pinned

    why = f"the policy in force is no longer that of this graph: {pinned}"
    guard.guard_types = [GUARD_TYPE]
    guard.code_list = [why]
    builder.guard_manager.root.add_lambda_guard(unchanged, [why], None)


def keep(chosen: Callable[[Sequence[Any]], Sequence[bool]]) -> Callable[[Sequence[Any]], Sequence[bool]]:
    """A ``guard_filter_fn`` that drops what ``chosen`` drops, except for the guard of the policy."""

    def filtered(entries: Sequence[Any]) -> list[bool]:
        return [
            bool(kept) or entry.guard_type == GUARD_TYPE
            for kept, entry in zip(chosen(entries), entries, strict=True)
        ]

    return filtered
