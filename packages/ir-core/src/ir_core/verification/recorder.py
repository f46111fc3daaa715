# SPDX-License-Identifier: Apache-2.0
"""The recorder: what was asked of one implementation, what was found, and what was not reached; and the certificate."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ir_core.verification import identity, orders, probes
from ir_core.verification.calls import Case, Setting
from ir_core.verification.certificate import Certificate, Finding, Verdict
from ir_core.verification.layouts import Free

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.target import Target


class Recorder:
    """Keeps the book on one implementation.

    Args:
        impl, target, setup, seed: for the commands in findings and for the certificate.

    Attributes:
        found: the finding of each probe that refuted.
        cases, random: planned and random cases that were run, by probe.
        skipped: what a certificate needs and was not run, with the reason.
        left_out: what else was not run.
        settings: the static arguments of planned cases.
        ranges: what random cases covered: smallest and largest numbers, or the values.
    """

    def __init__(self, impl: IrOpImpl, target: Target, setup: Sequence[str] = (), seed: int = 0) -> None:
        self.impl, self.target, self.setup, self.seed = impl, target, tuple(setup), seed
        self.found: dict[str, Finding] = {}
        self.cases: Counter[str] = Counter()
        self.random: Counter[str] = Counter()
        self.skipped: list[str] = []
        self.left_out: list[str] = []
        self.settings: list[Setting] = []
        self.ranges: dict[str, list[Any]] = {}

    def count(self, case: Case, drawn: str) -> None:
        """Note that a case was run; ``drawn`` names a random one."""
        if not drawn:
            self.cases[case.probe] += 1
            return
        self.random[case.probe] += 1
        call = case.call
        free = Free.parse(call.layout) if call.layout.startswith("free:") else Free()
        numbers = {"rows": call.rows, "columns": call.hidden, "rank": len(free.shape(call.rows)) + 1}
        for name, number in numbers.items():
            low, high = self.ranges.get(name, [number, number])
            self.ranges[name] = [min(low, number), max(high, number)]
        words = {"dtypes": call.dtype, "variants": call.variant, "values": call.values, "modes": call.mode}
        for name, word in words.items():
            if word and word not in self.ranges.setdefault(name, []):
                self.ranges[name] = sorted([*self.ranges[name], word])

    def keep(
        self,
        case: Case,
        summary: str,
        difference: str = "",
        change: str = "",
        mechanism: str = "",
        drawn: str = "",
    ) -> None:
        """Keep a finding; the first of a probe stays."""
        command = command_for(self.impl, case, self.setup, self.target.device)
        finding = Finding(
            case.probe, summary, case.to_dict(), command, difference, change, mechanism, drawn=drawn
        )
        self.found.setdefault(case.probe, finding)

    def not_reached(self, probe: str, what: str, seconds: float, required: bool) -> None:
        """Note a step that did not fit into the time."""
        note = f"not reached: {probe}: {what or 'all'} (about {seconds:.1f} s)"
        (self.skipped if required else self.left_out).append(note)

    def certificate(self, seconds: float) -> Certificate:
        """What was found, as a value."""
        impl = self.impl
        findings = sorted(self.found.values(), key=lambda f: probes.ATTRIBUTION.index(f.probe))
        verdict: Verdict = "refuted" if findings else "inconclusive" if self.skipped else "certified"
        order = orders.order_of(impl) if verdict == "certified" and self.cases["order"] else ""
        return Certificate(
            op=impl.op.name,
            provider=impl.provider,
            distribution=impl.distribution,
            version=impl.version,
            uuid=impl.uuid(),
            device=identity.device(self.target),
            declared=impl.batch_invariant,
            verdict=verdict,
            findings=tuple(findings),
            cases=dict(sorted(self.cases.items())),
            random=dict(sorted(self.random.items())),
            ranges=dict(sorted(self.ranges.items())),
            order=order,
            skipped=(*self.skipped, *self.left_out),
            settings=tuple(str(setting) for setting in self.settings),
            seconds=round(seconds, 2),
            created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seed=self.seed,
            software=identity.software(),
            not_covered=impl.not_covered(),
        )


def command_for(impl: IrOpImpl, case: Case, setup: Sequence[str], device: str) -> str:
    """The command that reproduces a case."""
    words = ["ir-core", "verify", f"{impl.op.name}/{impl.provider}", "--case", case.key()]
    if device != "cpu":
        words += ["--device", device]
    for module in setup:
        words += ["--setup", module]
    return shlex.join(words)
