# SPDX-License-Identifier: Apache-2.0
"""``ir-core list``: every op and implementation that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ir_core.cli import options, output

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl


def describe(impl: IrOpImpl) -> dict[str, Any]:
    """One implementation as plain data; none of its code is imported."""
    from ir_core import platforms
    from ir_core.verification.session import conditional

    verdicts = {t.device: impl.requires.check(t) for t in platforms.targets()}
    return {
        "provider": impl.provider,
        "distribution": impl.distribution,
        "version": impl.version,
        "batch_invariant": impl.batch_invariant,
        "conditional": conditional(impl.op.name, impl.provider),
        "inplace": impl.inplace,
        "opaque": impl.opaque,
        "requires": str(impl.requires),
        "runs_here": impl.supported,
        "devices": {device: True if verdict else str(verdict) for device, verdict in verdicts.items()},
        "origin": impl.origin,
    }


def list_(
    op: Annotated[
        str | None, typer.Argument(help="Only this op.", autocompletion=options.complete_op, metavar="OP")
    ] = None,
    json: options.Json = False,
) -> None:
    """List every op and implementation that is installed, with what each claims and needs."""
    from ir_core import catalog
    from ir_core.cli.doctor_report import orphans
    from ir_core.errors import PackError
    from ir_core.op import get_op

    ops: list[dict[str, Any]] = []
    for name in [op] if op else catalog.op_names():
        try:
            found = get_op(name)
        except PackError as error:
            if op:
                raise
            output.note(error.what)
            continue
        ops.append(
            {
                "op": name,
                "schema": found.schema,
                "has_reduction": found.has_reduction,
                "implementations": [describe(impl) for impl in found.impls.values()],
            }
        )
    if json:
        output.print_json({"ops": ops})
        return
    show(ops)
    if not op:
        for failure in orphans():
            output.note(str(failure))
    output.note("batch-invariant is what the author declares; `ir-core verify OP` tries to refute it.")


WIDE = 120
"""Columns from which on everything is shown."""


def show(ops: list[dict[str, Any]]) -> None:
    """Print the implementations below the ops that they are for."""
    console = output.out()
    wide = console.width >= WIDE
    columns = ("op and provider", "distribution", "batch-invariant", "runs here", "in place", "needs")
    rows: list[tuple[Any, ...]] = []
    for entry in ops:
        rows.append((output.styled(entry["op"], "bold"), *[""] * 5))
        rows += [
            (
                f"  {impl['provider']}",
                f"{impl['distribution']} {impl['version']}".strip(),
                output.styled("conditional", "yellow")
                if impl["conditional"]
                else output.yes_no(impl["batch_invariant"]),
                output.yes_no(impl["runs_here"]),
                "yes" if impl["inplace"] else "no",
                impl["requires"],
            )
            for impl in entry["implementations"]
        ]
    shown = len(columns) if wide else 4
    console.print(output.table(*columns[:shown], rows=[row[:shown] for row in rows], unbroken=columns[:1]))
    if not wide:
        output.note(f"What each needs is left out below {WIDE} columns.")
