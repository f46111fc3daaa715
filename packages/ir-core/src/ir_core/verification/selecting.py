# SPDX-License-Identifier: Apache-2.0
"""The selection probe: adding rows, or laying them out differently, must not change what runs.

Rank, dtypes, the last dimension and its stride are static facts; calls that differ in them are not compared. The
stride of a last dimension of size 1 is no fact: torch sets it to anything, by how many rows there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ir_core.errors import PredicateError, SelectionError
from ir_core.policy import OpPolicy, Policy
from ir_core.resolve import select
from ir_core.selection import no_evidence
from ir_core.verification.calls import Call
from ir_core.verification.layouts import LAYOUTS
from ir_core.verification.outcome import PASSED, Failed, Outcome

if TYPE_CHECKING:
    from ir_core.verification.subject import Subject

ROWS = (1, 2, 3, 8, 33, 64, 256, 300, 1024)
LAYOUT_NAMES = tuple(name for name in LAYOUTS if name != "column_strided")


def _rows_of_one_column(subject: Subject, call: Call) -> list[list[Any]]:
    """Arguments of one column, whose stride is what the layout happens to leave: 1, or the number of rows."""
    plain = subject.arguments(call)
    turned = list(plain)
    for position in subject.op.activation_indices:
        arg = turned[position]
        if isinstance(arg, Tensor) and arg.dim() == 2 and arg.shape[-1] == 1:
            turned[position] = arg.as_strided(arg.shape, (1, max(arg.shape[0], 2)))
    return [plain, turned]


def selection(subject: Subject, call: Call) -> Outcome:
    """Whether the choice is the same for every number of rows and layout, in the setting of ``call``."""
    impl, op = subject.impl, subject.op
    policy = Policy(
        batch_invariant=impl.batch_invariant,
        ops=((op.name, OpPolicy(prefer=(impl.provider,))),),
        vouched=frozenset({"*"}),
    )
    seen: dict[Any, tuple[str | None, str]] = {}
    for rows in ROWS:
        arguments: list[tuple[str, list[Any]]] = []
        if call.hidden == 1:
            arguments = [(f"{rows} rows", args) for args in _rows_of_one_column(subject, call.but(rows=rows))]
        else:
            for layout in LAYOUT_NAMES if rows <= 33 else LAYOUT_NAMES[:2]:
                arguments.append(
                    (f"{rows} rows, {layout}", subject.arguments(call.but(rows=rows, layout=layout)))
                )
        for what, args in arguments:
            for _ in range(2):  # a predicate with a memory answers differently the second time
                choice = _choice(subject, policy, args)
                if choice.startswith("its predicate is broken"):
                    return Failed(f"{choice} ({what})")
                known = seen.setdefault(_facts(args), (choice, what))
                if known[0] != choice:
                    return Failed(f"{known[1]}: {known[0]}; {what}: {choice}")
    return PASSED


def _facts(args: list[Any]) -> Any:
    return tuple(
        (a.dtype, a.dim(), a.shape[-1] if a.dim() else 0) if isinstance(a, Tensor) else a for a in args
    )


def _choice(subject: Subject, policy: Policy, args: list[Any]) -> str:
    try:
        refused = subject.impl.refusal(args, [])
    except PredicateError as error:
        return f"its predicate is broken: {error.what} {error.why}".strip()
    try:
        chosen = select(subject.op, policy, subject.target, args, evidence=no_evidence, full=False).provider
    except SelectionError:
        chosen = "nothing"
    taken = "taken" if refused is None else f"refused ({refused})"
    return f"{subject.impl.provider} is {taken}, {chosen} is selected"


def one_column(subject: Subject, dtype: str) -> Call | None:
    """The call of rows of one element, if the op's inputs have such."""
    call = Call(dtype, 1, rows=2, seed=subject.seed)
    try:
        args = subject.arguments(call)
    except Exception:  # the op's generator has no such input
        return None
    first = args[subject.op.activation_indices[0]]
    return call if isinstance(first, torch.Tensor) and first.shape[-1] == 1 else None
