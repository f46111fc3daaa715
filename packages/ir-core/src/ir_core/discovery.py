# SPDX-License-Identifier: Apache-2.0
"""Discover: entry points become packs and failures; lazily, once, until :func:`refresh`.

Three steps, each only when it is needed: the entry points are listed (no code of a pack runs), the packs' data is
read (their data modules are imported), and the function of one implementation is imported (``pack_impl.py``).
Whatever goes wrong is kept as a :class:`~ir_core.failure.Failure` of that one pack.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ir_core import env
from ir_core.errors import IrWarning, PackError, UnknownOpError, UnknownProviderError
from ir_core.failure import Failure, capture, distribution_of, report
from ir_core.locks import fork_safe_rlock
from ir_core.pack import ImplSpec, KernelPack
from ir_core.pack_impl import PackImpl, resolve

if TYPE_CHECKING:
    from ir_core.op import IrOp
    from ir_core.policy import Policy

GROUP: Final = "ir_core.kernels"


@dataclass(frozen=True)
class Pack:
    """A pack that was read: its data, and the entry point and distribution that bring it."""

    data: KernelPack
    point: Any

    @property
    def distribution(self) -> str:
        return distribution_of(self.point)[0]

    @property
    def version(self) -> str:
        return distribution_of(self.point)[1]


_lock = fork_safe_rlock()
_packs: tuple[Pack, ...] | None = None
_failures: list[Failure] = []
_skipped: tuple[str, ...] = ()
_offers: dict[str, list[tuple[Pack, ImplSpec]]] = {}
_attached: set[str] = set()
_reading = False


def packs() -> tuple[Pack, ...]:
    """The packs of this environment, by distribution name; reads them on the first call."""
    found = _packs
    return _discover() if found is None else found


def failures() -> tuple[Failure, ...]:
    """What is broken: packs, and implementations whose code could not be loaded so far."""
    packs()
    return tuple(_failures)


def skipped() -> tuple[str, ...]:
    """Distributions with packs that ``IR_PACKS`` does not allow."""
    packs()
    return _skipped


def record(failure: Failure) -> None:
    """Keep a failure and warn about it once."""
    with _lock:
        if failure not in _failures:
            _failures.append(failure)
    report([failure])


def normalize(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _discover() -> tuple[Pack, ...]:
    global _packs, _skipped, _reading
    from importlib_metadata import entry_points

    with _lock:
        if _packs is not None:
            return _packs
        if _reading:  # the same thread again: a data module called an op while it was imported
            raise PackError(
                "The packs are being read, and the module of one of them asks for packs or calls an op.",
                fix="Keep the pack's data in a module that imports neither the kernels nor their ops.",
            )
        listed = env.names(env.IR_PACKS)
        allowed = None if listed is None else {normalize(name) for name in listed}
        points = sorted(entry_points(group=GROUP), key=_by_distribution)
        _warn_absent(listed or (), {distribution_of(point)[0] for point in points})
        found: list[Pack] = []
        skipped: list[str] = []
        for point in points:
            name = distribution_of(point)[0]
            if allowed is not None and normalize(name) not in allowed:
                skipped.append(name)
                continue
            _reading = True
            try:
                found.append(Pack(KernelPack.parse(point.load()), point))
            except (Exception, SystemExit) as error:
                record(capture(point, "load the pack", error))
            finally:
                _reading = False
        _offers.clear()
        for pack in found:
            for spec in pack.data.implementations:
                _offers.setdefault(spec.op, []).append((pack, spec))
        _skipped = tuple(skipped)
        _packs = tuple(found)
        return _packs


def _warn_absent(listed: Iterable[str], there: set[str]) -> None:
    """Warn of names in IR_PACKS that no distribution with a pack has: a pack that was asked for does not run."""
    known = {normalize(name) for name in there}
    for name in sorted(listed):
        if normalize(name) in known:
            continue
        meant = env.nearest(f"_{normalize(name)}", {f"_{other}" for other in known})
        hint = f"Did you mean {meant.removeprefix('_')}?" if meant else "Install it, or take it out."
        warnings.warn(
            f"{env.IR_PACKS} names {name}, and no installed distribution of that name has a pack. {hint}",
            IrWarning,
            stacklevel=2,
        )


def detach(name: str) -> None:
    """Forget that the op of that name has been given what packs offer: it was unregistered."""
    with _lock:
        _attached.discard(name)


def check_policy(policy: Policy) -> None:
    """Raise if a policy names an op that nobody offers, or prefers everywhere what no op has.

    Raises:
        UnknownOpError, UnknownProviderError: the message names what exists.
    """
    from ir_core import ops  # noqa: F401  the core's own ops register themselves
    from ir_core.op import IrOp

    for name, _ in policy.ops:
        if name not in IrOp.registry and name not in op_names():
            raise _unknown_op(name, "A policy names it: IR_PRIORITY, or a scope.")
    for provider in policy.prefer:
        if any(provider in op._impls for op in IrOp.registry.values()):
            continue
        packs()
        if provider not in _offered():
            has = sorted({*(p for op in IrOp.registry.values() for p in op._impls), *_offered()})
            raise UnknownProviderError(
                f"No op has a provider '{provider}', and the policy prefers it everywhere.",
                why=f"The providers are {', '.join(has)}.",
                fix=who_offers(provider, "any op"),
            )


def _offered() -> set[str]:
    return {spec.provider for offers in _offers.values() for _, spec in offers}


def _unknown_op(name: str, why: str = "") -> UnknownOpError:
    return UnknownOpError(
        f"There is no op '{name}'.",
        why="\n".join(filter(None, (why, f"The ops are {', '.join(op_names())}."))),
        fix="Check the spelling, or install the pack that brings it.",
    )


def _by_distribution(point: Any) -> tuple[str, str]:
    return normalize(distribution_of(point)[0]), point.name


def attach(op: IrOp) -> None:
    """Give ``op`` the implementations that packs offer for it; once, until :func:`refresh`."""
    if op.name in _attached:
        return
    packs()
    with _lock:
        if op.name in _attached:
            return
        _attached.add(op.name)
        offers = _offers.get(op.name, [])
        for pack, spec in offers:
            rivals = {other.distribution for other, its in offers if its.provider == spec.provider}
            try:
                _check_offer(op, spec, rivals)
                op._add(PackImpl(op, spec, pack.point))
            except (Exception, SystemExit) as error:
                record(capture(pack.point, f"offer {spec.op}/{spec.provider}", error))


def _check_offer(op: IrOp, spec: ImplSpec, rivals: set[str]) -> None:
    from ir_core.registry import RESERVED_PROVIDERS, check_name

    check_name(spec.provider, "Provider")
    if spec.provider in RESERVED_PROVIDERS:
        raise PackError(
            f"Provider name '{spec.provider}' is reserved.", fix="The pack must choose another name."
        )
    if len(rivals) > 1:
        raise PackError(
            f"{' and '.join(sorted(rivals))} both offer '{op.name}/{spec.provider}'; neither is used.",
            fix="Uninstall one of them, or allow one by IR_PACKS.",
        )
    op._refuse_duplicate(spec.provider)
    if spec.inplace and not op.allow_inplace:
        raise PackError(f"'{op.name}/{spec.provider}' is in place, and the op does not allow that.")


def get_op(name: str) -> IrOp:
    """The op of that name: of the core, registered by code, or brought by a pack (which imports it).

    Raises:
        UnknownOpError: nobody offers it; the message names what exists.
        PackError: the pack that offers it is broken.
    """
    from ir_core import ops  # noqa: F401  the core's own ops register themselves
    from ir_core.op import IrOp

    if name in IrOp.registry:
        return IrOp.registry[name]
    bringing = [pack for pack in packs() if name in pack.data.ops]
    if len(bringing) > 1:
        raise PackError(
            f"{' and '.join(f'{pack.distribution} {pack.version}' for pack in bringing)} both bring the op '{name}'.",
            fix=f"Uninstall one of them, or allow one by {env.IR_PACKS}.",
        )
    for pack in bringing:
        try:
            found = resolve(pack.data.ops[name])
            if not isinstance(found, IrOp) or found.name != name:
                raise PackError(f"{pack.data.ops[name]} is {found!r}, not the op '{name}'.")
        except (Exception, SystemExit) as error:
            record(capture(pack.point, f"load op '{name}'", error))
            raise PackError(
                f"Op '{name}' of {pack.distribution} {pack.version} cannot be loaded: {error}",
                fix="`ir-core doctor` has the traceback.",
            ) from error
        return found
    raise _unknown_op(name)


def op_names() -> list[str]:
    """Names of every op that :func:`get_op` knows, without importing those of packs."""
    from ir_core import ops  # noqa: F401
    from ir_core.op import IrOp

    return sorted({*IrOp.registry, *(name for pack in packs() for name in pack.data.ops)})


def who_offers(provider: str, op: str) -> str:
    """The next step for somebody who asked for a provider that an op does not have."""
    broken = [str(failure) for failure in _failures if failure.doing.endswith(f" {op}/{provider}")]
    if broken:
        return f"It is offered but broken: {broken[0]}"
    elsewhere = sorted(
        {spec.op for specs in _offers.values() for _, spec in specs if spec.provider == provider}
    )
    if elsewhere:
        return f"'{provider}' implements {', '.join(elsewhere)}, not {op}."
    if distribution := _WELL_KNOWN.get(provider):
        if distribution in {normalize(name) for name in _skipped}:
            return f"It is in {distribution}, which is installed but not allowed by {env.IR_PACKS}."
        return f"It is in the distribution {distribution}: pip install {distribution}."
    return "Check the spelling, or install the pack that brings it; `ir-core list` shows what there is."


_WELL_KNOWN: Final = {"triton": "ir-kernels-triton", "triton_batch_invariant": "ir-kernels-triton"}


def refresh() -> None:
    """Forget packs, targets and the environment, and read them again when they are next needed.

    What code registered or set as default stays.
    """
    from ir_core import dispatch, locking, platforms, policy
    from ir_core.op import IrOp
    from ir_core.verification import evidence

    global _packs
    with _lock:
        for op in IrOp.registry.values():
            _detach(op, op._impls.items())
        _packs = None
        _failures.clear()
        _offers.clear()
        _attached.clear()
        platforms.refresh()
        evidence.refresh()
        locking.refresh()
        policy.reset_default()
        dispatch.reset_all()


def _detach(op: IrOp, impls: Iterable[tuple[str, Any]]) -> None:
    for provider, impl in list(impls):
        if isinstance(impl, PackImpl):
            op.unregister_impl(provider)
