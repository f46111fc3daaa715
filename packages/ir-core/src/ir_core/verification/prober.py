# SPDX-License-Identifier: Apache-2.0
"""The prober of one implementation: runs cases, and hands what they say to the recorder.

Its steps are generators: each yields what it would do next and what that costs, and is told whether it may; so one
schedule can share a time budget among many implementations (``schedule.py``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch

from ir_core.errors import CertificateError, PredicateError
from ir_core.verification import plan, probes, shrinker
from ir_core.verification.calls import Call, Case, Setting
from ir_core.verification.outcome import Failed, Outcome, Skipped
from ir_core.verification.recorder import Recorder
from ir_core.verification.schedule import Stage, Step, Steps
from ir_core.verification.subject import Difference, Subject

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.target import Target
    from ir_core.verification.certificate import Finding

REFUTED_SECONDS: Final = 1.0
"""A step that takes longer is left out once there is a counterexample."""

SLOW_ROW: Final = 0.001
"""Seconds: a row of an interpreted kernel takes 3 ms, of plain torch 0.02 ms."""

Stop: TypeAlias = Literal["never", "small", "first"]


class Prober:
    """Verifies one implementation.

    Args:
        impl, target, seed: what, where, and with which inputs.
        setup: modules that register it, for the commands in findings.
        stop: when to stop after a counterexample: ``never``, at the end of the ``small`` settings, at the ``first``.
    """

    def __init__(
        self,
        impl: IrOpImpl,
        target: Target,
        seed: int = 0,
        setup: Sequence[str] = (),
        stop: Stop = "never",
    ) -> None:
        self.subject = Subject(impl, target, seed)
        self.recorder = Recorder(impl, target, setup, seed)
        self.impl, self.target, self.setup = impl, target, tuple(setup)
        self.stop: Stop = stop
        self.spent = 0.0
        self.doing = "waiting"
        self._put_off: list[tuple[str, str, list[Case], bool]] = []

    # -- what it does --------------------------------------------------------------------------------------

    def put_off(self) -> Steps:
        """What cost too much at first, cheap steps first."""
        put_off, self._put_off = self._put_off, []
        for probe, what, cases, required in sorted(put_off, key=lambda p: (not p[3], self.cost(p[2]))):
            yield from self.pairs(probe, what, cases, required=required, stage=Stage.PUT_OFF)

    @property
    def found(self) -> dict[str, Finding]:
        """The counterexamples, by probe."""
        return self.recorder.found

    @property
    def cases(self) -> dict[str, int]:
        """Cases run, planned and random, by probe."""
        return self.recorder.cases + self.recorder.random

    @property
    def done(self) -> bool:
        """Whether larger inputs are not wanted any more."""
        return self.refuted and self.stop != "never"

    @property
    def refuted(self) -> bool:
        return bool(self.found)

    @property
    def slow(self) -> bool:
        """Whether a row takes so long (Triton's interpreter) that fewer of them are tried."""
        call = self.subject.call(self.recorder.settings[0], rows=plan.FIRST_ROWS)
        return self.subject.cost(call) / call.rows > SLOW_ROW

    @property
    def on_cpu(self) -> bool:
        return self.subject.device.type == "cpu"

    def call(self, setting: Setting, **fields: Any) -> Call:
        """A call in a setting, with the subject's seed."""
        return self.subject.call(setting, **fields)

    def accept(self, setting: Setting) -> bool:
        """Whether the implementation takes a setting; notes the settings that are covered."""
        if self.found and self.stop == "first":
            return False
        left_out = self.recorder.left_out
        try:
            refusal = self.subject.refusal(setting)
        except CertificateError:
            raise
        except PredicateError:
            self.run(Case("selection", self.call(setting, rows=2)))
            return False
        except Exception as error:  # the op's generator or the op itself cannot make it
            left_out.append(f"{setting}: {type(error).__name__}: {_line(error)}")
            return False
        if refusal is not None:
            left_out.append(f"{setting}: refused: {refusal}")
            return False
        self.recorder.settings.append(setting)
        return True

    def takes(self, call: Call) -> bool:
        """Whether the implementation takes the arguments of a call: it may refuse a rank or a stride."""
        try:
            return self.subject.refusal_of(self.subject.arguments(call)) is None
        except Exception:  # the selection probe reports a broken predicate
            return False

    def pairs(
        self,
        probe: str,
        what: str,
        cases: Sequence[Case],
        *,
        required: bool = True,
        stage: Stage = Stage.PLANNED,
    ) -> Steps:
        """Run cases of one probe until one differs. What costs too much now is put off."""
        if probe in self.found or not cases or (self.found and self.stop == "first"):
            return
        seconds = self.cost(cases)
        if self.found and seconds > REFUTED_SECONDS:
            self.recorder.left_out.append(f"{probe}: {what}: already refuted")
            return
        if not (yield Step(probe, what, seconds, required, stage)):
            if stage is Stage.PLANNED:
                self._put_off.append((probe, what, list(cases), required))
            else:
                self.recorder.not_reached(probe, what, seconds, required)
            return
        for case in cases:
            if probe in self.found:
                return
            self.run(case, required=required)

    def cost(self, cases: Sequence[Case]) -> float:
        """Expected seconds of cases that are run one after the other."""
        return sum(probes.expected(self.subject, case, first=n == 0) for n, case in enumerate(cases))

    # -- running -------------------------------------------------------------------------------------------

    def run(self, case: Case, *, required: bool = True, drawn: str = "") -> None:
        """Run one case and record what it says.

        Args:
            case: what to ask.
            required: whether a certificate needs the answer.
            drawn: which random case it is; empty: a planned one.
        """
        self.doing = case.probe
        recorder = self.recorder
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = evaluate(self.subject, case)
        except CertificateError as error:
            recorder.skipped.append(f"{case.probe}: {error.what}")
            return
        except Exception as error:
            recorder.count(case, drawn)
            self._raised(case, error, drawn)
            return
        if isinstance(outcome, Skipped):
            notes = recorder.skipped if required and not drawn else recorder.left_out
            if (note := f"skipped: {case.probe}: {outcome.reason}") not in notes:
                notes.append(note)
            return
        recorder.count(case, drawn)
        if isinstance(outcome, Failed):
            self._failed(case, outcome, drawn)

    def _failed(self, case: Case, failed: Failed, drawn: str) -> None:
        """Make a counterexample small, find its cause, and keep it."""
        if failed.difference is None:
            case, failed = shrinker.smaller_call(self.subject, case, failed) if drawn else (case, failed)
            self.recorder.keep(case, f"{failed.said}, with {case.call}", drawn=drawn)
            return
        found = self._repeatable(failed.difference)
        if drawn and found.case.probe != "repetition":
            found = shrinker.settle(self.subject, found)
        if found.case.probe in self.found:
            return
        case, change, found = shrinker.narrow(self.subject, found, self.recorder.settings)
        mechanism = shrinker.mechanism(self.subject, case)
        self.recorder.keep(case, shrinker.sentence(case), str(found), change, mechanism, drawn)

    def _repeatable(self, found: Difference) -> Difference:
        """The difference itself, or that of the base with itself.

        A call that gives other bits when it is repeated differs from every other call, so that is the cause.
        """
        base = found.case.base
        if base is None or found.case.probe == "repetition":
            return found
        again = Case("repetition", base.but(before="again"), base)
        return self.subject.compare(again) or found

    def _raised(self, case: Case, error: Exception, drawn: str) -> None:
        """An exception is a finding, unless memory ran out or the op itself cannot do this."""
        said = f"{type(error).__name__}: {_line(error)}"
        left_out = self.recorder.left_out
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            left_out.append(f"{case.probe}: {case.call}: not enough memory")
            return
        if case.call.mode.startswith("traced"):  # lowered as one op it works; inlined it does not
            left_out.append(
                f"compiled: the compiler cannot look into it ({said}): register it with opaque=True"
            )
            return
        if case.call.mode == "deterministic" and "determinis" in str(error):
            left_out.append(f"modes: it says that it has no deterministic form ({said})")
            return
        surrounded = case.call.mode not in ("eager", "functional")
        if not surrounded:
            try:
                self.subject.native.func_impl_fn(*self.subject.arguments(case.call))
            except Exception:
                left_out.append(f"{case.call}: the op itself cannot: {said}")
                return
        case = case if surrounded else Case("runs", case.call)
        self.recorder.keep(
            case, f"it accepts these arguments and raises {said}, with {case.call}", drawn=drawn
        )


def evaluate(subject: Subject, case: Case) -> Outcome:
    """Run a case.

    Raises:
        CertificateError: it is no case of this implementation.
    """
    if case.probe not in probes.PROBES:
        raise CertificateError(
            f"There is no probe '{case.probe}'.", why=f"There are {', '.join(probes.PROBES)}."
        )
    return probes.PROBES[case.probe].run(subject, case)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else json.dumps(str(error))
