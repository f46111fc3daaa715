# SPDX-License-Identifier: Apache-2.0
"""``verify MODEL_FOLDER``: try to refute vLLM's own kernels in the engine, and keep certificates.

The engine runs eagerly with few layers of the model, and a tap judges each part by itself. A compiled configuration is
then started as it is, and whole passes are compared: that is what Inductor's part is judged by.
"""

from __future__ import annotations

import datetime
import functools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ir_vllm_adapter import compat, evidence, state
from ir_vllm_adapter.errors import AdapterError
from ir_vllm_adapter.parts import Part
from ir_vllm_adapter.probing import cases, engine
from ir_vllm_adapter.probing.driver import Driver, bits
from ir_vllm_adapter.probing.tap import BETWEEN, Difference, Tally, Tap

Say = Callable[[str], None]
KINDS_OF_PASSES: Final = ("graph",)


@dataclass(frozen=True)
class Wanted:
    """What to verify.

    Args:
        engine: which engine.
        budget: seconds for the cases of one engine; one that has begun is finished.
        tokens: length of the generated sequences; 0: as the device allows.
        own_budget: seconds for verifying ir-core's implementations that have no certificate; 0: leave them.
        save: write certificates.
        passes: only compare whole passes of the configuration as it is.
    """

    engine: engine.Wanted
    budget: float = 300.0
    tokens: int = 0
    own_budget: float = 60.0
    save: bool = True
    passes: bool = False


@dataclass
class Report:
    """What was found.

    Args:
        model: its architecture.
        batch_invariant: whether vLLM was in batch-invariant mode.
        parts: every part with its evidence, after this verification.
        findings: by part name and kernel, the first differences, as sentences.
        ran: how many cases of each family ran.
        left_out: cases that did not fit into the budget.
        seconds: all of it.
    """

    model: str
    batch_invariant: bool
    parts: list[Part] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    seconds: float = 0.0

    @property
    def refuted(self) -> list[Part]:
        return [part for part in self.parts if part.verdict == "refuted"]

    @property
    def unanswered(self) -> list[Part]:
        return [part for part in self.parts if not part.answered_for]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "parts": [part.to_dict() for part in self.parts], "ran": dict(self.ran)}


def verify(wanted: Wanted, say: Say = lambda text: None) -> Report:
    """Verify the parts of a model's forward pass on this device.

    Raises:
        AdapterError: no engine can be started for it.
    """
    began = time.monotonic()
    from ir_vllm_adapter import kinds

    eager = replace(wanted.engine, options={**wanted.engine.options, "enforce_eager": True})
    engine.check(wanted.engine)
    report = Report(engine.model_name(wanted.engine.folder), False)
    if wanted.passes:
        with engine.start(wanted.engine) as llm:
            config = state.STATE.worker.vllm_config
            report.batch_invariant = kinds.host_is_invariant()
            _whole_passes(llm, config, wanted, report, say)
        return report
    if not wanted.engine.options.get("enforce_eager"):
        say("whole passes as configured")
        _in_a_process_of_its_own(wanted, report)
    with engine.start(eager) as llm:
        config = state.STATE.worker.vllm_config
        report.batch_invariant = kinds.host_is_invariant()
        say(f"parts of {report.model}, eagerly, each by itself")
        _parts_one_by_one(llm, config, wanted, report, say)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _in_a_process_of_its_own(wanted: Wanted, report: Report) -> None:
    """Whole passes in a process that ends before this one takes the device's memory.

    Raises:
        AdapterError: that process failed; its own output says how.
    """
    given = [
        word
        for name, value in wanted.engine.options.items()
        for word in ("-e", f"{name}={json.dumps(value)}")
    ]
    command = [
        sys.executable,
        "-m",
        "ir_vllm_adapter",
        "verify",
        str(wanted.engine.folder),
        "--passes",
        "--json",
    ]
    command += ["--budget", str(wanted.budget), "--tokens", str(wanted.tokens), *given]
    if not wanted.save:
        command.append("--no-save")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        data = json.loads(done.stdout)
    except ValueError:
        raise AdapterError(
            f"The engine could not be run as configured: its process ended with {done.returncode}.",
            why="What it wrote to stderr says why.",
            fix="Start vLLM itself with the same options, or verify with -e enforce_eager=true.",
        ) from None
    report.parts += [Part(**part) for part in data["parts"]]
    report.findings.update(data["findings"])
    report.ran.update(data["ran"])
    report.left_out += data["left_out"]


# -- each part by itself -----------------------------------------------------------------------------------


def _parts_one_by_one(llm: Any, config: Any, wanted: Wanted, report: Report, say: Say) -> None:
    runner = state.STATE.worker.model_runner
    driver = Driver(llm, config)
    tap = Tap(runner.get_model(), runner)
    try:
        length = _length(driver, wanted.tokens)
        deadline = time.monotonic() + wanted.budget
        known = [
            tap.run(f"alone {n}", functools.partial(driver.grow, first, length), reference=True)
            for n, first in enumerate(driver.firsts())
        ]
        by_name: dict[str, cases.Case] = {}
        for case in cases.plan(known, rows=driver.rows, sequences=driver.sequences, caching=driver.caching):
            if time.monotonic() > deadline:
                report.left_out += 1
                continue
            by_name[case.name] = case
            say(case.name)
            tap.run(case.name, functools.partial(driver.run, case))
            report.ran[case.family] += 1
    finally:
        tap.close()
    for part in state.STATE.parts:
        report.parts.append(_concluded(part, tap, by_name, wanted, report))


def _length(driver: Driver, tokens: int) -> int:
    import torch

    slow = not torch.accelerator.is_available()
    return max(8, min(tokens or (24 if slow else 300), driver.longest - 1))


def _concluded(part: Part, tap: Tap, by_name: dict[str, cases.Case], wanted: Wanted, report: Report) -> Part:
    target = _target()
    tally = _tally(part, tap)
    if tally is None or (evidence.by_construction(part, target) and not tally.differences):
        return evidence.look_up(part, target)
    if part.by == "ir-core" and not tally.differences:
        return _own(part, wanted, target)
    made = certificate(part, tally, by_name, report, target)
    if made.findings:
        report.findings[f"{part.name}: {part.runs}"] = [finding.text() for finding in made.findings]
    # What the tap saw of an op of ours may lie in another of its ops, or in what is wrapped around it: it is reported,
    # and ir-core's own verification decides what selection believes.
    return _kept(part, made, wanted.save and part.by == "vLLM", target)


def _tally(part: Part, tap: Tap) -> Tally | None:
    if part.op:
        ours = [
            t
            for (kind, runs), t in tap.tallies.items()
            if kind == part.kind and runs in (part.op, "rms_norm")
        ]
        return ours[0] if ours else None
    if part.kind == "sampler":
        return next((t for (kind, _), t in tap.tallies.items() if kind == "sampler"), None)
    if part.kind == BETWEEN:
        return tap.tallies.get((BETWEEN, ""), _between(tap))
    return tap.tallies.get((part.kind, part.runs))


def _between(tap: Tap) -> Tally:
    """What lies between modules was compared as often as the modules behind it were."""
    others = [t for (kind, _), t in tap.tallies.items() if kind in ("linear", "norm")]
    return Tally(*(sum(getattr(t, name) for t in others) for name in ("calls", "compared", "elsewhere")))


def certificate(part: Part, tally: Tally, by_name: dict[str, cases.Case], report: Report, target: Any) -> Any:
    """The certificate of a part, from what was compared.

    Args:
        part: which.
        tally: what was compared of it.
        by_name: the cases that ran.
        report: how many of them, by family.
        target: the device.
    """
    from ir_core.verification import identity
    from ir_core.verification.certificate import Certificate, Finding

    found = []
    for difference in _first_of_each_module(tally.differences):
        case = by_name.get(difference.case)
        found.append(
            Finding(
                probe=case.family if case else difference.case,
                summary=_sentence(difference),
                case={"case": difference.case, "module": difference.module, "rows": difference.rows},
                command="",
                difference=_how_much(difference),
                change=case.change() if case else "",
            )
        )
    skipped = _why_not_certified(tally, report)
    verdict = "refuted" if found else "inconclusive" if skipped else "certified"
    name, version = _distribution(part)
    return Certificate(
        op=part.name,
        provider=part.runs,
        distribution=name,
        version=version,
        uuid=part.uuid,
        device=identity.device(target),
        declared=report.batch_invariant,
        verdict=verdict,  # type: ignore[arg-type]
        findings=tuple(found),
        cases=dict(report.ran),
        ranges={"rows compared": [tally.compared]},
        skipped=tuple(skipped),
        settings=tuple(str(shape) for shape in part.configuration.get("shapes", [])),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        software={**identity.software(), "vllm": compat.host().version},
    )


def _first_of_each_module(differences: Sequence[Difference]) -> list[Difference]:
    first: dict[str, Difference] = {}
    for difference in differences:
        first.setdefault(difference.module, difference)
    return list(first.values())[:8]


def _sentence(difference: Difference) -> str:
    if difference.kind == BETWEEN:
        return f"an operation between modules changed the input of {difference.module}"
    where = f" at position {difference.position}" if difference.position >= 0 else ""
    return (
        f"in {difference.module}{where} the same row got other bits {difference.case}, "
        f"in a call of {difference.rows} rows, than in one of {difference.first_rows}"
    )


def _how_much(difference: Difference) -> str:
    differing, total = difference.elements
    return f"{differing} of {total} elements, by at most {difference.largest:.3g}" if total else ""


def _why_not_certified(tally: Tally, report: Report) -> list[str]:
    why = [f"rows could not be told: {reason}" for reason in tally.untold]
    if not tally.calls:
        why.append("the model did not call it in these cases")
    elif not tally.elsewhere:
        why.append("no row came again in a call of another number of rows")
    why += [f"not reached within the budget: {family}" for family in cases.REQUIRED if not report.ran[family]]
    return why


def _distribution(part: Part) -> tuple[str, str]:
    name, _, version = part.home.rpartition(" ")
    return ("vllm" if name == "vLLM" else name), version


def _kept(part: Part, made: Any, save: bool, target: Any) -> Part:
    if not save:
        return evidence.with_certificate(part, made)
    from ir_core.verification import evidence as known
    from ir_core.verification import identity, store

    store.save(made, identity.key_of(made.op, made.provider, made.uuid, target))
    known.refresh()
    return evidence.look_up(part, target)


def _own(part: Part, wanted: Wanted, target: Any) -> Part:
    """An implementation of ir-core: its own certificate counts; it is made where there is none."""
    there = evidence.look_up(part, target)
    if there.answered_for or not wanted.own_budget or not wanted.save:
        return there
    # In a fresh process: what a kernel has prepared here by now is part of its digest, and of no other process's.
    code = (
        "import sys; from ir_core import get_op; from ir_core.verification import verify; "
        "verify([get_op(sys.argv[1]).impls[sys.argv[2]]], device=sys.argv[3], budget=float(sys.argv[4]))"
    )
    command = [sys.executable, "-c", code, part.op, part.runs, target.device, str(wanted.own_budget)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    from ir_core.verification import evidence as known

    known.refresh()
    return evidence.look_up(part, target)


def _target() -> Any:
    from ir_vllm_adapter.standing import target_here

    return target_here(state.STATE.index)


# -- whole passes ------------------------------------------------------------------------------------------


def _whole_passes(llm: Any, config: Any, wanted: Wanted, report: Report, say: Say) -> None:
    """The configuration as it is, compiled: log-probabilities of known sequences alone and in company."""
    driver = Driver(llm, config)
    length = _length(driver, wanted.tokens)
    deadline = time.monotonic() + wanted.budget
    known = [driver.grow(first, length) for first in driver.firsts()]
    alone: dict[tuple[tuple[int, ...], int], list[Any]] = {}
    tally = Tally()
    by_name: dict[str, cases.Case] = {}
    for case in cases.plan(known, rows=driver.rows, sequences=driver.sequences, caching=driver.caching):
        if time.monotonic() > deadline:
            report.left_out += 1
            continue
        say(case.name)
        by_name[case.name] = case
        report.ran[case.family] += 1
        for prompt, output in zip(case.prompts, driver.run(case), strict=True):
            key = (prompt, case.new)
            if key not in alone:
                (only,) = driver.generate([prompt], case.new)
                alone[key] = bits(only)
            tally.calls += 1
            tally.compared += 1
            tally.elsewhere += len(case.prompts) > 1
            if bits(output) != alone[key]:
                tally.differences.append(
                    Difference(
                        "a whole pass", "graph", "", case.name, "alone", len(prompt), len(case.prompts), 1
                    )
                )
    target = _target()
    for part in state.STATE.parts:
        if part.kind not in KINDS_OF_PASSES:
            continue
        made = certificate(part, tally, by_name, report, target)
        if made.findings:
            report.findings[f"{part.name}: {part.runs}"] = [finding.text() for finding in made.findings]
        report.parts.append(_kept(part, made, wanted.save, target))


def render(report: Report) -> str:
    """The report as text."""
    from ir_vllm_adapter import status

    mode = "batch-invariant mode" if report.batch_invariant else "batch-invariant mode off"
    did = f"{sum(report.ran.values())} cases, {report.seconds:.0f} s"
    lines = [f"{report.model} in vLLM {compat.host().version}, {mode}: {did}"]
    lines += status.part_lines([part.to_dict() for part in report.parts])
    for name, texts in report.findings.items():
        lines += [f"{name}: {text}" for text in texts]
    if report.left_out:
        lines.append(f"{report.left_out} cases were left out for time; --budget gives more")
    if not report.batch_invariant:
        lines.append("VLLM_BATCH_INVARIANT is not 1: these certificates are of vLLM without it")
    return "\n".join(lines)
