# SPDX-License-Identifier: Apache-2.0
"""``ir-core explain``: which implementation a call would run, and why no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ir_core.cli import options, output
from ir_core.cli.exits import ERROR, FINDING
from ir_core.errors import LockError

if TYPE_CHECKING:
    from ir_core.selection import Selection


def explain(
    op: options.OpName,
    shape: options.Shape = "4x4096",
    dtype: options.Dtype = "bfloat16",
    device: options.Device = None,
    weight_dtype: options.WeightDtype = None,
    batch_invariant: options.BatchInvariant = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer",
            help="Priority list, as if set for this op.",
            autocompletion=options.complete_priority,
            metavar="PROVIDER,PROVIDER",
        ),
    ] = None,
    arg: options.Assign = None,
    json: options.Json = False,
) -> None:
    """Show which implementation a call would run, and for every other one why not.

    Nothing runs: the arguments are described, not made, so the device need not be here (see IR_TARGET). Exits with
    1 when no implementation qualifies, with 3 when IR_LOCK names another one than would run.
    """
    import torch

    from ir_core import lock_file, platforms, policy
    from ir_core.cli import arguments
    from ir_core.op import get_op
    from ir_core.policy import OpPolicy
    from ir_core.resolve import select

    found = get_op(op)
    where = options.parse_device(device)
    args = arguments.fake_arguments(
        found,
        options.parse_shape(shape),
        options.parse_dtype(dtype),
        where,
        weight_dtype=options.parse_dtype(weight_dtype) if weight_dtype else None,
        given=options.parse_assignments(arg),
    )
    asked = policy.current()
    if prefer is not None:
        asked = asked.with_op(found.name, OpPolicy(prefer=tuple(filter(None, prefer.split(",")))))
    changes = {} if batch_invariant is None else {"batch_invariant": batch_invariant}
    with policy.scope(asked, **changes) as requirement:
        target = platforms.target_of(torch.device(where))
        selection = select(found, requirement, target, args)
    if target not in platforms.targets():
        output.note(f"{where} is not here; IR_TARGET=sm90, for example, says what it would be.")
    described = arguments.describe(found, args)
    refused: LockError | None = None
    try:
        if selection.chosen is not None:
            lock_file.check(found.impls[selection.provider])
    except LockError as error:  # as a call would
        refused = error
    if json:
        lock = None if refused is None else str(refused)
        output.print_json({**selection.to_dict(), "arguments": described, "lock": lock})
    else:
        show(selection, described)
    if refused is not None:
        output.show_error(refused, as_json=False)
        raise typer.Exit(ERROR)
    if selection.chosen is None:
        raise typer.Exit(FINDING)


def show(selection: Selection, arguments: dict[str, str]) -> None:
    """Print a selection as a table."""
    console = output.out()
    console.print(
        f"{selection.op}({', '.join(f'{name}: {text}' for name, text in arguments.items())})", markup=False
    )
    console.print(f"on {selection.target.describe()}, requirement: {selection.requirement}", markup=False)
    rows = [
        (
            output.styled("->", "bold green") if candidate.chosen else "",
            output.styled(candidate.provider, "bold" if candidate.chosen else ""),
            f"{candidate.distribution} {candidate.version}".strip(),
            candidate.reason,
        )
        for candidate in selection.candidates
    ]
    console.print(output.table("", "provider", "distribution", "reason", rows=rows))
    if selection.chosen is None:
        output.talk().print("No implementation qualifies.", style="bold red")
