# SPDX-License-Identifier: Apache-2.0
"""Verify: share a time budget among implementations, and write down what was found."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from ir_core.errors import CertificateError, IrError
from ir_core.verification import evidence, history, identity, plan, store
from ir_core.verification.calls import Case
from ir_core.verification.certificate import Certificate, Finding, Verdict
from ir_core.verification.prober import Prober, Step, Steps, Stop, command_for, evaluate
from ir_core.verification.subject import threads

if TYPE_CHECKING:
    from pathlib import Path

    from ir_core.impl import IrOpImpl
    from ir_core.target import Target

DEFAULT_BUDGET: Final = 60.0
"""Seconds for everything installed, on a CPU machine of two cores."""
GREED: Final = 0.25
"""Part of an implementation's fair share of the remaining time that one step may take before its turn at the end."""


@dataclass
class Report:
    """What one verification found.

    Args:
        certificates: of the implementations that were verified.
        unsupported: implementations that this device cannot run, with the reason.
        seconds: how long it took.
        files: where the certificates were written.
    """

    certificates: list[Certificate] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    files: list[Path] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether something that is declared batch-invariant is refuted."""
        return any(certificate.broken_promise for certificate in self.certificates)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "certificates": [certificate.to_dict() for certificate in self.certificates],
            "unsupported": self.unsupported,
            "files": [str(file) for file in self.files],
        }


class Progress(Protocol):
    """Told what happens; the command line draws it."""

    def update(self, probers: Sequence[Prober], remaining: float) -> None:
        """Something was done."""


class Silent:
    """Draws nothing."""

    def update(self, probers: Sequence[Prober], remaining: float) -> None:
        """Something was done."""


def implementations(names: Iterable[str] = ()) -> list[IrOpImpl]:
    """The implementations named ``op`` or ``op/provider``; all of them without names.

    Raises:
        UnknownOpError, UnknownProviderError: there is none of that name.
    """
    from ir_core import discovery
    from ir_core.policy import OpPolicy, Policy

    found: list[IrOpImpl] = []
    for name in names or discovery.op_names():
        op_name, _, provider = name.partition("/")
        op = discovery.get_op(op_name)
        if provider:
            op.check_known(Policy(ops=((op_name, OpPolicy(prefer=(provider,))),)))
        found += [impl for impl in op.impls.values() if provider in ("", impl.provider)]
    return list(dict.fromkeys(found))


def target_for(device: str | None) -> Target:
    """The target of that name; by default the first device of this process that is really there.

    Raises:
        CertificateError: it is only pretended (``IR_TARGET``).
    """
    from ir_core import platforms

    if device is not None:
        target = platforms.target_of(torch.device(device))
    else:
        target = next((t for t in platforms.targets() if not t.override), platforms.targets()[-1])
    if target.override and target.kind != "cpu":
        raise CertificateError(
            f"{target.device} is only pretended ({target.override}); nothing can be run on it.",
            fix="Verify on --device cpu, or on a machine that has the device.",
        )
    return target


def why_not(impl: IrOpImpl, target: Target) -> str:
    """Why an implementation cannot be verified on a device; empty when it can."""
    if not impl._flag:
        return "registered as not supported on this machine (supported=False)"
    if impl.requires is not None and not (verdict := impl.requires.check(target)):
        return str(verdict)
    if not impl.op.has_input_generator:
        return f"op '{impl.op.name}' has no input generator (register_input_generator)"
    try:
        impl.load()
    except IrError as error:
        return f"cannot be loaded: {error.what}"
    return ""


def verify(
    impls: Sequence[IrOpImpl] | None = None,
    *,
    device: str | None = None,
    budget: float = DEFAULT_BUDGET,
    seed: int = 0,
    setup: Sequence[str] = (),
    fresh_process: bool = True,
    save: bool = True,
    stop: Stop = "never",
    progress: Progress | None = None,
) -> Report:
    """Try to refute each implementation on one device within a time budget.

    Args:
        impls: what to verify; by default everything installed.
        device: torch's name of the device; by default the first one.
        budget: seconds for all of them together. One step that has begun is finished.
        seed: of the inputs.
        setup: ``module`` or ``module:function`` that registers implementations, for the fresh process.
        fresh_process: compare with a second process as well (``history.py``).
        save: write certificates to the user's cache, where dispatch reads them.
        stop: when to stop with a refuted implementation: ``never``, after the ``small`` settings, at the ``first``
            counterexample.
        progress: told about every step.

    Returns:
        The report; every implementation is in it, as a certificate or as unsupported.
    """
    began = time.monotonic()
    target = target_for(device)
    wanted = implementations() if impls is None else list(impls)
    reasons = {impl: why_not(impl, target) for impl in wanted}
    runnable = [impl for impl in wanted if not reasons[impl]]
    for impl in runnable:
        impl.uuid()  # before anything runs: a certificate is for the data that a fresh process has
    probers = [Prober(impl, target, seed, setup, stop) for impl in runnable]
    child = history.Child(runnable, target.device, setup, seed) if fresh_process and runnable else None
    try:
        with torch.no_grad(), threads(1):  # what is not under test needs no threads, and waits for none
            _share(probers, began + budget, progress or Silent())
            if child is not None:
                _check_history(probers, child.results(began + budget - time.monotonic()))
    finally:
        if child is not None:
            child.close()
    report = Report(
        unsupported={f"{i.op.name}/{i.provider}": reason for i, reason in reasons.items() if reason}
    )
    for prober in probers:
        report.certificates.append(certificate(prober))
        if save:
            key = identity.key(prober.impl, target)
            report.files.append(store.save(report.certificates[-1], key))
    if save:
        _act_on_it()
    report.seconds = time.monotonic() - began
    return report


def _act_on_it() -> None:
    """Let dispatch see new certificates."""
    from ir_core import dispatch

    evidence.refresh()
    dispatch.reset_all()


def _share(probers: Sequence[Prober], deadline: float, progress: Progress) -> None:
    """Run the probers' steps: next is who has had the least time, counting what the step would take."""
    waiting: dict[Prober, tuple[Steps, Step]] = {}
    fair = (deadline - time.monotonic()) / max(len(probers), 1)
    for prober in probers:
        _advance(prober, prober.steps(), None, waiting)
    while waiting:
        prober = min(waiting, key=lambda p: p.spent + waiting[p][1].seconds)
        steps, step = waiting.pop(prober)
        remaining = deadline - time.monotonic()
        share, part = remaining / (len(waiting) + 1), 1.0 if step.patient else GREED
        # Who was cheap so far may end with something dear.
        owed = fair - prober.spent if step.patient else 0.0
        allowed = step.seconds <= min(max(part * share, owed, 0.02), max(remaining, 0.0))
        prober.doing = step.probe
        progress.update(probers, remaining)
        _advance(prober, steps, allowed, waiting)
        prober.doing = "done" if prober not in waiting else prober.doing
    progress.update(probers, max(deadline - time.monotonic(), 0.0))


def run_alone(prober: Prober, steps: Steps, seconds: float) -> None:
    """Run some steps of one prober within a time."""
    waiting: dict[Prober, tuple[Steps, Step]] = {}
    until = time.monotonic() + seconds
    with torch.no_grad(), threads(1):
        _advance(prober, steps, None, waiting)
        while waiting:
            started, step = waiting.pop(prober)
            _advance(prober, started, until - time.monotonic() > step.seconds or not prober.cases, waiting)


def _advance(
    prober: Prober, steps: Steps, allowed: bool | None, waiting: dict[Prober, tuple[Steps, Step]]
) -> None:
    """Let a prober go on to its next step, on its own clock."""
    start = time.monotonic()
    try:
        step = next(steps) if allowed is None else steps.send(allowed)
        waiting[prober] = (steps, step)
    except StopIteration:
        pass
    except IrError as error:
        prober.skipped.append(error.what)
    except Exception as error:  # of the op's generator, say: not a verdict about the implementation
        prober.skipped.append(f"the verification stopped: {type(error).__name__}: {error}")
    finally:
        prober.spent += time.monotonic() - start


def _check_history(probers: Sequence[Prober], told: dict[str, Any]) -> None:
    for prober in probers:
        mine = told.get(f"{prober.impl.op.name}/{prober.impl.provider}")
        if not mine or "error" in mine:
            why = mine["error"] if mine else "no answer within the budget"
            prober.left_out.append(f"history: the fresh process could not run it: {why}")
            continue
        prober.cases["history"] += len(mine)
        try:
            found = history.compare(prober.subject, mine)
        except Exception as error:
            prober.left_out.append(f"history: {type(error).__name__}: {error}")
            continue
        if found is not None:
            call, said = found
            case = Case("history", call)
            command = command_for(prober.impl, case, prober.setup, prober.target.device)
            prober.found["history"] = Finding("history", f"{said}, with {call}", case.to_dict(), command)


def certificate(prober: Prober) -> Certificate:
    """What a prober found, as a value."""
    impl = prober.impl
    findings = sorted(prober.found.values(), key=lambda f: plan.ATTRIBUTION.index(f.probe))
    verdict: Verdict = "refuted" if findings else "inconclusive" if prober.skipped else "certified"
    return Certificate(
        op=impl.op.name,
        provider=impl.provider,
        distribution=impl.distribution,
        version=impl.version,
        uuid=impl.uuid(),
        device=identity.device(prober.target),
        declared=impl.batch_invariant,
        verdict=verdict,
        findings=tuple(findings),
        cases=dict(sorted(prober.cases.items())),
        skipped=(*(f"not reached: {note}" for note in prober.skipped), *prober.left_out),
        settings=tuple(str(setting) for setting in prober.settings),
        seconds=round(prober.spent, 2),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seed=prober.subject.seed,
        software=identity.software(),
        not_covered=impl.not_covered(),
    )


def reproduce(
    impl: IrOpImpl, case: Case, *, device: str | None = None, setup: Sequence[str] = ()
) -> str | None:
    """Run one case again; a text about what differs, or ``None`` when nothing does."""
    target = target_for(device)
    prober = Prober(impl, target, case.call.seed, setup)
    if case.probe == "history":
        return _reproduce_history(prober)
    with torch.no_grad():
        try:
            answer = evaluate(prober.subject, case)
        except IrError:
            raise
        except Exception as error:
            return f"It raises {type(error).__name__}: {error}"
    return None if answer is None else str(answer)


def _reproduce_history(prober: Prober) -> str | None:
    child = history.Child([prober.impl], prober.target.device, prober.setup, prober.subject.seed)
    try:
        _check_history([prober], child.results(120.0))
    finally:
        child.close()
    if prober.left_out:
        raise CertificateError(prober.left_out[0])
    found = prober.found.get("history")
    return found.summary if found else None
