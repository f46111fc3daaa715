# SPDX-License-Identifier: Apache-2.0
"""What an audit found, as a value, a table, JSON and text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ir_core.auditing import picture
from ir_core.auditing.differences import NONE, Difference
from ir_core.auditing.place import Place


@dataclass(frozen=True)
class Finding:
    """An operation whose bits depend on the number of rows.

    Args:
        op: namespace and name without the overload: ``aten.mm``; of a detour, what both runs call.
        kind: its family; ``path`` where the program itself does something else for fewer rows.
        calls: how often it ran in the whole batch.
        varied: how many of these calls have other bits.
        place: where the first of them is.
        places: every place, with the number of its calls that vary.
        shapes: shapes of the tensors of the first, in the whole batch.
        by_rows: for each number of rows that was run alone, how much of all calls differs; only where something does.
        alone: rows of the smaller call in which it was first seen.
        begins: the smallest number of rows with other bits than ``alone`` rows, bisected; ``None`` where that could
            not be tried.
        cause: why, most likely.
        cure: what covers it here.
        steps: which operations of the run vary, by number.
    """

    op: str
    kind: str
    calls: int
    varied: int
    place: Place
    places: Mapping[Place, int]
    shapes: tuple[tuple[int, ...], ...]
    by_rows: Mapping[int, Difference]
    alone: int
    begins: int | None
    cause: str
    cure: str
    steps: tuple[int, ...]

    @property
    def step(self) -> int:
        """Which operation of the run the first is."""
        return self.steps[0]

    @property
    def difference(self) -> Difference:
        """Over all calls and parts."""
        return sum(self.by_rows.values(), NONE)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = dict(vars(self))
        data["place"] = self.place.to_dict()
        data["places"] = [{**place.to_dict(), "varied": count} for place, count in self.places.items()]
        data["by_rows"] = {str(rows): by.to_dict() for rows, by in self.by_rows.items()}
        data["difference"] = self.difference.to_dict()
        return data


@dataclass(frozen=True)
class Note:
    """What changes values, or keeps the audit from telling, without an operation being at fault.

    Args:
        kind: ``random``, ``mixes`` (its rows depend on what other rows hold), ``unrepeatable``, ``state``, ``unseen``
            (nothing that torch sees explains it), ``untold`` (the audit cannot tell).
        op, place: which operation, if it is one.
        text: a sentence.
        changes: whether a row's values change because of it.
    """

    kind: str
    op: str
    place: Place | None
    text: str
    changes: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "place": self.place.to_dict() if self.place else None}


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Args:
        mode: ``batch`` (alone against batch), ``compiled`` (against eager), or ``recorded`` (against a file).
        batch, rows: rows of the whole batch, and of the parts.
        operations, judged: how many operations ran, and how many of them were compared.
        findings: by first place.
        notes: see :class:`Note`.
        outputs: for each number of rows, how much the model's own outputs differ from the same rows of the batch.
        device: of the first input.
        seconds: the audit's time, and the model's own for the whole batch.
    """

    mode: str
    batch: int
    rows: tuple[int, ...]
    operations: int
    judged: int
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]
    outputs: Mapping[int, Difference]
    device: str
    seconds: tuple[float, float] = field(compare=False, default=(0.0, 0.0))

    @property
    def first(self) -> Finding | None:
        """Where it begins."""
        return self.findings[0] if self.findings else None

    @property
    def varies(self) -> bool:
        """Whether anything was found that changes a row's bits."""
        return bool(self.findings) or any(note.changes for note in self.notes)

    def columns(self) -> tuple[str, ...]:
        """Headings of :meth:`table`."""
        return ("operation", "calls", "first at", "rows", "begins at", "differs by", "likely cause", "cure")

    def table(self) -> list[tuple[str, ...]]:
        """A row for each finding."""
        return [
            (
                found.op,
                f"{found.varied} of {found.calls}",
                str(found.place),
                ", ".join(map(str, found.by_rows)),
                f"{found.begins}" if found.begins else "-",
                str(found.difference),
                found.cause,
                found.cure,
            )
            for found in self.findings
        ]

    def explain(self) -> str:
        """The text: where it begins, what else varies, and what the audit could not tell."""
        lines = [self.headline()]
        for found in self.findings:
            lines += ["", *_sentences(found)]
        for note in self.notes:
            lines += ["", f"{note.kind}: {note.text}"]
        return "\n".join(lines)

    def headline(self) -> str:
        """One line: where it begins, or that nothing varies."""
        ran = f"{self.judged} of {self.operations} operations compared"
        if self.mode == "compiled":
            against = f"compiled against eager, {self.batch} rows"
        elif self.mode == "recorded":
            against = f"{self.batch} rows against the file"
        else:
            against = f"{self.batch} rows against {', '.join(map(str, self.rows))} of them"
        if self.first is None:
            verdict = "something changes the values" if self.varies else "nothing varies"
        else:
            verdict = f"it begins at {self.first.place}: {self.first.op}"
        return f"{verdict} ({against}, on {self.device}, {ran})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mode": self.mode,
            "batch": self.batch,
            "rows": list(self.rows),
            "device": self.device,
            "operations": self.operations,
            "judged": self.judged,
            "varies": self.varies,
            "findings": [found.to_dict() for found in self.findings],
            "notes": [note.to_dict() for note in self.notes],
            "outputs": {str(rows): by.to_dict() for rows, by in self.outputs.items()},
            "seconds": {"audit": self.seconds[0], "model": self.seconds[1]},
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def draw(self, path: Path | str) -> None:
        """Draw where in the run operations vary, as PNG, SVG or PDF by the name.

        Raises:
            AuditError: matplotlib is not installed.
        """
        lines = [(f"{f.op}\n{f.varied} of {f.calls}", str(f.place), f.steps) for f in self.findings]
        picture.draw(self.headline(), self.operations, lines, Path(path))


def _sentences(found: Finding) -> list[str]:
    lines = [
        f"{found.op} at {found.place}: {found.varied} of {found.calls} calls have other bits, {found.difference}.",
    ]
    if found.kind in ("compiled kernel", "recorded"):
        lines.append(f"  Shapes: {_shapes(found.shapes)}.")
    elif found.begins:
        lines.append(
            f"  A row's bits in a call of {found.alone} {_rows(found.alone)} hold up to {found.begins - 1}, and "
            f"change at {found.begins}. Shapes: {_shapes(found.shapes)}."
        )
    else:
        lines.append(f"  Seen with {_listed(found.by_rows)} rows alone. Shapes: {_shapes(found.shapes)}.")
    more = [place for place in found.places if place != found.place]
    if more:
        lines.append(
            f"  Also at {', '.join(map(str, more[:3]))}" + (f" and {len(more) - 3} more." * (len(more) > 3))
        )
    return [*lines, f"  Likely: {found.cause}.", f"  Cure: {found.cure}."]


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _listed(rows: Mapping[int, Any]) -> str:
    return ", ".join(map(str, rows))
