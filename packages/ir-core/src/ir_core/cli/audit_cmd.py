# SPDX-License-Identifier: Apache-2.0
"""``ir-core audit``: which operation of a model makes its bits depend on the batch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ir_core.cli import options, output
from ir_core.cli.exits import FINDING
from ir_core.errors import AuditError

if TYPE_CHECKING:
    from ir_core.auditing import Report

_STEPS = 1000


def audit(
    factory: Annotated[
        str,
        typer.Argument(
            help="A function without parameters, in a module or a file, that returns a callable and its inputs.",
            metavar="MODULE:FACTORY",
        ),
    ],
    rows: Annotated[
        str, typer.Option("--rows", help="Sizes of the parts that are run alone.", metavar="1,2,8")
    ] = "1,2,8",
    batch_dim: Annotated[
        int, typer.Option("--batch-dim", help="Dimension of the batch in every input.", metavar="N")
    ] = 0,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="Compare the model as Inductor compiles it with the model itself."),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="Run once, and save digests of every operation here.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            help="Run once, and compare with such a file.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Draw here where operations vary (needs matplotlib).",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Find every operation of a model whose bits depend on the number of rows, each judged by itself.

    Exits with 1 if anything varies. The model is called several times, without gradients.
    """
    if sum((compiled, record is not None, compare is not None)) > 1:
        raise typer.BadParameter("--compiled, --record and --compare are three different runs; give one")
    sizes = _sizes(rows)
    for path in filter(None, (record, picture)):
        output.check_folder(path)
    if picture is not None:
        from ir_core.auditing import picture as drawing

        drawing.check()
    model, inputs = _made(factory)
    with output.progress(_STEPS) as advance:
        follow = _following(advance)
        if record is not None:
            _record(model, inputs, record, batch_dim, follow, json)
            return
        report = _run(model, inputs, sizes, batch_dim, compiled, compare, follow)
    if picture is not None:
        with output.writing(picture):
            report.draw(picture)
        output.note(f"Wrote {picture}.")
    _show(report, json)
    if report.varies:
        raise typer.Exit(FINDING)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers of rows; write it as 1,2,8") from None


def _made(name: str) -> tuple[Callable[..., Any], Any]:
    """The model and its inputs, as the factory returns them."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute:
        raise typer.BadParameter(f"{name!r} names no factory; write it as MODULE:FACTORY or FILE.py:FACTORY")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
        made = getattr(module, attribute)()
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise AuditError(
            f"{name} gives no model.",
            why=f"{type(error).__name__}: {error}.",
            fix="Name a function without parameters that returns a callable and its inputs.",
        ) from error
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise AuditError(
            f"{name} returns no callable with its inputs.",
            why=f"It returns {type(made).__name__}.",
            fix="Return a tuple of two: the callable, and a tuple or a mapping of its arguments.",
        )
    return made[0], made[1]


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m has it
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickling look there
    spec.loader.exec_module(module)
    return module


def _run(
    model: Callable[..., Any],
    inputs: Any,
    rows: tuple[int, ...],
    batch_dim: int,
    compiled: bool,
    compare: Path | None,
    progress: Callable[[float, str], None],
) -> Report:
    from ir_core import auditing

    if compare is not None:
        return auditing.compare(model, inputs, compare, batch_dim=batch_dim, progress=progress)
    mode = "compiled" if compiled else "batch"
    return auditing.audit(model, inputs, rows=rows, batch_dim=batch_dim, mode=mode, progress=progress)  # type: ignore[arg-type]


def _record(
    model: Callable[..., Any],
    inputs: Any,
    path: Path,
    batch_dim: int,
    progress: Callable[[float, str], None],
    json: bool,
) -> None:
    from ir_core import auditing

    with output.writing(path):
        count = auditing.record(model, inputs, path, batch_dim=batch_dim, progress=progress)
    if json:
        output.print_json({"file": str(path), "operations": count})
    output.note(f"Wrote digests of {count} operations to {path}.")


def _following(advance: Callable[..., None]) -> Callable[[float, str], None]:
    """Progress as a share of the whole, on a bar that counts steps."""
    at = 0

    def follow(share: float, doing: str) -> None:
        nonlocal at
        steps = max(int(share * _STEPS) - at, 0)
        at += steps
        advance(doing, steps)

    return follow


def _show(report: Report, json: bool) -> None:
    if json:
        output.print_json(report.to_dict())
        return
    console = output.out()
    console.print(report.headline(), markup=False)
    if report.findings:
        console.print(output.table(*report.columns(), rows=report.table()))
    for note in report.notes:
        console.print(f"{note.kind}: {note.text}", markup=False)
