# SPDX-License-Identifier: Apache-2.0
"""Verify: a session over several implementations on one device, from the budget to the certificates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from ir_core.errors import CertificateError, IrError
from ir_core.verification import evidence, history, identity, planned, random_cases, schedule, store
from ir_core.verification.calls import Case
from ir_core.verification.certificate import Certificate
from ir_core.verification.outcome import Failed, Skipped
from ir_core.verification.prober import Prober, Stop, evaluate
from ir_core.verification.schedule import Progress, Steps
from ir_core.verification.subject import threads

if TYPE_CHECKING:
    from pathlib import Path

    from ir_core.impl import IrOpImpl
    from ir_core.target import Target

DEFAULT_BUDGET: Final = 60.0
"""Seconds for everything installed, on a CPU machine of two cores."""


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
        """Whether something that is declared batch-invariant, without conditions, is refuted."""
        return any(c.broken_promise and not conditional(c.op, c.provider) for c in self.certificates)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "certificates": [certificate.to_dict() for certificate in self.certificates],
            "unsupported": self.unsupported,
            "files": [str(file) for file in self.files],
        }


def conditional(op: str, provider: str) -> bool:
    """Whether an implementation is invariant under conditions only: the native one of a reduction is torch's own."""
    from ir_core.meaning import NATIVE
    from ir_core.op import get_op

    return provider == NATIVE and get_op(op).has_reduction


def implementations(names: Iterable[str] = ()) -> list[IrOpImpl]:
    """The implementations named ``op`` or ``op/provider``; all of them without names.

    Raises:
        UnknownOpError, UnknownProviderError: there is none of that name.
    """
    from ir_core import catalog, resolve
    from ir_core.op import get_op
    from ir_core.policy import OpPolicy, Policy

    found: list[IrOpImpl] = []
    for name in names or catalog.op_names():
        op_name, _, provider = name.partition("/")
        op = get_op(op_name)
        if provider:
            resolve.check_known(op, Policy(ops=((op_name, OpPolicy(prefer=(provider,))),)))
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
    if not impl.spec.supported:
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
    random: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Try to refute each implementation on one device within a time budget.

    Planned cases come first. The rest of the budget belongs to random ones, all of it unless ``random`` says how many.

    Args:
        impls: what to verify; by default everything installed.
        device: torch's name of the device; by default the first one.
        budget: seconds for all of them together. One step that has begun is finished; cheap steps without which there
            is no certificate may take as long again, for a machine that is busy.
        seed: of the inputs.
        setup: ``module`` or ``module:function`` that registers implementations, for the fresh process.
        fresh_process: compare with a second process as well (``history.py``).
        save: write certificates to the user's cache, where dispatch reads them.
        stop: when to stop with a refuted implementation: ``never``, after the ``small`` settings, at the ``first``
            counterexample.
        random: how many random cases of each implementation to run at most; ``None``: as the budget allows.
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
            work: dict[schedule.Worker, Steps] = {p: _steps(p, random) for p in probers}
            schedule.share_time(work, began + budget, budget, progress)
            if child is not None:
                _check_history(probers, child.results(began + 2 * budget - time.monotonic()))
    finally:
        if child is not None:
            child.close()
    report = Report(
        unsupported={f"{i.op.name}/{i.provider}": reason for i, reason in reasons.items() if reason}
    )
    for prober in probers:
        report.certificates.append(prober.recorder.certificate(prober.spent))
        if save:
            key = identity.key(prober.impl, target)
            report.files.append(store.save(report.certificates[-1], key))
    if save:
        _act_on_it()
    report.seconds = time.monotonic() - began
    return report


def _act_on_it() -> None:
    """Let dispatch see new certificates."""
    from ir_core import fast_path

    evidence.refresh()
    fast_path.reset_all()


def _steps(prober: Prober, most: int | None) -> Steps:
    """Everything: planned cases, those that were put off, and random ones."""
    yield from planned.everything(prober)
    yield from prober.put_off()
    if prober.recorder.settings:
        yield from random_cases.steps(prober, most)


def _check_history(probers: Sequence[Prober], told: dict[str, Any]) -> None:
    for prober in probers:
        recorder = prober.recorder
        mine = told.get(f"{prober.impl.op.name}/{prober.impl.provider}")
        if mine is None:
            recorder.skipped.append("not reached: history: no answer of the fresh process within the budget")
            continue
        if "error" in mine:
            recorder.left_out.append(f"history: the fresh process could not run it: {mine['error']}")
            continue
        recorder.cases["history"] += len(mine)
        try:
            found = history.compare(prober.subject, mine)
        except Exception as error:
            recorder.left_out.append(f"history: {type(error).__name__}: {error}")
            continue
        if found is not None:
            call, said = found
            recorder.keep(Case("history", call), f"{said}, with {call}")


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
            outcome = evaluate(prober.subject, case)
        except IrError:
            raise
        except Exception as error:
            return f"It raises {type(error).__name__}: {error}"
    if isinstance(outcome, Skipped):
        raise CertificateError(f"The case cannot be run here: {outcome.reason}.")
    return outcome.said if isinstance(outcome, Failed) else None


def _reproduce_history(prober: Prober) -> str | None:
    child = history.Child([prober.impl], prober.target.device, prober.setup, prober.subject.seed)
    try:
        _check_history([prober], child.results(120.0))
    finally:
        child.close()
    if left := (*prober.recorder.skipped, *prober.recorder.left_out):
        raise CertificateError(left[0])
    found = prober.found.get("history")
    return found.summary if found else None
