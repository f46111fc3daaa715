# SPDX-License-Identifier: Apache-2.0
"""The prober of one implementation: tries to refute it, cheap probes first, and keeps what it finds.

:meth:`Prober.steps` is a generator. It yields what it would do next and what that costs, and is told whether it
may; so one scheduler can share a time budget among many implementations (``session.py``).
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import torch

from ir_core.errors import CertificateError, PredicateError
from ir_core.verification import contract, explain, plan, probes, selecting
from ir_core.verification.calls import Call, Case, Setting
from ir_core.verification.certificate import Finding
from ir_core.verification.subject import Difference, Subject

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.target import Target


REFUTED_SECONDS: Final = 1.0
"""A step that takes longer is left out once there is a counterexample."""


SLOW_ROW: Final = 0.001
"""Seconds: a row of an interpreted kernel takes 3 ms, of plain torch 0.02 ms."""


class Step(NamedTuple):
    """Something to do, and the seconds it is expected to take."""

    probe: str
    what: str
    seconds: float
    patient: bool = False


Stop: TypeAlias = Literal["never", "small", "first"]
Steps: TypeAlias = Generator[Step, bool, None]


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
        self.impl, self.target, self.setup = impl, target, tuple(setup)
        self.found: dict[str, Finding] = {}
        self.cases: Counter[str] = Counter()
        self.skipped: list[str] = []  # required and not run: no certificate
        self.left_out: list[str] = []  # not run, and said so
        self.settings: list[Setting] = []
        self.stop = stop
        self.spent = 0.0
        self.doing = "waiting"
        self._deferred: list[tuple[str, str, list[Case], bool]] = []

    # -- what it does --------------------------------------------------------------------------------------

    def steps(self) -> Steps:
        """Everything, cheap probes first."""
        yield from probes.everything(self)
        deferred, self._deferred = self._deferred, []
        for probe, what, cases, required in deferred:
            yield from self.pairs(probe, what, cases, required=required, last=True)

    @property
    def done(self) -> bool:
        """Whether larger inputs are not wanted any more."""
        return bool(self.found) and self.stop != "never"

    @property
    def slow(self) -> bool:
        """Whether a row takes so long (Triton's interpreter) that fewer of them are tried."""
        call = Call(**vars(self.settings[0]), rows=plan.FIRST_ROWS)
        return self.subject.cost(call) / call.rows > SLOW_ROW

    @property
    def on_cpu(self) -> bool:
        return self.subject.device.type == "cpu"

    @property
    def refuted(self) -> bool:
        return bool(self.found)

    def accept(self, setting: Setting) -> bool:
        """Whether the implementation takes a setting; notes the settings that are covered."""
        if self.found and self.stop == "first":
            return False
        try:
            refusal = self.subject.refusal(setting)
        except CertificateError:
            raise
        except PredicateError:
            self.run(Case("selection", Call(**vars(setting), rows=2)))
            return False
        except Exception as error:  # the op's generator or the op itself cannot make it
            self.left_out.append(f"{setting}: {type(error).__name__}: {_line(error)}")
            return False
        if refusal is not None:
            self.left_out.append(f"{setting}: refused: {refusal}")
            return False
        self.settings.append(setting)
        return True

    def pairs(
        self, probe: str, what: str, cases: Sequence[Case], *, required: bool = True, last: bool = False
    ) -> Steps:
        """Run cases of one probe until one differs. What costs too much now is tried again at the end."""
        if probe in self.found or not cases or (self.found and self.stop == "first"):
            return
        seconds = self.cost(cases[0]) + sum(self.subject.cost(case.call) for case in cases[1:])
        if self.found and seconds > REFUTED_SECONDS:
            self.left_out.append(f"{probe}: {what}: already refuted")
            return
        if not (yield Step(probe, what, seconds, last)):
            if not last:
                self._deferred.append((probe, what, list(cases), required))
            else:
                note = f"{probe}: {what} (about {seconds:.0f} s)"
                (self.skipped if required else self.left_out).append(note)
            return
        for case in cases:
            if probe in self.found:
                return
            self.run(case)

    def cost(self, case: Case) -> float:
        """Expected seconds of a case."""
        extra = {
            "op_compiled": 1.0,
            "op_dynamic": 1.0,
            "traced": 1.5,
            "traced_dynamic": 1.5,
            "inductor": 15.0,
        }
        seconds = self.subject.cost(case.call) + extra.get(case.call.mode, 0.0)
        if case.call.before == "interleaved":
            seconds += 4 * self.subject.cost(case.call)
        if case.probe in contract.CHECKS:
            return {"opcheck": 2.0, "threads": 28 * seconds, "pair": 8 * seconds}.get(case.probe, 2 * seconds)
        return seconds

    # -- running and recording -----------------------------------------------------------------------------

    def run(self, case: Case) -> None:
        """Run one case and keep a finding."""
        self.doing = case.probe
        self.cases[case.probe] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = evaluate(self.subject, case)
        except CertificateError as error:
            self.skipped.append(f"{case.probe}: {error.what}")
            return
        except Exception as error:
            self._raised(case, error)
            return
        if isinstance(answer, Difference):
            answer = self._repeatable(answer)
            case = answer.case
            if case.probe in self.found:
                return
            case, change, answer = explain.narrow(self, answer)
            mechanism = explain.mechanism(self.subject, case)
            self._keep(case, explain.sentence(case), str(answer), change, mechanism)
        elif answer is not None:
            self._keep(case, f"{answer}, with {case.call}")

    def _repeatable(self, found: Difference) -> Difference:
        """The difference itself, or that of the base with itself: a call that does not repeat explains any other."""
        base = found.case.base
        if base is None or found.case.probe == "repetition":
            return found
        again = Case("repetition", base.but(before="again"), base)
        return self.subject.compare(again) or found

    def _keep(
        self, case: Case, summary: str, difference: str = "", change: str = "", mechanism: str = ""
    ) -> None:
        command = command_for(self.impl, case, self.setup, self.target.device)
        self.found[case.probe] = Finding(
            case.probe, summary, case.to_dict(), command, difference, change, mechanism
        )

    def _raised(self, case: Case, error: Exception) -> None:
        """An exception is a finding, unless memory ran out or the op itself cannot do this."""
        said = f"{type(error).__name__}: {_line(error)}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            self.left_out.append(f"{case.probe}: {case.call}: not enough memory")
            return
        if case.call.mode.startswith("traced"):  # lowered as one op it works; inlined it does not
            self.left_out.append(
                f"compiled: the compiler cannot look into it ({said}): register it with opaque=True"
            )
            return
        compiling = case.call.mode not in ("eager", "functional")
        if not compiling:
            try:
                native = self.subject.op._impls["native"]
                native.func_impl_fn(*self.subject.arguments(case.call))
            except Exception:
                self.left_out.append(f"{case.call}: the op itself cannot: {said}")
                return
        probe = case.probe if compiling else "runs"
        if probe not in self.found:
            case = case if compiling else Case("runs", case.call)
            self._keep(case, f"it accepts these arguments and raises {said}, with {case.call}")


def evaluate(subject: Subject, case: Case) -> Difference | str | None:
    """Run a case; ``None`` when nothing is wrong.

    Raises:
        CertificateError: it is no case of this implementation.
    """
    if case.probe in contract.CHECKS:
        return contract.check(case.probe, subject, case.call)
    if case.probe == "selection":
        return selecting.selection(subject, case.call)
    if case.probe == "runs":
        subject.run(case.call)
        return None
    return subject.compare(case)


def command_for(impl: IrOpImpl, case: Case, setup: Sequence[str], device: str) -> str:
    """The command that reproduces a case."""
    words = ["ir-core", "verify", f"{impl.op.name}/{impl.provider}", "--case", case.key()]
    if device != "cpu":
        words += ["--device", device]
    for module in setup:
        words += ["--setup", module]
    return shlex.join(words)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else json.dumps(str(error))
