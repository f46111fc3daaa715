# SPDX-License-Identifier: Apache-2.0
"""``ir-core verify``: try to refute what is declared batch-invariant, and keep the certificates."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ir_core.cli import options, output
from ir_core.cli.exits import FINDING

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.verification.certificate import Certificate
    from ir_core.verification.session import Report


class Require(StrEnum):
    """The least verdict that is asked for."""

    CERTIFIED = "certified"


STYLES: Final = {"certified": "green", "refuted": "red", "inconclusive": "yellow"}


def parse_seconds(text: str) -> float:
    """``"60s"``, ``"10m"``, ``"1h"`` or ``"60"`` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip().lower())
    if not match or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is no time; write it as 60s, 10m or 1h")
    return float(match[1]) * {"m": 60.0, "min": 60.0, "h": 3600.0}.get(match[2] or "s", 1.0)


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ops (rms_norm) or implementations (rms_norm/portable); by default everything installed.",
            metavar="NAME",
            autocompletion=options.complete_implementation,
        ),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for all of it.", metavar="60s")] = "60s",
    device: Annotated[
        str | None,
        typer.Option("--device", help="Device to verify on; by default the first one.", metavar="DEVICE"),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option("--case", help="Run this one case again, copied from a report.", metavar="JSON"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write report.json and a heat map of each implementation here.", metavar="DIR"
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write all certificates of this user into one file, and verify nothing.",
            metavar="FILE",
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", help="Take certificates over from such a file.", metavar="FILE", exists=True
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            "--setup", help="Import this first: it registers implementations.", metavar="MODULE[:FUNCTION]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the inputs.")] = 0,
    require: Annotated[
        Require | None,
        typer.Option(
            "--require", help="Exit with 1 when anything has a lesser verdict.", metavar="certified"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Try to refute batch invariance by bits; keep the outcome as certificates, which selection acts on.

    Exits with 1 when something that is declared batch-invariant is refuted, or when --case still differs. An op's own
    native reduction keeps its bits under conditions only: that it is refuted is no failure, unless --require says so.
    """
    from ir_core.verification import verify as run
    from ir_core.verification.session import implementations

    if export is not None:
        return _export(export, json)
    if import_ is not None:
        return _import(import_, device, json)
    seconds = parse_seconds(budget)
    prepare(setup or ())
    impls = implementations(names or ())
    if case is not None:
        return _case(impls, case, device, setup or (), json)
    if report is not None:
        _need_matplotlib()
    check_store()
    with Live(json) as live:
        found = run(impls, device=device, budget=seconds, seed=seed, setup=setup or (), progress=live)
    if report is not None:
        with output.writing(report):
            _write_report(report, found, impls, device, seed)
    if json:
        output.print_json(found.to_dict())
    else:
        show(found)
    lesser = [c for c in found.certificates if require and c.verdict != require]
    if lesser or (require and not found.certificates):
        labels = ", ".join(f"{c.label} is {c.verdict}" for c in lesser) or "nothing was verified"
        output.note(f"--require {require}: {labels}.")
        raise typer.Exit(FINDING)
    if found.failed:
        raise typer.Exit(FINDING)
    return None


def prepare(setup: Sequence[str]) -> None:
    """Import what --setup names.

    Raises:
        IrError: there is no such module or function.
    """
    from ir_core.errors import IrError
    from ir_core.verification import history

    try:
        history.prepare(setup)
    except (ImportError, AttributeError) as error:
        raise IrError(
            f"--setup {' --setup '.join(setup)} cannot be imported.",
            why=f"{type(error).__name__}: {error}.",
            fix="Name a module that Python finds here, and behind a colon a function of it.",
        ) from error


def check_store() -> None:
    """Say before the work, not after it, that its certificates cannot be kept.

    Raises:
        CertificateError: their folder cannot be written.
    """
    import tempfile

    from ir_core import env
    from ir_core.errors import CertificateError
    from ir_core.verification import store

    folder = store.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CertificateError(
            f"Certificates cannot be written to {folder}.",
            why=f"{error.strerror or error}.",
            fix=f"Set {env.IR_CACHE_DIR} to a folder that can be written.",
        ) from error


class Live:
    """The table on a terminal's stderr while it runs; silent elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live: Any = None

    def __enter__(self) -> Live:
        console = output.talk()
        if console.is_terminal and not self._quiet:
            from rich.live import Live as RichLive

            self._live = RichLive(console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, probers: Any, remaining: float) -> None:
        """Draw where everybody is."""
        if self._live is None:
            return
        rows = [
            (
                f"{p.impl.op.name}/{p.impl.provider}",
                output.styled(", ".join(p.found) or "-", "red" if p.found else "dim"),
                sum(p.cases.values()),
                f"{p.spent:.1f}",
                p.doing,
            )
            for p in probers
        ]
        title = f"{max(remaining, 0):.0f} s left"
        self._live.update(
            output.table("implementation", "refuted by", "cases", "s", "now", title=title, rows=rows)
        )


def declared(certificate: Certificate) -> str:
    """Whether its author declares it batch-invariant: yes, no, or under conditions only."""
    from ir_core.verification.session import conditional

    if conditional(certificate.op, certificate.provider):
        return "conditionally"
    return "yes" if certificate.declared else "no"


def show(found: Report) -> None:
    """Print the verdicts, then every counterexample as a paragraph."""
    rows: list[tuple[object, ...]] = [
        (
            c.label,
            declared(c),
            output.styled(c.verdict, STYLES[c.verdict]),
            sum(c.cases.values()),
            f"{c.seconds:.1f}",
            c.summary(),
        )
        for c in found.certificates
    ]
    rows += [
        (label, "", output.styled("not here", "dim"), "", "", why) for label, why in found.unsupported.items()
    ]
    console = output.out()
    console.print(output.table("implementation", "declared", "verdict", "cases", "s", "", rows=rows))
    for certificate in found.certificates:
        for finding in certificate.findings:
            console.print(f"\n{certificate.label}, {finding.probe}: {finding.text()}", markup=False)
        left = [note for note in certificate.skipped if note.startswith("not reached")]
        if left and certificate.verdict == "inconclusive":
            console.print(
                f"\n{certificate.label}: {len(left)} steps were not reached; give it more --budget."
            )
        if certificate.not_covered:
            said = "; ".join(certificate.not_covered)
            output.note(f"{certificate.label}: changes of these go unnoticed: {said}.")
    for certificate in found.certificates:
        if certificate.verdict == "refuted" and declared(certificate) == "conditionally":
            output.note(
                f"{certificate.label} is torch's own reduction, which keeps its bits under conditions only: "
                "no failure. In batch-invariant mode another implementation stands before it."
            )
        elif certificate.verdict == "refuted" and not certificate.declared:
            output.note(
                f"{certificate.label} does not claim to be batch-invariant; that it is not is no failure."
            )


def _export(path: Path, json: bool) -> None:
    from ir_core.verification import store

    with output.writing(path):
        number = store.export(path, store.load_all())
    if json:
        output.print_json({"file": str(path), "certificates": number})
    else:
        output.out().print(f"Wrote {number} certificate{'s' if number != 1 else ''} to {path}.", markup=False)


def _import(path: Path, device: str | None, json: bool) -> None:
    """Keep the certificates of a file; say which count here."""
    from ir_core import errors
    from ir_core.verification import evidence, identity, store
    from ir_core.verification.session import implementations, target_for

    here = identity.device(target_for(device))
    taken: list[tuple[Certificate, str]] = []
    for certificate in store.read_bundle(path):
        store.save(certificate, f"imported-{certificate.to_dict()['sha256'][:16]}")
        try:
            (impl,) = implementations([certificate.label])
            why = "" if certificate.uuid == impl.uuid() else "made of other sources or versions"
        except errors.IrError as error:
            why = error.what
        if not why and certificate.device != here:
            name = certificate.device.get("name") or certificate.device.get("kind")
            why = f"made on another device ({name})"
        taken.append((certificate, why))
    evidence.refresh()
    if json:
        output.print_json(
            [{"label": c.label, "verdict": c.verdict, "counts": not w, "why": w} for c, w in taken]
        )
        return
    rows = [(c.label, c.verdict, c.created, why or output.styled("counts", "green")) for c, why in taken]
    output.out().print(output.table("implementation", "verdict", "made", "here", rows=rows))


def _case(
    impls: list[IrOpImpl], text: str, device: str | None, setup: list[str] | tuple[str, ...], json: bool
) -> None:
    """Run one case again."""
    from ir_core.verification import Case, reproduce

    if len(impls) != 1:
        raise typer.BadParameter("--case is about one implementation: name it as OP/PROVIDER")
    case = Case.parse(text)
    difference = reproduce(impls[0], case, device=device, setup=setup)
    if json:
        output.print_json(
            {"case": case.to_dict(), "differs": difference is not None, "difference": difference}
        )
    else:
        output.out().print(difference or "Nothing differs.", markup=False)
    if difference is not None:
        raise typer.Exit(FINDING)


def _need_matplotlib() -> None:
    """Say before the work, not after it, that the pictures cannot be drawn."""
    import importlib.util

    from ir_core.errors import CertificateError

    if importlib.util.find_spec("matplotlib") is None:
        raise CertificateError(
            "--report draws heat maps with matplotlib, which is not installed.",
            fix="pip install 'ir-core[plot]'",
        )


def _write_report(folder: Path, found: Report, impls: list[IrOpImpl], device: str | None, seed: int) -> None:
    """``report.json`` and one PNG an implementation."""
    from ir_core.verification import heatmap
    from ir_core.verification.session import target_for
    from ir_core.verification.subject import Subject

    folder.mkdir(parents=True, exist_ok=True)
    data = found.to_dict()
    target = target_for(device)
    ran = {c.label for c in found.certificates}
    maps = []
    for impl in impls:
        label = f"{impl.op.name}/{impl.provider}"
        if label in ran:
            measured = heatmap.measure(Subject(impl, target, seed))
            heatmap.draw(measured, folder / f"{label.replace('/', '-')}.png")
            maps.append(measured.to_dict())
    data["heatmaps"] = maps
    (folder / "report.json").write_text(json_module.dumps(data, indent=1) + "\n", "utf-8")
    output.note(f"Wrote {folder / 'report.json'} and {len(maps)} heat maps.")
