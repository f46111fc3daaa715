# SPDX-License-Identifier: Apache-2.0
"""``ir-core demo``: the main job with one command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ir_core import env
from ir_core.cli import options, output
from ir_core.cli.exits import FINDING

# Triton's interpreter runs a program (a few rows) in milliseconds: fewer tokens, and fewer rows alone.
INTERPRETED: Final = {"tokens": 64, "layers": 2, "rows": 4}
COMPILED: Final = {"tokens": 4096, "layers": 3, "rows": 300}


def demo(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Its bytes are the tokens; by default README.md.",
            exists=True,
            dir_okay=False,
            metavar="FILE",
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Take so many bytes at most.", min=2)] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Layers of the model.", min=1)] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", help="Rows of each norm that are run alone.", min=1)
    ] = None,
    dtype: options.Dtype = "float32",
    device: Annotated[str, typer.Option("--device", help="Where the model runs.", metavar="DEVICE")] = "cpu",
    json: options.Json = False,
) -> None:
    """Run a text through a decoder in batch-invariant mode, eagerly and compiled, and compare its norms bit by bit.

    The decoder has Qwen3-0.6B's layer shapes and random weights. Exits with 1 when a bit differs where none may.
    With TRITON_INTERPRET=1 Triton's implementations take part, on fewer tokens.
    """
    defaults = INTERPRETED if env.interpreted() else COMPILED
    text = read(file)[: tokens or defaults["tokens"]]
    from ir_core.cli.demo import Job, run

    kind = options.parse_dtype(dtype)
    if not kind.is_floating_point:
        raise typer.BadParameter(f"the model's numbers are floating, and {dtype} is not")
    job = Job(
        text,
        layers or defaults["layers"],
        kind,
        rows or defaults["rows"],
        options.parse_device(device),
    )
    output.note(f"{len(text)} bytes through {job.layers} layers; one or two minutes.")
    with output.progress(job.steps) as advance:
        result = run(job, advance)
    if json:
        output.print_json(result)
    else:
        show(result)
    if not result["holds"]:
        raise typer.Exit(FINDING)


def read(file: Path | None) -> bytes:
    """The text: the file, README.md here, or the description that ir-core was installed with."""
    if file is None and Path("README.md").is_file():
        file = Path("README.md")
    if file is not None:
        return file.read_bytes()
    from importlib_metadata import metadata

    return metadata("ir-core").json["description"].encode()  # type: ignore[union-attr]


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = output.out()
    console.print(
        f"{result['tokens']} tokens, {result['layers']} layers, {result['dtype']}, on {result['device']}, "
        f"{result['threads']} threads; {', '.join(f'{k} {v:.1f} s' for k, v in result['seconds'].items())}\n",
        markup=False,
    )
    selected = output.table(
        "op",
        "called at",
        "provider",
        "distribution",
        "",
        "reason",
        title="What was selected, and why nothing else",
    )
    for sites in _alike(result["norms"], ("op", "candidates")):
        for first, candidate in enumerate(sorted(sites[0]["candidates"], key=lambda c: not c["chosen"])):
            selected.add_row(
                *(_texts(sites[0]["op"], _names(sites)) if first == 0 else ("", "")),
                output.styled(candidate["provider"], "bold" if candidate["chosen"] else ""),
                f"{candidate['distribution']} {candidate['version']}",
                output.yes_no(True) if candidate["chosen"] else "",
                output.styled(candidate["reason"], "" if candidate["chosen"] else "dim"),
            )
    console.print(selected)
    console.print(f"In the compiled graph: {result['lowered']}.\n", markup=False)
    bits = output.table(
        "norm",
        "N",
        "rows alone",
        "in batches of 2",
        "of 64",
        "of 300",
        "eager run",
        "compiled run",
        title="Bits of rows alone, against the same rows",
    )
    for entry in result["bits"]:
        found = entry["alone_against"]
        bits.add_row(
            entry["site"],
            str(entry["width"]),
            str(found["2"]["rows"]),
            *(_verdict(r) for r in found.values()),
        )
    console.print(bits)
    lone = result["lone_row"]
    rows = [
        (
            provider,
            _verdict({"rows": lone["batch"], "different": lone[provider]["different_rows"]}),
            lone[provider]["different_elements"],
            f"{lone[provider]['largest_difference']:.2g}",
        )
        for provider in ("native", "portable")
    ]
    title = (
        f"Why: rms_norm of float32 rows of {lone['width']}, each alone, against a batch of {lone['batch']}"
    )
    columns = ("implementation", "rows", "elements that differ", "largest difference")
    console.print(output.table(*columns, title=title, rows=rows))
    if not lone["native"]["different_rows"]:
        console.print(
            f"torch's own reduction kept its order here ({lone['threads']} threads); with more it splits a lone row.\n"
        )
    logits = result["logits"]
    same = "are equal" if logits["equal"] else f"differ by up to {logits['largest_difference']:.2g}"
    console.print(f"Logits, eager against compiled, {same}: {logits['note']}.", markup=False)
    verdict = "Every norm kept its bits." if result["holds"] else "A norm changed its bits: see the table."
    console.print(output.styled(verdict, "bold green" if result["holds"] else "bold red"))


def _alike(entries: list[dict[str, Any]], keys: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """The entries in groups that agree in ``keys``, in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(repr([entry[key] for key in keys]), []).append(entry)
    return list(groups.values())


def _names(sites: list[dict[str, Any]]) -> str:
    """``layers.0.q_norm`` and ``layers.1.q_norm`` as ``layers.*.q_norm``, one a line with the number of calls."""
    counts: dict[str, int] = {}
    for site in sites:
        name = re.sub(r"\.\d+\.", ".*.", site["site"])
        counts[name] = counts.get(name, 0) + 1
    return "\n".join(name if count == 1 else f"{name} ({count}x)" for name, count in counts.items())


def _texts(*cells: str) -> tuple[Any, ...]:
    return tuple(output.styled(cell, "bold") for cell in cells)


def _verdict(result: dict[str, int]) -> Any:
    if not result["different"]:
        return output.styled("equal", "green")
    return output.styled(f"{result['different']} of {result['rows']} differ", "bold red")
