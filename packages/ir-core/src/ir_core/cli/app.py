# SPDX-License-Identifier: Apache-2.0
"""The application: one command a module, each imported without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from ir_core.cli import (
    audit_cmd,
    bench_cmd,
    demo_cmd,
    doctor_cmd,
    explain_cmd,
    freeze_cmd,
    list_cmd,
    new_pack_cmd,
    verify_cmd,
)

app = typer.Typer(
    name="ir-core",
    help="Kernels whose bits do not depend on the batch: what is installed, what would run, and whether it is true.",
    epilog="Exit codes: 0 it holds, 1 it does not, 2 wrong usage, 3 an error with its reason, 70 a bug.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from ir_core.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version of ir-core."),
    ] = False,
) -> None:
    pass


app.command("list")(list_cmd.list_)
app.command("explain")(explain_cmd.explain)
app.command("doctor")(doctor_cmd.doctor)
app.command("verify")(verify_cmd.verify)
app.command("audit")(audit_cmd.audit)
app.command("bench")(bench_cmd.bench)
app.command("freeze")(freeze_cmd.freeze)
app.command("new-pack")(new_pack_cmd.new_pack)
app.command("demo")(demo_cmd.demo)
