# SPDX-License-Identifier: Apache-2.0
"""From the events of a run to a report: one finding for each operation at fault, notes for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ir_core.auditing import causes
from ir_core.auditing.alignment import Detour
from ir_core.auditing.calls import CompiledGraph, Meta, Step
from ir_core.auditing.detours import Replay
from ir_core.auditing.differences import NONE, Difference
from ir_core.auditing.place import Place
from ir_core.auditing.reference import Event, Reference
from ir_core.auditing.report import Finding, Note, Report


def report(
    reference: Reference,
    *,
    sizes: tuple[int, ...],
    ways: Callable[[int], Sequence[Detour]],
    by_contents: Mapping[int, Sequence[Detour]],
    outputs: Mapping[int, Difference],
    changed_again: bool,
    device: torch.device,
    seconds: tuple[float, float],
) -> Report:
    """The report of a run that was judged.

    Args:
        ways: where a run of so many rows does something else than the whole; it runs the model.
        by_contents: by number of rows, where such a run goes another way because of what the rows hold.
        outputs: by number of rows, how the model's own outputs differ.
        changed_again: whether the whole batch gave other outputs when it was run again.
    """
    by_op: dict[str, list[Event]] = {}
    for event in reference.events:
        if event.diagnosis.verdict == "varies":
            by_op.setdefault(event.name, []).append(event)
    calls = Counter(step.name for step in reference.steps)
    findings = [_finding(reference, events, calls, device) for events in by_op.values()]
    findings += _paths(reference, ways)
    findings.sort(key=lambda found: found.step)
    notes = _notes(reference, changed_again) + _by_contents(reference, by_contents)
    explained = {rows for found in findings for rows in found.by_rows}
    if not any(note.changes for note in notes):
        notes += _unseen(outputs, explained, any(note.kind == "untold" for note in notes))
    return Report(
        mode="batch",
        batch=reference.batch,
        rows=sizes,
        operations=len(reference.steps),
        judged=reference.judged,
        findings=tuple(findings),
        notes=tuple(notes),
        outputs=outputs,
        device=str(device),
        seconds=seconds,
    )


def _finding(reference: Reference, events: list[Event], calls: Counter[str], device: torch.device) -> Finding:
    first = events[0]
    by_rows: dict[int, Difference] = {}
    for event in events:
        for part, by in event.parts.items():
            by_rows[part.rows] = by_rows.get(part.rows, NONE) + by
    step = reference.steps[first.step]
    kind = causes.family(step.func, first.name)
    detail = ""
    if isinstance(step.func, CompiledGraph):
        detail = ", ".join(dict.fromkeys(step.func.kernels))
    diagnosis = first.diagnosis
    return Finding(
        op=first.name,
        kind=kind,
        calls=calls[first.name],
        varied=len(events),
        place=first.place,
        places=dict(Counter(event.place for event in events)),
        shapes=first.shapes,
        by_rows=dict(sorted(by_rows.items())),
        alone=diagnosis.alone,
        begins=diagnosis.begins,
        cause=causes.cause(
            kind,
            first.name,
            device.type,
            diagnosis.alone,
            diagnosis.begins,
            _matrix_rows(reference, first, kind),
            detail,
        ),
        cure=causes.cure(kind),
        steps=tuple(event.step for event in events),
    )


def _paths(reference: Reference, ways: Callable[[int], Sequence[Detour]]) -> list[Finding]:
    """A finding for each place at which the program takes another way for fewer rows, to other bits."""
    by_place: dict[Place, list[tuple[Replay, Difference]]] = {}
    for replay, by in reference.detours:
        if by.elements:
            by_place.setdefault(_turns(reference, replay)[0].place, []).append((replay, by))
    found = []
    for place, taken in by_place.items():
        replay = taken[0][0]
        start, stop = replay.detour.whole
        left = _turns(reference, replay)
        right = list(replay.steps[slice(*replay.detour.part)])
        goes = f"{_names(right)} at {right[0].place}" if right else "nothing"
        largest = max(replay.part.rows for replay, _ in taken)
        found.append(
            Finding(
                op=_names(left) if stop > start else f"no {_names(right)}",
                kind="path",
                calls=1,
                varied=1,
                place=place,
                places={place: 1},
                shapes=tuple(leaf.shape for leaf in left[0].leaves if isinstance(leaf, Meta)),
                by_rows={replay.part.rows: by for replay, by in taken},
                alone=largest,
                begins=_first_without(reference, ways, start, largest),
                cause=f"the program itself takes another way for {largest} {_rows(largest)}: {goes} instead",
                cure="make the program take one way for every number of rows",
                steps=(min(start, len(reference.steps) - 1),),
            )
        )
    return found


def _turns(reference: Reference, replay: Replay) -> list[Step]:
    """The whole run's steps of a detour, or the one before which it goes."""
    start, stop = replay.detour.whole
    start = min(start, len(reference.steps) - 1)
    return list(reference.steps[start : max(stop, start + 1)])


def _names(steps: Sequence[Step]) -> str:
    names = list(dict.fromkeys(step.name for step in steps))
    return ", ".join(names[:4]) + ", …" * (len(names) > 4)


def _first_without(
    reference: Reference, ways: Callable[[int], Sequence[Detour]], start: int, taken: int
) -> int:
    """The smallest number of rows at which the program goes the whole batch's way, bisected."""
    low, high = taken, reference.batch
    while high - low > 1:
        middle = (low + high) // 2
        if any(detour.whole[0] == start for detour in ways(middle)):
            low = middle
        else:
            high = middle
    return high


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _matrix_rows(reference: Reference, first: Event, kind: str) -> int | None:
    """Rows of the left matrix of a product in the smaller call."""
    alone = reference.shorter[first.diagnosis.alone][first.step]
    if kind != "product" or alone is None or not alone.outputs or len(alone.outputs[0].shape) != 2:
        return None
    return alone.outputs[0].shape[0]


def _notes(reference: Reference, changed_again: bool) -> list[Note]:
    found = []
    for name, place, count in _counted(reference.random):
        text = f"{name} at {place} takes random numbers{_times(count)}: a row's depend on where it stands in the batch"
        found.append(Note("random", name, place, text, True))
    mixed = [event for event in reference.events if event.diagnosis.verdict == "mixes"]
    counts = {(event.name, event.place) for event in mixed if event.whole}
    for name, place, count in _counted((event.name, event.place) for event in mixed):
        over = f"works over the batch itself{_times(count)}"
        text = f"{name} at {place} {over}: a row's bits depend on what other rows hold"
        # Whole numbers are counts and positions: a program may use them without a row's values depending on them.
        found.append(Note("mixes", name, place, text, (name, place) not in counts))
    unsteady = [(e.name, e.place) for e in reference.events if e.diagnosis.verdict == "unrepeatable"]
    for name, place, count in _counted(unsteady):
        text = f"{name} at {place} gives other bits when the same call is repeated{_times(count)}"
        found.append(Note("unrepeatable", name, place, text, True))
    values = any(note.changes for note in found)
    for name, place, count in _counted(reference.state):
        into = f"writes into a tensor that outlives the call{_times(count)}"
        text = f"{name} at {place} {into}: a running statistic, or a cache"
        found.append(Note("state", name, place, text, changed_again and not values))
    for name, place, count in _counted(reference.drifting):
        gets = f"gets another number each time the model is called{_times(count)}"
        text = f"{name} at {place} {gets}: state of the program"
        found.append(Note("state", name, place, text, True))
    if (changed_again or reference.strayed) and not values and not (reference.state or reference.drifting):
        where = f"; it goes another way at {reference.strayed}" if reference.strayed else ""
        again = "the same batch gives other outputs when the model is called again"
        text = f"{again}: a first call leaves state behind{where}"
        found.append(Note("state", "", reference.strayed, text, True))
    untold = Counter((name, place, reason) for name, place, reason in reference.untold)
    for (name, place, reason), count in untold.items():
        found.append(
            Note("untold", name, place, f"cannot tell at {place}: {name}, {reason}{_times(count)}", False)
        )
    return found


def _by_contents(reference: Reference, by_contents: Mapping[int, Sequence[Detour]]) -> list[Note]:
    places: dict[Place, list[int]] = {}
    for rows, detours in by_contents.items():
        for detour in detours:
            step = reference.steps[min(detour.whole[0], len(reference.steps) - 1)]
            if rows not in places.setdefault(step.place, []):
                places[step.place].append(rows)
    return [
        Note(
            "untold",
            "",
            place,
            f"cannot tell at {place}: the program looks at values there and goes another way for "
            f"{', '.join(map(str, rows))} rows; what it computes on these lines is not compared with them",
            False,
        )
        for place, rows in places.items()
    ]


def _unseen(outputs: Mapping[int, Difference], explained: set[int], untold: bool) -> list[Note]:
    left = [rows for rows, by in outputs.items() if by.elements and rows not in explained]
    if not left:
        return []
    text = (
        f"the model's outputs for {', '.join(map(str, left))} rows alone differ from the batch's, and no operation "
        "explains it: the rows' positions, state, or code that torch does not see (a kernel launched directly, another "
        "library)"
    ) + ", or an operation that could not be compared" * untold
    return [Note("unseen", "", None, text, True)]


def _counted(seen: Iterable[tuple[str, Place]]) -> list[tuple[str, Place, int]]:
    return [(name, place, count) for (name, place), count in Counter(seen).items()]


def _times(count: int) -> str:
    return f" ({count} calls)" if count > 1 else ""
