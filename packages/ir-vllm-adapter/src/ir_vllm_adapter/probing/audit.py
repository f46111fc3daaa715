# SPDX-License-Identifier: Apache-2.0
"""``audit MODEL_FOLDER``: prompts alone and together, and the first layer, module and operation whose rows differ."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from ir_vllm_adapter import compat, state
from ir_vllm_adapter.errors import AdapterError
from ir_vllm_adapter.probing import engine
from ir_vllm_adapter.probing.cases import AMONG, CACHED, REVERSED, Case
from ir_vllm_adapter.probing.driver import Driver, bits
from ir_vllm_adapter.probing.operations import Operations
from ir_vllm_adapter.probing.tap import BETWEEN, Difference, Tap

Say = Callable[[str], None]
MADE: Final = (35, 19, 11, 5, 2, 1)
"""Lengths of the prompts that are made where none are given."""
FEWER: Final = "among fewer"
TWICE: Final = "twice each"


@dataclass(frozen=True)
class Wanted:
    """What to audit.

    Args:
        engine: which engine.
        prompts: token ids; () for made ones.
        new: how many tokens to generate.
    """

    engine: engine.Wanted
    prompts: tuple[tuple[int, ...], ...] = ()
    new: int = 4


@dataclass(frozen=True)
class Finding:
    """A module whose answer to the same row changed, or an operation between modules.

    Args:
        layer: the number of the layer; -1 outside of the layers (the last norm, lm_head, the sampler).
        module: the module's path.
        kind, runs: what it runs (``kinds.Found``).
        operation: the operation or kernel in it whose rows differ first.
        case: in which company that was first seen.
        rows, first_rows: rows of that call, and of the one whose answer is the measure.
        position: the row's position in its sequence; -1 where that is not known.
        varied: how many rows differed, over all cases.
        elements: of the first row: how many elements differ, of how many.
        largest: the largest difference, as a number.
    """

    layer: int
    module: str
    kind: str
    runs: str
    operation: str
    case: str
    rows: int
    first_rows: int
    position: int
    varied: int
    elements: tuple[int, int]
    largest: float

    def text(self) -> str:
        """As a sentence or two."""
        where = f"layer {self.layer}: {self.module}" if self.layer >= 0 else self.module
        what = f"{self.kind} ({self.runs})" if self.runs else "an operation between modules"
        at = f", at position {self.position}" if self.position >= 0 else ""
        said = f"{where}: {what} gives the same row other bits {self.case}: in a call of {self.rows} rows"
        said += f" than in one of {self.first_rows}{at}." if self.first_rows else f"{at}."
        if self.elements[1]:
            said += f" {self.elements[0]} of {self.elements[1]} elements, by at most {self.largest:.3g}."
        if self.operation:
            said += f" First in it: {self.operation}."
        return f"{said} {self.varied} rows in all."


@dataclass
class Report:
    """What was found.

    Args:
        model: its architecture.
        findings: in the order of the forward pass.
        outputs: for each prompt, the cases in which the engine's own tokens or log-probabilities differ.
        prompts: lengths of the prompts.
        compared: rows that were compared.
        notes: what limits the answer.
        seconds: all of it.
    """

    model: str
    findings: list[Finding] = field(default_factory=list)
    outputs: list[list[str]] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    compared: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def first(self) -> Finding | None:
        """Where it begins."""
        return self.findings[0] if self.findings else None

    @property
    def varies(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings) or any(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **vars(self),
            "findings": [asdict(finding) | {"text": finding.text()} for finding in self.findings],
        }


def audit(wanted: Wanted, say: Say = lambda text: None) -> Report:
    """Run prompts alone and together, eagerly, and judge every module by itself.

    Raises:
        AdapterError: no engine can be started for the model, or a prompt does not fit into it.
    """
    began = time.monotonic()
    report = Report(engine.model_name(wanted.engine.folder))
    if not wanted.engine.options.get("enforce_eager"):
        report.notes.append("the model ran eagerly: modules of a compiled graph cannot be watched")
    if wanted.engine.made_weights:
        report.notes.append("weights are made, not the model's")
    eager = replace(wanted.engine, options={**wanted.engine.options, "enforce_eager": True})
    with engine.start(eager) as llm:
        driver = Driver(llm, state.STATE.worker.vllm_config)
        prompts = wanted.prompts or made_prompts(driver, wanted.new)
        _check(prompts, driver, wanted.new)
        report.prompts = [len(prompt) for prompt in prompts]
        planned = list(plan(prompts, wanted.new, caching=driver.caching))
        say("the engine's own outputs")
        report.outputs = _outputs(driver, prompts, wanted.new, planned)
        _modules(driver, prompts, wanted.new, planned, report, say)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def made_prompts(driver: Driver, new: int) -> tuple[tuple[int, ...], ...]:
    """Prompts of several lengths, without structure."""
    size = driver.vocabulary
    return tuple(
        tuple(
            (7919 * (i + 1) * (n + 1) + 104729 * i * i) % size
            for i in range(min(length, driver.longest - new))
        )
        for n, length in enumerate(MADE)
    )


def plan(prompts: Sequence[Sequence[int]], new: int, *, caching: bool) -> list[Case]:
    """The company that the prompts are put into."""
    given = tuple(tuple(prompt) for prompt in prompts)
    found = [
        Case(AMONG, 0, 0, given, new, prompt_logprobs=True),
        Case(REVERSED, 0, 0, given[::-1], new),
        Case(TWICE, 0, 0, given + given, new),
    ]
    found += [Case(FEWER, n, n - 1, given[:n], new) for n in range(2, len(given))]
    if caching:
        found.append(Case(CACHED, 0, 0, given, new, keep_cache=True))
    return found


def _check(prompts: Sequence[Sequence[int]], driver: Driver, new: int) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if not prompt or len(prompt) + new > driver.longest:
            raise AdapterError(
                f"Prompt {number} has {len(prompt)} tokens, and {new} are to be generated.",
                why=f"This engine takes sequences of 1 to {driver.longest} tokens (max_model_len).",
                fix="Shorten it, or start with -e max_model_len=N.",
            )
        if any(not 0 <= token < driver.vocabulary for token in prompt):
            raise AdapterError(
                f"Prompt {number} has a token id outside of the model's vocabulary.",
                why=f"Ids are 0 to {driver.vocabulary - 1}.",
                fix="Make the ids with this model's tokenizer.",
            )


def _outputs(
    driver: Driver, prompts: Sequence[Sequence[int]], new: int, planned: Sequence[Case]
) -> list[list[str]]:
    """For each prompt, the cases in which the engine's answer has other bits than alone. Nothing is put right here."""
    alone = {tuple(prompt): bits(driver.generate([prompt], new)[0]) for prompt in prompts}
    changed: dict[tuple[int, ...], list[str]] = {tuple(prompt): [] for prompt in prompts}
    for case in planned:
        for prompt, output in zip(case.prompts, driver.run(case), strict=True):
            if bits(output) != alone[prompt] and case.name not in changed[prompt]:
                changed[prompt].append(case.name)
    return [changed[tuple(prompt)] for prompt in prompts]


def _modules(
    driver: Driver,
    prompts: Sequence[Sequence[int]],
    new: int,
    planned: Sequence[Case],
    report: Report,
    say: Say,
) -> None:
    runner = state.STATE.worker.model_runner
    model = runner.get_model()
    tap = Tap(model, runner, Operations(model))
    try:
        for number, prompt in enumerate(prompts, start=1):
            say(f"prompt {number} alone")
            alone = functools.partial(driver.generate, [prompt], new, prompt_logprobs=True)
            tap.run(f"alone {number}", alone, reference=True)
        for case in planned:
            say(case.name)
            tap.run(case.name, functools.partial(driver.run, case))
    finally:
        tap.close()
    report.compared = sum(tally.compared for tally in tap.tallies.values())
    report.findings = findings([d for tally in tap.tallies.values() for d in tally.differences])
    for (kind, runs), tally in tap.tallies.items():
        report.notes += [f"{kind} {runs}: rows could not be told: {reason}" for reason in tally.untold]
    if any(report.outputs) and not report.findings:
        report.notes.append(
            "outputs differ and no module does: it lies in what is no module (sampling, the scheduler)"
        )


def findings(differences: Sequence[Difference]) -> list[Finding]:
    """One for each module, in the order of the forward pass."""
    first: dict[str, Difference] = {}
    varied: dict[str, int] = {}
    for difference in differences:
        first.setdefault(difference.module, difference)
        varied[difference.module] = varied.get(difference.module, 0) + 1
    found = []
    for module, difference in sorted(first.items(), key=lambda item: item[1].order):
        number = re.search(r"\blayers\.(\d+)\.", f"{module}.")
        found.append(
            Finding(
                layer=int(number[1]) if number else -1,
                module=module,
                kind="" if difference.kind == BETWEEN else difference.kind,
                runs=difference.runs,
                operation=difference.operation,
                case=difference.case,
                rows=difference.rows,
                first_rows=difference.first_rows,
                position=difference.position,
                varied=varied[module],
                elements=difference.elements,
                largest=difference.largest,
            )
        )
    return found


def render(report: Report) -> str:
    """The report as text."""
    lengths = ", ".join(map(str, report.prompts))
    did = f"{report.compared} rows of modules compared, {report.seconds:.0f} s"
    lines = [
        f"{report.model} in vLLM {compat.host().version}: prompts of {lengths} tokens, alone and together; {did}"
    ]
    changed = [(n, names) for n, names in enumerate(report.outputs, start=1) if names]
    if not report.varies:
        lines.append("nothing differs")
    for number, names in changed:
        lines.append(f"  the engine's answer to prompt {number} differs {', '.join(names)}")
    if report.first is not None:
        lines.append(f"it begins in {report.first.text()}")
        lines += [f"  also {finding.text()}" for finding in report.findings[1:]]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)
