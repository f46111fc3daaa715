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

    verdicts = {t.device: impl.requires.check(t) for t in platforms.targets()}
    return {
        "provider": impl.provider,
        "distribution": impl.distribution,
        "version": impl.version,
        "batch_invariant": impl.batch_invariant,
        "inplace": impl.inplace,
        "opaque": impl.opaque,
        "requires": str(impl.requires),
        "runs_here": impl.supported,
        "devices": {device: True if verdict else str(verdict) for device, verdict in verdicts.items()},
        "origin": impl.origin,
    }


def list_(
    op: Annotated[
        str | None, typer.Argument(help="Only this op.", autocompletion=options.complete_op, metavar="[OP]")
    ] = None,
    json: options.Json = False,
) -> None:
    """List every op and implementation that is installed, with what each claims and needs."""
    from ir_core import discovery
    from ir_core.errors import PackError

    ops: list[dict[str, Any]] = []
    for name in [op] if op else discovery.op_names():
        try:
            found = discovery.get_op(name)
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
    columns = ("op", "provider", "distribution", "batch-invariant", "in place", "runs here", "needs")
    rows = [
        (
            entry["op"] if number == 0 else "",
            impl["provider"],
            f"{impl['distribution']} {impl['version']}".strip(),
            output.yes_no(impl["batch_invariant"]),
            "yes" if impl["inplace"] else "no",
            output.yes_no(impl["runs_here"]),
            impl["requires"],
        )
        for entry in ops
        for number, impl in enumerate(entry["implementations"])
    ]
    output.out().print(output.table(*columns, rows=rows))
    output.note("batch-invariant is what the author declares; `ir-core verify OP` tries to refute it.")
