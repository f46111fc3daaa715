# SPDX-License-Identifier: Apache-2.0
"""The checks of the contract kit, as plain functions; any test runner that knows ``test_*`` functions runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from unittest import SkipTest

from ir_core.errors import IrError

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.verification.certificate import Finding
    from ir_core.verification.prober import Prober
    from ir_core.verification.schedule import Steps

SECONDS: Final = 20.0
"""Time for the invariance checks of one implementation."""


class ContractError(AssertionError):
    """An implementation does not keep a promise. The message is what there is to say."""


# Check -> the probes that decide it; what to do about a finding is in the table of probes.
CHECKS: Final[dict[str, tuple[str, ...]]] = {
    "inputs": ("inputs",),
    "outputs": ("aliasing",),
    "arguments": ("arguments",),
    "fake": ("fake",),
    "opcheck": ("opcheck",),
    "numerics": ("numerics", "runs"),
    "threads": ("threads",),
    "selection": ("selection",),
    "modes": ("modes",),
    "compiled": ("compiled",),
    "order": ("order",),
    "invariance": ("repetition", "neighbours", "position", "memory", "rows", "inplace", "pair", "graph"),
}


def contract_tests(
    distribution: str, *, device: str | None = None, seconds: float = SECONDS
) -> dict[str, Any]:
    """The test functions for every implementation that an installed distribution brings.

    Args:
        distribution: its name, as pip knows it; ``"op/provider"`` stands for one implementation, also one that was
            registered by code.
        device: where to run; by default the first device.
        seconds: for the invariance checks of one implementation.

    Returns:
        ``test_...`` functions by name, for ``globals().update``. An implementation that this machine cannot run is
        skipped with the reason.

    Raises:
        ContractError: the distribution offers nothing, or its pack is broken.
    """
    tests: dict[str, Callable[[], None]] = {}
    for impl in _implementations(distribution):
        name = f"{impl.op.name}_{impl.provider}"
        tests[f"test_schema_{name}"] = _named(f"test_schema_{name}", partial(check_schema, impl))
        for check in CHECKS:
            if not _asked(check, impl, named="/" in distribution):
                continue
            tests[f"test_{check}_{name}"] = _named(
                f"test_{check}_{name}", partial(run_check, impl, check, device, seconds)
            )
    modules = sorted({_module(impl) for impl in _implementations(distribution)} - {""})
    tests["test_import_touches_no_gpu"] = _named("test_import_touches_no_gpu", partial(check_import, modules))
    return tests


def _asked(check: str, impl: IrOpImpl, named: bool) -> bool:
    """Whether a check is about something that the implementation declares; ``named``: it was asked for by name."""
    if check == "order":
        from ir_core.verification import orders

        return bool(orders.order_of(impl)) and orders.reference_of(impl) is not None
    if check == "invariance":
        # ``native`` of a reduction is torch's order: a pack does not vouch for it.
        own = impl.provider != "native" or not impl.op.has_reduction
        return impl.batch_invariant and (named or own)
    return True


def _named(name: str, fn: Callable[[], None]) -> Callable[[], None]:
    def test() -> None:
        fn()

    test.__name__ = test.__qualname__ = name
    return test


def _implementations(distribution: str) -> list[IrOpImpl]:
    from ir_core import catalog, discovery
    from ir_core.verification.session import implementations

    if "/" in distribution:
        return implementations([distribution])
    wanted = discovery.normalize(distribution)
    found = [impl for impl in implementations() if discovery.normalize(impl.distribution) == wanted]
    broken = [
        str(failure) for failure in catalog.failures() if discovery.normalize(failure.distribution) == wanted
    ]
    if broken:
        raise ContractError(f"The pack of {distribution} is broken.\n" + "\n".join(broken))
    if not found:
        raise ContractError(
            f"{distribution} offers no implementation.\nIs it installed, and has it an entry point of the group "
            f"'{discovery.GROUP}'? `ir-core list` shows what there is."
        )
    return found


def _module(impl: IrOpImpl) -> str:
    return impl.origin.partition(":")[0] if "/" not in impl.origin else ""


def check_schema(impl: IrOpImpl) -> None:
    """The implementation can be imported and has the op's parameters, types and defaults."""
    from ir_core.meaning import check_schema as compare

    try:
        compare(impl.op, impl.impl_fn, impl.spec.what)
        impl.supports_args  # noqa: B018  loads the predicate, too
        impl.refusal(impl.op.apply_arg_defaults(_sample(impl)), [])
    except IrError as error:
        raise ContractError(f"{impl.label} does not fit its op.\n{error}") from None


def _sample(impl: IrOpImpl) -> tuple[Any, ...]:
    import torch

    return impl.op.generate_inputs(num_tokens=3, hidden_size=64, dtype=torch.float32)


def run_check(impl: IrOpImpl, check: str, device: str | None = None, seconds: float = SECONDS) -> None:
    """One check of one implementation.

    Raises:
        ContractError: it fails.
        unittest.SkipTest: this machine cannot run the implementation.
    """
    from ir_core.verification import schedule, session
    from ir_core.verification.prober import Prober

    target = session.target_for(device)
    if reason := session.why_not(impl, target):
        raise SkipTest(f"{impl.label}: {reason}")
    prober = Prober(impl, target)
    schedule.run_alone(prober, _steps(prober, check), seconds)
    for probe in CHECKS[check]:
        if (finding := prober.found.get(probe)) is not None:
            raise ContractError(note(impl, finding))
    if (other := next(iter(prober.found.values()), None)) is not None:
        raise ContractError(note(impl, other))
    if not prober.cases and (left := (*prober.recorder.skipped, *prober.recorder.left_out)):
        raise SkipTest(f"{impl.label}: {left[0]}")


def _steps(prober: Prober, check: str) -> Steps:
    """The steps that decide a check."""
    from ir_core.verification import plan, planned
    from ir_core.verification.calls import Case, Setting
    from ir_core.verification.modes import AMBIENT

    small = plan.hidden_sizes(prober.subject, (plan.SMALL,))[0]
    settings = [s for d in plan.dtypes(prober.subject) if prober.accept(s := Setting(d, small))]
    if not settings:
        return
    if check == "invariance":
        yield from planned.everything(prober, compiling=False)
        yield from prober.put_off()
        return
    if check == "compiled":
        yield from planned.compiled(prober, settings[0], tuple(s.dtype for s in settings))
        return
    if check == "selection":
        yield from planned.selection(prober, settings[0])
        return
    if check in ("arguments", "modes", "order"):
        for setting in settings:
            if check == "arguments":
                yield from planned.other_arguments(prober, setting, ("#1",))
            elif check == "modes":
                yield from planned.modes(prober, setting, AMBIENT)
            else:
                yield from planned.declared_order(prober, setting)
        return
    layouts = ("contiguous", "odd_slice", "row_strided", "batched")
    name = "aliasing" if check == "outputs" else check
    for setting in settings:
        call = prober.call(setting, rows=9)
        several = name in ("inputs", "aliasing", "fake", "numerics")
        calls = [call.but(layout=layout) for layout in layouts if several or layout == "contiguous"]
        calls += [call.but(layout="transposed")] if name == "fake" else []
        yield from prober.pairs(name, str(setting), [Case(name, call) for call in calls])


def note(impl: IrOpImpl, finding: Finding) -> str:
    """A failure as a colleague would write it: what was tried, what differed, what that means, where to look."""
    from ir_core.verification.probes import PROBES

    probe = PROBES[finding.probe]
    lines = [f"{impl.label}: {finding.summary}."]
    lines += [f"  what differed: {finding.difference}"] if finding.difference else []
    lines += [f"  where it begins: {finding.change}"] if finding.change else []
    lines += [f"  why: {finding.mechanism}"] if finding.mechanism else []
    lines += [f"  what it means: {probe.means}"]
    lines += [f"  where to look: {impl.origin}. {probe.todo}", f"  try again: {finding.command}"]
    return "\n".join(lines)


def check_import(modules: list[str]) -> None:
    """Importing the modules of the implementations, in a fresh process, creates no CUDA context.

    Raises:
        ContractError: it does, or a module cannot be imported.
    """
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "torch = sys.modules.get('torch')\n"
        "sys.exit(7 if torch is not None and torch.cuda.is_initialized() else 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    if run.returncode == 7:
        raise ContractError(
            f"Importing {', '.join(modules)} creates a CUDA context.\nA host that forks later (vLLM does) cannot use "
            "the device any more: ask about devices when a call is made, not at import."
        )
    if run.returncode:
        raise ContractError(
            f"{', '.join(modules)} cannot be imported in a fresh process:\n{run.stderr[-2000:]}"
        )
