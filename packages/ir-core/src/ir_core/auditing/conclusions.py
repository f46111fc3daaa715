# SPDX-License-Identifier: Apache-2.0
"""From the events of a run to a report: one finding for each operation at fault, notes for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ir_core.auditing import causes
from ir_core.auditing.calls import CompiledGraph, Meta, Step
from ir_core.auditing.differences import NONE, Difference
from ir_core.auditing.place import Place
from ir_core.auditing.reference import Event, Reference
from ir_core.auditing.report import Finding, Note, Report


def report(
    reference: Reference,
    *,
    sizes: tuple[int, ...],
    detours: Mapping[int, Any],
    outputs: Mapping[int, Difference],
    changed_again: bool,
    device: torch.device,
    seconds: tuple[float, float],
) -> Report:
    """The report of a run that was judged.

    Args:
        detours: by number of rows, where such a run does something else.
        outputs: by number of rows, how the model's own outputs differ.
        changed_again: whether the whole batch gave other outputs when it was run again.
    """
    by_op: dict[str, list[Event]] = {}
    for event in reference.events:
        if event.diagnosis.verdict == "varies":
            by_op.setdefault(event.name, []).append(event)
    calls = Counter(step.name for step in reference.steps)
    findings = [_finding(events, calls, reference.steps, device) for events in by_op.values()]
    findings.sort(key=lambda found: found.step)
    notes = _notes(reference, changed_again)
    explained = {rows for found in findings for rows in found.by_rows}
    if not any(note.changes for note in notes):
        notes += _unseen(outputs, explained)
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


def _finding(
    events: list[Event], calls: Counter[str], steps: list[Step] | Any, device: torch.device
) -> Finding:
    first = events[0]
    by_rows: dict[int, Difference] = {}
    for event in events:
        for part, by in event.parts.items():
            by_rows[part.rows] = by_rows.get(part.rows, NONE) + by
    step = steps[first.step]
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
            _matrix_rows(step, diagnosis.alone, kind),
            detail,
        ),
        cure=causes.cure(kind),
        step=first.step,
    )


def _matrix_rows(step: Step, alone: int, kind: str) -> int | None:
    """Rows of the left matrix of a product in the smaller call, if one row of the batch is one row of it."""
    matrices = [leaf for leaf in step.leaves if isinstance(leaf, Meta) and len(leaf.shape) == 2]
    if kind != "product" or not matrices or alone != 1:
        return None
    left = matrices[0] if len(matrices) < 3 else matrices[-2]
    return 1 if left.shape[0] == step.outputs[0].shape[0] and alone == 1 and left.shape[0] == 1 else None


def _notes(reference: Reference, changed_again: bool) -> list[Note]:
    found = []
    for name, place, count in _counted(reference.random):
        text = f"{name} at {place} takes random numbers{_times(count)}: a row's depend on where it stands in the batch"
        found.append(Note("random", name, place, text, True))
    mixes = [(e.name, e.place) for e in reference.events if e.diagnosis.verdict == "mixes"]
    for name, place, count in _counted(mixes):
        text = f"{name} at {place} works over the batch itself{_times(count)}: a row's bits depend on what other rows hold"
        found.append(Note("mixes", name, place, text, True))
    unsteady = [(e.name, e.place) for e in reference.events if e.diagnosis.verdict == "unrepeatable"]
    for name, place, count in _counted(unsteady):
        text = f"{name} at {place} gives other bits when the same call is repeated{_times(count)}"
        found.append(Note("unrepeatable", name, place, text, True))
    values = any(note.changes for note in found)
    for name, place, count in _counted(reference.state):
        text = f"{name} at {place} writes into a tensor that outlives the call{_times(count)}: a running statistic, or a cache"
        found.append(Note("state", name, place, text, changed_again and not values))
    if (changed_again or reference.strayed) and not values and not reference.state:
        where = f"; it goes another way at {reference.strayed}" if reference.strayed else ""
        text = f"the same batch gives other outputs when the model is called again: a first call leaves state behind{where}"
        found.append(Note("state", "", reference.strayed, text, True))
    untold = Counter((name, place, reason) for name, place, reason in reference.untold)
    for (name, place, reason), count in untold.items():
        found.append(
            Note("untold", name, place, f"cannot tell at {place}: {name}, {reason}{_times(count)}", False)
        )
    return found


def _unseen(outputs: Mapping[int, Difference], explained: set[int]) -> list[Note]:
    left = [rows for rows, by in outputs.items() if by.elements and rows not in explained]
    if not left:
        return []
    text = (
        f"the model's outputs for {', '.join(map(str, left))} rows alone differ from the batch's, and no operation "
        "explains it: the rows' positions, state, or code that torch does not see (a kernel launched directly, another "
        "library)"
    )
    return [Note("unseen", "", None, text, True)]


def _counted(seen: Iterable[tuple[str, Place]]) -> list[tuple[str, Place, int]]:
    return [(name, place, count) for (name, place), count in Counter(seen).items()]


def _times(count: int) -> str:
    return f" ({count} calls)" if count > 1 else ""
