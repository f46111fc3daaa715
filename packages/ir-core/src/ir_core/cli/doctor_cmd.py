# SPDX-License-Identifier: Apache-2.0
"""``ir-core doctor``: what is here, what is broken, and what would run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ir_core.cli import options, output
from ir_core.cli.exits import FINDING


def doctor(
    device: options.Device = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when something is broken.")] = False,
    json: options.Json = False,
) -> None:
    """Show versions, devices, packs (the broken ones with tracebacks), settings, certificates, and what would run."""
    from ir_core.cli import doctor_report

    report = doctor_report.collect(options.parse_device(device))
    if json:
        output.print_json(report)
    else:
        show(report)
    if strict and (report["broken"] or report["lock"]):
        raise typer.Exit(FINDING)


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    console = output.out()
    console.print(output.table("software", "version", rows=report["versions"].items()))
    console.print(
        output.table(
            "device",
            "what it is",
            "batch-invariant kernels",
            "features",
            rows=[
                (d["device"], d["describe"], d["batch_invariant_reason"], ", ".join(d["features"]))
                for d in report["devices"]
            ],
        )
    )
    for text in dict.fromkeys(n for d in report["devices"] for n in d["notes"]):
        console.print(f"note: {text}", style="dim", markup=False)
    packs = [
        (p["distribution"], p["version"], p["name"], ", ".join(p["ops"]), ", ".join(p["implementations"]))
        for p in report["packs"]
    ]
    console.print(output.table("pack", "version", "name", "new ops", "implementations", rows=packs))
    for name in report["skipped"]:
        console.print(f"{name} is installed and not allowed by IR_PACKS.", markup=False)
    for name in report["allowed_but_absent"]:
        console.print(
            f"IR_PACKS allows {name}, and there is no pack of that name.", style="yellow", markup=False
        )
    if report["lock"]:
        console.print(report["lock"], style="bold red", markup=False)
    for failure in report["broken"]:
        console.print(
            f"broken: {failure['distribution']} {failure['version']} ({failure['entry_point']})",
            style="bold red",
            markup=False,
        )
        said = f"cannot {failure['doing']}: {failure['error']}"
        console.print("\n".join(f"  {line}" for line in said.splitlines()), markup=False)
        for line in failure["traceback"].rstrip().splitlines():
            console.print(f"    {line}", style="dim", markup=False)
    settings = report["environment"].items() or [("(none of the project's variables is set)", "")]
    console.print(output.table("variable", "value", rows=settings))
    certificates = [tuple(c.values()) for c in report["certificates"]] or [
        ("(none; make one: ir-core verify)",)
    ]
    console.print(output.table("certificate of", "version", "verdict", "made", "found", rows=certificates))
    rows = [(op, s["any"]["text"], s["batch_invariant"]["text"]) for op, s in report["selected"].items()]
    title = (
        f"What a call with {report['example']} would run on {report['device']} (reasons: ir-core explain OP)"
    )
    console.print(output.table("op", "any", "batch-invariant", title=title, rows=rows))
