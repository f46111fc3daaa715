# SPDX-License-Identifier: Apache-2.0
"""``ir-core freeze``: write what runs now into a lock file, which IR_LOCK then enforces."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ir_core.cli import options, output
from ir_core.cli.exits import FINDING


def selected(
    shape: str, dtype: str, device: str | None, batch_invariant: bool | None, providers: bool = False
) -> dict[str, Any]:
    """The content of a lock file: what would run now for every op.

    Raises:
        SelectionError: for some op nothing qualifies.
    """
    import torch

    from ir_core import catalog, lock_file, platforms, policy
    from ir_core.cli import arguments
    from ir_core.op import get_op
    from ir_core.resolve import select

    where = options.parse_device(device)
    target = platforms.target_of(torch.device(where))
    changes = {} if batch_invariant is None else {"batch_invariant": batch_invariant}
    ops = {}
    with policy.scope(**changes) as requirement, output.progress(len(catalog.op_names())) as advance:
        for name in catalog.op_names():
            advance(name)
            op = get_op(name)
            args = arguments.fake_arguments(op, options.parse_shape(shape), options.parse_dtype(dtype), where)
            provider = select(op, requirement, target, args, full=False).provider
            ops[name] = lock_file.describe(op.impls[provider], provider=providers)
    return {"format": lock_file.LOCK_FORMAT, "batch_invariant": requirement.batch_invariant, "ops": ops}


def freeze(
    write: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the lock file here and list it.", metavar="FILE", dir_okay=False
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Compare with this lock file and write nothing.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    shape: options.Shape = "4x4096",
    dtype: options.Dtype = "bfloat16",
    device: options.Device = None,
    batch_invariant: options.BatchInvariant = None,
    providers: Annotated[
        bool, typer.Option("--providers", help="Lock the providers too, where an order alone would do.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write what runs now (op, order, provider, distribution, version, digest) as a lock file for IR_LOCK.

    An entry with an order holds for every implementation of that order, unless --providers locks each provider.
    Without --output the lock file goes to stdout. With --check, exits with 1 when something differs; it asks for what
    the lock file was written for, unless --batch-invariant or --any says otherwise.
    """
    from ir_core import lock_file

    before = None if check is None else lock_file.read(check)
    if check is not None and batch_invariant is None:
        batch_invariant = json_module.loads(check.read_text("utf-8")).get("batch_invariant")
    if write is not None:
        output.check_folder(write)
    lock = selected(shape, dtype, device, batch_invariant, providers)
    if before is not None:
        differences = compare(before, lock["ops"])
        if json:
            output.print_json({"differences": differences})
        else:
            for line in differences or [f"Nothing differs from {check}."]:
                output.out().print(line, markup=False)
        raise typer.Exit(FINDING if differences else 0)
    if write is not None:
        output.write_json(write, lock)
        output.note(f"Wrote {write}; IR_LOCK={write} enforces it.")
    if json or write is None:
        output.print_json(lock)
        return
    rows = [
        (name, e.get("order", ""), e["provider"], f"{e['distribution']} {e['version']}", e["digest"][:16])
        for name, e in lock["ops"].items()
    ]
    output.out().print(output.table("op", "order", "provider", "distribution", "digest", rows=rows))


def compare(locked: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between the ops of two lock files, as IR_LOCK sees it, a line each."""
    from ir_core import lock_file

    lines = [
        f"{name}: {key}: locked {locked[name].get(key)!r}, here {entry.get(key)!r}"
        for name, entry in here.items()
        if name in locked
        for key in lock_file.differences(locked[name], entry)
    ]
    lines += [f"{name}: not in the lock file" for name in here if name not in locked]
    lines += [
        f"{name}: in the lock file, and there is no such op here" for name in locked if name not in here
    ]
    return lines
