# SPDX-License-Identifier: Apache-2.0
"""``ir-core bench``: every implementation of an op over a grid of shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ir_core.cli import options, output


def bench(
    op: options.OpName = "rms_norm",
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="Shape of the activations; may be repeated.", metavar="64x4096"),
    ] = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = None,
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", help="Only this provider; may be repeated.", metavar="PROVIDER"),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for each case.", min=0.001)] = 0.2,
    write: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save the data as JSON here.", metavar="FILE", dir_okay=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw the bandwidths here (needs matplotlib).", metavar="FILE", dir_okay=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Time every implementation of an op over a grid of shapes.

    Bandwidth counts each input and output once, and is shown beside the device's own copy of as many bytes. The
    implementations are called directly: what a call through the op adds is not in these numbers.
    """
    from ir_core.cli import bench_run

    shapes = [options.parse_shape(text) for text in shape or ["1x4096", "64x4096", "1024x4096"]]
    where = options.parse_device(device)
    for path in filter(None, (write, plot)):
        output.check_folder(path)
    if plot is not None:
        from ir_core.cli import bench_plot

        bench_plot.check(plot)
    with output.progress(None) as advance:
        result = bench_run.run(op, shapes, options.parse_dtype(dtype), where, provider, seconds, advance)
    if write is not None:
        output.write_json(write, result)
        output.note(f"Wrote {write}.")
    if plot is not None:
        with output.writing(plot):
            bench_plot.draw(result, plot)
        output.note(f"Wrote {plot}.")
    if json:
        output.print_json(result)
    else:
        show(result)


def show(result: dict[str, Any]) -> None:
    """Print the cases as a table."""
    from ir_core.cli.bench_plot import WILD, wild

    console = output.out()
    console.print(f"{result['op']}, {result['dtype']}, on {result['machine']['target']}", markup=False)
    rows = [
        (
            "x".join(map(str, case["shape"])),
            case["provider"],
            f"{case['microseconds']:.1f}",
            output.styled(f"{case['spread']:.0%} (!)", "bold red") if wild(case) else f"{case['spread']:.0%}",
            f"{case['gigabytes_per_second']:.1f}",
            f"{case['share_of_copy']:.0%}",
        )
        if "microseconds" in case
        else ("x".join(map(str, case["shape"])), case["provider"], "-", "", "", case["reason"])
        for case in result["cases"]
    ]
    console.print(
        output.table("shape", "provider", "µs", "spread", "GB/s", "of the device's copy", rows=rows)
    )
    if any(map(wild, result["cases"])):
        output.note(f"(!): the samples spread over more than {WILD:.0%}; measure again on an idle machine.")
    for text in result["notes"]:
        output.note(text)
