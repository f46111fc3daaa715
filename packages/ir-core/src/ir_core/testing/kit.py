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
    from ir_core.verification.prober import Prober, Steps

SECONDS: Final = 20.0
"""Time for the invariance checks of one implementation."""


class ContractError(AssertionError):
    """An implementation does not keep a promise. The message is what there is to say."""


# Check -> the probes that decide it, and where to look when it fails.
CHECKS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "inputs": (
        ("inputs",),
        "An implementation owns its inputs only when it is registered with inplace=True.",
    ),
    "outputs": (
        ("aliasing",),
        "Allocate the outputs in each call; a kernel's static buffer is the next call's too.",
    ),
    "fake": (
        ("fake",),
        "The fake implementation is the op's native one: return its shapes, dtypes and strides.",
    ),
    "opcheck": (
        ("opcheck",),
        "torch.library.opcheck's own explanation is in PyTorch's custom operators manual.",
    ),
    "numerics": (
        ("numerics", "runs"),
        "The bound is the op's tolerance (op.get_tolerance) around a float64 result.",
    ),
    "threads": (("threads",), "Look for module-level buffers and caches that a call writes."),
    "selection": (
        ("selection",),
        "A predicate decides from dtypes, ranks and the last dimension, nothing else.",
    ),
    "compiled": (("compiled",), "Register it with opaque=True, or find what the compiler does differently."),
    "invariance": (
        ("repetition", "neighbours", "position", "memory", "rows", "inplace", "pair", "graph"),
        "Fix the order of every reduction by the number of columns alone.",
    ),
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
            if check == "invariance" and not (
                impl.batch_invariant and ("/" in distribution or _claims(impl))
            ):
                continue
            tests[f"test_{check}_{name}"] = _named(
                f"test_{check}_{name}", partial(run_check, impl, check, device, seconds)
            )
    modules = sorted({_module(impl) for impl in _implementations(distribution)} - {""})
    tests["test_import_touches_no_gpu"] = _named("test_import_touches_no_gpu", partial(check_import, modules))
    return tests


def _claims(impl: IrOpImpl) -> bool:
    """Whether invariance is a pack's own claim: ``native`` of a reduction is torch's order, and nobody vouches."""
    return impl.provider != "native" or not impl.op.has_reduction


def _named(name: str, fn: Callable[[], None]) -> Callable[[], None]:
    def test() -> None:
        fn()

    test.__name__ = test.__qualname__ = name
    return test


def _implementations(distribution: str) -> list[IrOpImpl]:
    from ir_core import discovery
    from ir_core.verification.session import implementations

    if "/" in distribution:
        return implementations([distribution])
    wanted = discovery.normalize(distribution)
    found = [impl for impl in implementations() if discovery.normalize(impl.distribution) == wanted]
    broken = [
        str(failure)
        for failure in discovery.failures()
        if discovery.normalize(failure.distribution) == wanted
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
    from ir_core.impl import check_schema as compare

    try:
        compare(impl.op, impl.provider, impl.impl_fn)
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
    from ir_core.verification import session
    from ir_core.verification.prober import Prober

    target = session.target_for(device)
    if reason := session.why_not(impl, target):
        raise SkipTest(f"{impl.label}: {reason}")
    prober = Prober(impl, target)
    probes, advice = CHECKS[check]
    session.run_alone(prober, _steps(prober, check), seconds)
    for probe in probes:
        if (finding := prober.found.get(probe)) is not None:
            raise ContractError(note(impl, finding, advice))
    if (other := next(iter(prober.found.values()), None)) is not None:
        raise ContractError(note(impl, other, advice))
    if not prober.cases and prober.skipped:
        raise SkipTest(f"{impl.label}: {prober.skipped[0]}")


def _steps(prober: Prober, check: str) -> Steps:
    """The steps that decide a check."""
    from ir_core.verification import plan, probes
    from ir_core.verification.calls import Call, Case, Setting

    small = plan.hidden_sizes(prober.subject, (plan.SMALL,))[0]
    settings = [s for d in plan.dtypes(prober.subject) if prober.accept(s := Setting(d, small))]
    if not settings:
        return
    if check == "invariance":
        yield from probes.everything(prober, compiling=False)
        return
    if check == "compiled":
        yield from probes.compiled(prober, settings[0], tuple(s.dtype for s in settings))
        return
    if check == "selection":
        yield from probes.selection(prober, settings[0])
        return
    layouts = ("contiguous", "odd_slice", "row_strided", "batched")
    name = "aliasing" if check == "outputs" else check
    for setting in settings:
        call = Call(**vars(setting), rows=9)
        several = name in ("inputs", "aliasing", "fake", "numerics")
        calls = [call.but(layout=layout) for layout in layouts if several or layout == "contiguous"]
        calls += [call.but(layout="transposed")] if name == "fake" else []
        yield from prober.pairs(name, str(setting), [Case(name, call) for call in calls])


def note(impl: IrOpImpl, finding: Finding, advice: str) -> str:
    """A failure as a colleague would write it: what was tried, what differed, where to look."""
    lines = [f"{impl.label}: {finding.summary}."]
    lines += [f"  what differed: {finding.difference}"] if finding.difference else []
    lines += [f"  where it begins: {finding.change}"] if finding.change else []
    lines += [f"  why: {finding.mechanism}"] if finding.mechanism else []
    lines += [f"  where to look: {impl.origin}. {advice}", f"  try again: {finding.command}"]
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
