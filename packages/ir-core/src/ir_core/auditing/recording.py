# SPDX-License-Identifier: Apache-2.0
"""A run as a file of digests, and another run against it: another machine, another version, another engine."""

from __future__ import annotations

import json
import platform
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.auditing import causes
from ir_core.auditing.calls import Call
from ir_core.auditing.differences import Difference
from ir_core.auditing.digests import digests
from ir_core.auditing.inputs import Inputs
from ir_core.auditing.part import Part
from ir_core.auditing.place import Place
from ir_core.auditing.report import Finding, Note, Report
from ir_core.auditing.running import SEED, Progress, isolated, quiet
from ir_core.auditing.watch import Watch
from ir_core.errors import AuditError

_FORMAT: Final = "ir-core audit 1"
_NO_CONTENTS: Final = (
    "aten.empty",
    "aten.new_empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty_strided",
)


class _Recorder(Watch):
    """Writes down the digests of everything that goes into an operation and comes out of it."""

    def __init__(self, model: object, advance: Progress) -> None:
        super().__init__(model)
        self.steps: list[dict[str, Any]] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int, tuple[str, ...]]] = {}
        self._advance = advance

    def see(self, call: Call) -> Any:
        written = call.written()
        inputs = [self._digests(leaf) for leaf in call.leaves if isinstance(leaf, Tensor)]
        plain = [str(leaf) for leaf in call.leaves if isinstance(leaf, bool | int | float | str)]
        result = call.run()
        if call.name not in _NO_CONTENTS:
            outputs = call.effects(result)
            self.steps.append(
                {
                    "op": call.name,
                    "place": call.place.to_dict(),
                    "plain": plain,
                    "inputs": inputs,
                    "outputs": [self._digests(out) for out in outputs],
                    "shapes": [list(out.shape) for out in outputs],
                    "overwrites": bool(written),
                }
            )
        self._advance(0.0, call.place.module)
        return result

    def _digests(self, tensor: Tensor) -> tuple[str, ...]:
        """Of a weight once, not at each of its uses."""
        ref, version, found = self._known.get(id(tensor), (None, -1, ()))
        if ref is None or ref() is not tensor or version != tensor._version:
            found = digests(tensor)
            self._known[id(tensor)] = weakref.ref(tensor), tensor._version, found
        return found


def _run(
    model: Callable[..., Any],
    inputs: Any,
    batch_dim: int | Sequence[int | None] | None,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], Inputs, float]:
    given = Inputs(inputs, batch_dim)
    recorder = _Recorder(model, progress or quiet)
    with isolated(given.tensors):
        _, args, kwargs = given.of(Part(0, given.batch))
        torch.manual_seed(SEED)
        begun = time.perf_counter()
        with recorder.running():
            model(*args, **kwargs)
    return recorder.steps, given, time.perf_counter() - begun


def machine(device: torch.device) -> dict[str, str]:
    """What the digests were made with."""
    found = {"torch": torch.__version__, "device": str(device), "host": platform.machine()}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def record(
    model: Callable[..., Any],
    inputs: Any,
    path: Path | str,
    *,
    batch_dim: int | Sequence[int | None] | None = 0,
    progress: Progress | None = None,
) -> int:
    """Run the model once and write the digests of every operation to a file, for :func:`compare`.

    Args:
        model, inputs, batch_dim: as for :func:`ir_core.audit`.
        path: a JSON file.

    Returns:
        How many operations there are.

    Raises:
        OSError: the file cannot be written.
    """
    steps, given, _ = _run(model, inputs, batch_dim, progress)
    data = {
        "format": _FORMAT,
        "machine": machine(given.tensors[0].device),
        "batch": given.batch,
        "steps": steps,
    }
    Path(path).write_text(json.dumps(data), "utf-8")
    return len(steps)


def compare(
    model: Callable[..., Any],
    inputs: Any,
    path: Path | str,
    *,
    batch_dim: int | Sequence[int | None] | None = 0,
    progress: Progress | None = None,
) -> Report:
    """Run the model and name the operations that give other bits than those in a file, on equal inputs.

    The file has digests and no contents: a difference goes on into what is computed from it, where nothing is judged.

    Raises:
        AuditError: the file is none that :func:`record` wrote.
        OSError: it cannot be read.
    """
    try:
        recorded = json.loads(Path(path).read_text("utf-8"))
        theirs, where = recorded["steps"], recorded["machine"]
        if recorded["format"] != _FORMAT:
            raise KeyError(recorded["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError(
            f"{path} is no file of digests that this version reads.",
            why=f"{type(error).__name__}: {error}.",
            fix="Write one with ir-core audit --record.",
        ) from error
    steps, given, seconds = _run(model, inputs, batch_dim, progress)
    mine = json.loads(json.dumps(steps))  # tuples as the file has them
    return _report(theirs, mine, where, given, seconds)


def _key(step: Mapping[str, Any]) -> tuple[str, str]:
    return step["op"], step["place"]["module"]


def _report(
    theirs: Sequence[Mapping[str, Any]],
    mine: Sequence[Mapping[str, Any]],
    where: Mapping[str, str],
    given: Inputs,
    seconds: float,
) -> Report:
    device = given.tensors[0].device
    left, right = [_key(step) for step in theirs], [_key(step) for step in mine]
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    found: dict[str, list[tuple[int, Difference]]] = {}
    judged, aside, total = 0, 0, Difference(0, 0, None, 0)
    for tag, i, stop, j, until in matcher.get_opcodes():
        if tag != "equal":
            aside += max(stop - i, until - j)
            continue
        for step, (one, other) in enumerate(zip(theirs[i:stop], mine[j:until], strict=True), j):
            if one["inputs"] == other["inputs"] and one["plain"] == other["plain"]:
                judged += 1
                by = _difference(one, other)
                if by.elements:
                    found.setdefault(other["op"], []).append((step, by))
                    total += by
    calls = Counter(step["op"] for step in mine)
    here = machine(device)
    apart = [f"{name} {where.get(name)} there, {here.get(name)} here" for name in {**where, **here}]
    apart = [
        text for text, name in zip(apart, {**where, **here}, strict=True) if where.get(name) != here.get(name)
    ]
    cause = (
        f"other kernels ({'; '.join(apart)})"
        if apart
        else "the same machine and versions: state or random numbers"
    )
    findings = []
    for op, events in found.items():
        first = mine[events[0][0]]
        places = Counter(Place(**mine[step]["place"]) for step, _ in events)
        findings.append(
            Finding(
                op=op,
                kind="recorded",
                calls=calls[op],
                varied=len(events),
                place=Place(**first["place"]),
                places=dict(places),
                shapes=tuple(tuple(shape) for shape in first["shapes"]),
                by_rows={given.batch: sum((by for _, by in events), Difference(0, 0, None, 0))},
                alone=given.batch,
                begins=None,
                cause=cause,
                cure=causes.cure(causes.family(None, op)),
                steps=tuple(step for step, _ in events),
            )
        )
    return Report(
        mode="recorded",
        batch=given.batch,
        rows=(),
        operations=len(mine),
        judged=judged,
        findings=tuple(sorted(findings, key=lambda found: found.step)),
        notes=tuple(_notes(theirs, mine, aside, judged)),
        outputs={given.batch: total},
        device=str(device),
        seconds=(seconds, seconds),
    )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """How many elements stand in rows whose digests differ."""
    differing = compared = 0
    for a, b, shape in zip(one["outputs"], other["outputs"], other["shapes"], strict=False):
        size = 1
        for length in shape:
            size *= length
        compared += size
        differing += sum(x != y for x, y in zip(a, b, strict=False)) * size // max(len(b), 1)
        differing += size * (len(a) != len(b))
    return Difference(differing, compared, None, 0)


def _notes(
    theirs: Sequence[Mapping[str, Any]], mine: Sequence[Mapping[str, Any]], aside: int, judged: int
) -> list[Note]:
    notes = []
    if aside:
        text = (
            f"{aside} operations are in one of the two runs only: the program or a library goes another way"
        )
        notes.append(Note("path", "", None, text, True))
    if not judged and mine and theirs:
        text = "no operation has equal inputs in both runs: the model's inputs or weights are others"
        notes.append(Note("inputs", "", None, text, True))
    return notes
