# SPDX-License-Identifier: Apache-2.0
"""Certificates: what a verification found out, as a value and as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from ir_core.errors import CertificateError

FORMAT: Final = 2
"""2: ``uuid`` covers what the sources reach outside their package, and ``not_covered`` says what it does not."""
Verdict: TypeAlias = Literal["certified", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Finding:
    """A counterexample.

    Args:
        probe: which probe found it.
        summary: one sentence: what was tried and what differed.
        case: the pair of calls (or the one call) that shows it, as data.
        command: the command that reproduces it.
        difference: the first differing element and how many there are; empty for contract probes.
        change: where it begins: ``"changes at 256 rows"``; empty when nothing was learned.
        mechanism: why, where that could be confirmed.
        drawn: which random case found it, with the seed; empty for a planned one.
    """

    probe: str
    summary: str
    case: dict[str, Any]
    command: str
    difference: str = ""
    change: str = ""
    mechanism: str = ""
    drawn: str = ""

    def text(self) -> str:
        """All of it, as a paragraph."""
        drawn = f"found by {self.drawn}" if self.drawn else ""
        parts = (self.summary, self.difference, self.change, self.mechanism, drawn)
        said = " ".join(part[0].upper() + part[1:].rstrip(".") + "." for part in parts if part)
        return f"{said} Reproduce: {self.command}" if self.command else said


@dataclass(frozen=True)
class Certificate:
    """The outcome of verifying one implementation on one device.

    Args:
        op, provider, distribution, version: what was verified.
        uuid: digest of everything that its code reaches (``ir_core.sources``), with the versions of its distribution,
            torch and Triton.
        device: the identity of the device (``identity.py``).
        declared: whether its author declares it batch-invariant.
        verdict: ``certified``: every required case ran and nothing refutes it; ``refuted``: a counterexample
            exists; ``inconclusive``: neither.
        findings: the counterexamples; the first names the cause best.
        cases: planned cases run, by probe.
        random: random cases run, by probe.
        ranges: what the random cases covered: for numbers the smallest and the largest, else the values.
        order: the order whose reference it agrees with in every bit that was compared; empty: none is certified.
        skipped: what was not tried, with the reason.
        settings: the static arguments that were covered.
        not_covered: what ``uuid`` cannot see: a change of it leaves the certificate counting.
        seconds, created, seed: how long it took, when (UTC), the seed of the inputs.
    """

    op: str
    provider: str
    distribution: str
    version: str
    uuid: str
    device: dict[str, Any]
    declared: bool
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    cases: dict[str, int] = field(default_factory=dict)
    random: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, list[Any]] = field(default_factory=dict)
    order: str = ""
    skipped: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    seconds: float = 0.0
    created: str = ""
    seed: int = 0
    software: dict[str, str] = field(default_factory=dict)
    not_covered: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.op}/{self.provider}"

    @property
    def finding(self) -> Finding | None:
        """The counterexample that names the cause best."""
        return self.findings[0] if self.findings else None

    @property
    def broken_promise(self) -> bool:
        """Whether it is refuted although its author declares it batch-invariant."""
        return self.verdict == "refuted" and self.declared

    def meaning(self) -> str:
        """What a certified implementation is certified to be. An order says which bits are right, so it is worth more
        than invariance, which says that an implementation agrees with itself."""
        return f"bits of the order '{self.order}', so batch-invariant" if self.order else "batch-invariant"

    def summary(self) -> str:
        """One clause for a table or a selection."""
        if self.finding is not None:
            said = self.finding.change or self.finding.difference or self.finding.summary
            return f"{self.finding.probe}: {said}"
        if self.verdict == "certified":
            said = f"{sum(self.cases.values())} planned and {sum(self.random.values())} random cases"
            return f"{self.meaning()}: {said}, {len(self.settings)} settings"
        return self.skipped[0] if self.skipped else "nothing could be run"

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a digest over it, for JSON."""
        data = dataclasses.asdict(self)
        data["findings"] = [dataclasses.asdict(finding) for finding in self.findings]
        data["skipped"], data["settings"] = list(self.skipped), list(self.settings)
        data["not_covered"] = list(self.not_covered)
        data["format"] = FORMAT
        data["sha256"] = _digest(data)
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """Read :meth:`to_dict`.

        Raises:
            CertificateError: it is malformed, of another format, or was changed.
        """
        if not isinstance(data, dict):
            raise CertificateError(f"A certificate is an object, this is {type(data).__name__}.")
        if data.get("format") != FORMAT:
            raise CertificateError(
                f"A certificate has format {data.get('format')!r}, this ir-core reads {FORMAT}.",
                fix="Verify again: ir-core verify.",
            )
        values = {key: value for key, value in data.items() if key not in ("format", "sha256")}
        if data.get("sha256") != _digest({**values, "format": FORMAT}):
            raise CertificateError("A certificate does not match its digest: it was changed or cut.")
        try:
            values["findings"] = tuple(Finding(**finding) for finding in values["findings"])
            values["skipped"], values["settings"] = tuple(values["skipped"]), tuple(values["settings"])
            values["not_covered"] = tuple(values["not_covered"])
            made = cls(**values)
        except (TypeError, KeyError) as error:
            raise CertificateError(f"A certificate is malformed: {error}.") from error
        if made.verdict not in get_args(Verdict):
            raise CertificateError(f"{made.verdict!r} is not a verdict.")
        return made


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in data.items() if k != "sha256"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
