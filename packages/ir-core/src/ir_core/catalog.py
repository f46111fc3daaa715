# SPDX-License-Identifier: Apache-2.0
"""Which ops there are, and which implementations each has: registered by code, or offered by packs.

What comes and goes is told to listeners (``torch_library.py`` defines torch ops, ``fast_path.py`` forgets selections).
Packs are read when an op is first selected for; an op that a pack brings is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from ir_core import discovery, env
from ir_core.discovery import Found, Pack
from ir_core.errors import DuplicateError, PackError, SchemaError, UnknownOpError, UnknownProviderError
from ir_core.failure import Failure, capture, report
from ir_core.impl import ImplSpec, IrOpImpl, find
from ir_core.locks import fork_safe_rlock
from ir_core.meaning import NATIVE, PORTABLE, RESERVED_PROVIDERS, Meaning, check_name
from ir_core.requirement import AllOf


class Listener(Protocol):
    """Is told what comes, before it is there for callers, and what has gone. An error keeps it from coming."""

    def op_added(self, op: Meaning) -> None: ...
    def op_removed(self, op: Meaning) -> None: ...
    def impl_added(self, impl: IrOpImpl) -> None: ...
    def impl_removed(self, impl: IrOpImpl) -> None: ...


_lock = fork_safe_rlock()
_listeners: list[Listener] = []
_ops: dict[str, Meaning] = {}
_impls: dict[str, dict[str, IrOpImpl]] = {}
_once: set[str] = set()  # ops that were unregistered: a policy may still name them
_own: Pack | None = None
_found: Found | None = None
_failures: list[Failure] = []
_attached: set[str] = set()
_reading = False


def subscribe(listener: Listener) -> None:
    """Tell ``listener`` of every op and implementation from now on."""
    _listeners.append(listener)


# -- ops ---------------------------------------------------------------------------------------------------------


def add_op(op: Meaning) -> None:
    """Take in a new op, with its native implementation and what the core's own pack offers for it.

    Raises:
        DuplicateError: there is one of that name.
        SchemaError, InvalidNameError: a listener refuses it.
    """
    with _lock:
        place = own_pack().data.ops.get(op.name, "") if op.name not in _once else ""
        if place and place.partition(":")[0] != op.native_fn.__module__:
            get_op(op.name)  # the name is taken, whether or not the core's op was asked for
        if op.name in _ops:
            raise DuplicateError(
                f"Op '{op.name}' is already registered.",
                why=f"At {_impls[op.name][NATIVE].origin}.",
                fix="Choose another name, or call .unregister() on the other first.",
            )
        native = IrOpImpl(op, ImplSpec(op.name, NATIVE, op.native_fn, batch_invariant=True))
        for listener in _listeners:
            listener.op_added(op)
        _ops[op.name], _impls[op.name] = op, {}
        add(native)
        _attach(op, [own_pack()])


def remove_op(op: Meaning) -> None:
    """Undo :func:`add_op`; a policy that names the op stays valid."""
    with _lock:
        if _ops.get(op.name) is op:
            del _ops[op.name], _impls[op.name]
            _attached.discard(op.name)
            _once.add(op.name)
            for listener in _listeners:
                listener.op_removed(op)


def loaded() -> list[Meaning]:
    """The ops that are here now, without those of packs that were not asked for yet."""
    return list(_ops.values())


def get_op(name: str) -> Any:
    """The op of that name: registered by code, or brought by a pack (which imports it).

    Raises:
        UnknownOpError: no pack brings it; the message names what exists.
        PackError: the pack that offers it is broken.
    """
    if name in _ops:
        return _ops[name]
    own = name in own_pack().data.ops and name not in _once
    bringing = [own_pack()] if own else [pack for pack in packs() if name in pack.data.ops]
    if len(bringing) > 1:
        raise PackError(
            f"{' and '.join(f'{pack.distribution} {pack.version}' for pack in bringing)} both bring the op '{name}'.",
            fix=f"Uninstall one of them, or allow one by {env.IR_PACKS}.",
        )
    for pack in bringing:
        try:
            found = find(pack.data.ops[name])
            if not isinstance(found, Meaning) or found.name != name:
                raise PackError(f"{pack.data.ops[name]} is {found!r}, not the op '{name}'.")
        except (Exception, SystemExit) as error:
            record(capture(pack.point, f"load op '{name}'", error))
            raise PackError(
                f"Op '{name}' of {pack.distribution} {pack.version} cannot be loaded: {error}",
                fix="`ir-core doctor` has the traceback.",
            ) from error
        return found
    raise unknown_op(name)


def op_names() -> list[str]:
    """Names of every op that :func:`get_op` knows, without importing those of packs."""
    return sorted({*Registry(), *(name for pack in packs() for name in pack.data.ops)})


class Registry(Mapping[str, Any]):
    """The ops that code registered or asked for, and the core's own, by name: ``IrOp.registry``."""

    def __getitem__(self, name: str) -> Any:
        if name in _ops:
            return _ops[name]
        if name in own_pack().data.ops and name not in _once:
            return get_op(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*(n for n in own_pack().data.ops if n not in _once), *_ops]))

    def __len__(self) -> int:
        return len(list(iter(self)))


# -- implementations ---------------------------------------------------------------------------------------------


def impls(op: Meaning) -> dict[str, IrOpImpl]:
    """All implementations of ``op`` by provider, those of installed packs included (this reads the packs)."""
    if op.name not in _attached:
        there = packs()
        with _lock:
            if op.name not in _attached and _ops.get(op.name) is op:
                _attached.add(op.name)
                _attach(op, there)
    return known(op)


def known(op: Meaning) -> dict[str, IrOpImpl]:
    """:func:`impls` without reading packs."""
    return _impls.get(op.name, {}) if _ops.get(op.name) is op else {}


def add(impl: IrOpImpl) -> IrOpImpl:
    """Take in an implementation.

    Raises:
        DuplicateError: there is one of that name.
        SchemaError: a listener refuses it.
    """
    check_new(impl.op, impl.provider)
    for listener in _listeners:
        listener.impl_added(impl)
    _impls[impl.op.name][impl.provider] = impl
    return impl


def check_new(op: Meaning, provider: str) -> None:
    """Raise :class:`DuplicateError` if ``op`` has an implementation of that name."""
    if (there := _impls[op.name].get(provider)) is not None:
        raise DuplicateError(
            f"Implementation '{provider}' of op '{op.name}' is already registered.",
            why=f"By {there.label}, at {there.origin}.",
            fix="Choose another provider name, or call .unregister_impl() first.",
        )


def remove(impl: IrOpImpl) -> None:
    """Undo :func:`add`."""
    del _impls[impl.op.name][impl.provider]
    for listener in _listeners:
        listener.impl_removed(impl)


# -- packs -------------------------------------------------------------------------------------------------------


def own_pack() -> Pack:
    """The pack of the core's own ops; read without asking for entry points."""
    global _own
    if _own is None:
        _own = discovery.own()
    return _own


def packs() -> tuple[Pack, ...]:
    """The installed packs, by distribution name; reads them on the first call."""
    return _read().packs


def failures() -> tuple[Failure, ...]:
    """What is broken: packs, and implementations whose code could not be loaded so far."""
    broken = [impl.failure for its in list(_impls.values()) for impl in its.values() if impl.failure]
    return (*_read().failures, *_failures, *broken)


def skipped() -> tuple[str, ...]:
    """Distributions with packs that ``IR_PACKS`` does not allow."""
    return _read().skipped


def record(failure: Failure) -> None:
    """Keep a failure and warn about it once."""
    if failure not in _failures:
        _failures.append(failure)
    report([failure])


def _read() -> Found:
    global _found, _reading
    found = _found
    if found is None:
        with _lock:
            if _found is None:
                if _reading:  # the same thread again: a data module called an op while it was imported
                    raise PackError(
                        "The packs are being read, and the module of one of them asks for packs or calls an op.",
                        fix="Keep the pack's data in a module that imports neither the kernels nor their ops.",
                    )
                _reading = True
                try:
                    _found = discovery.read()
                finally:
                    _reading = False
            found = _found
    return found


def _offers(name: str, of: list[Pack] | tuple[Pack, ...]) -> list[tuple[Pack, ImplSpec]]:
    return [(pack, spec) for pack in of for spec in pack.data.implementations if spec.op == name]


def _attach(op: Meaning, of: list[Pack] | tuple[Pack, ...]) -> None:
    """Give ``op`` the implementations that packs offer for it; one that does not fit is a failure of its pack."""
    offers = _offers(op.name, of)
    for pack in of:
        for order in pack.data.orders.get(op.name, ()):
            try:
                op.add_order(order)
            except SchemaError as error:
                record(capture(pack.point, f"bring the order '{order.name}' of {op.name}", error))
    for pack, spec in offers:
        rivals = {other.distribution for other, its in offers if its.provider == spec.provider}
        try:
            check_name(spec.provider, "Provider")
            _check_reserved(pack, spec)
            if len(rivals) > 1:
                raise PackError(
                    f"{' and '.join(sorted(rivals))} both offer '{op.name}/{spec.provider}'; neither is used.",
                    fix="Uninstall one of them, or allow one by IR_PACKS.",
                )
            add(IrOpImpl(op, spec, pack.point))
        except (Exception, SystemExit) as error:
            record(capture(pack.point, f"offer {spec.op}/{spec.provider}", error))


def _check_reserved(pack: Pack, spec: ImplSpec) -> None:
    """Raise if the pack offers a reserved name: only ``portable`` of an op that the pack itself brings is its own."""
    if pack.point is discovery.OWN or spec.provider not in RESERVED_PROVIDERS:
        return
    own = spec.op in pack.data.ops and spec.op not in own_pack().data.ops
    if spec.provider != PORTABLE or not own:
        raise PackError(
            f"Provider name '{spec.provider}' is reserved.",
            why=f"Of the reserved names a pack may give only '{PORTABLE}', and only to an op that it brings.",
            fix="The pack must choose another name.",
        )
    # Selection takes it where the device's own bound on batch invariance refuses every other one.
    if spec.requires != AllOf():
        raise PackError(
            f"'{spec.op}/{PORTABLE}' requires {spec.requires}.",
            why=f"'{PORTABLE}' is what runs on every device.",
            fix="Drop 'requires', or choose another name.",
        )


# -- names that do not exist -------------------------------------------------------------------------------------


def check_names(ops: list[str], everywhere: tuple[str, ...]) -> None:
    """Raise if a policy names an op that is not known, or prefers everywhere what no op has.

    Raises:
        UnknownOpError, UnknownProviderError: the message names what exists.
    """
    for name in ops:
        if name not in _ops and name not in _once and name not in op_names():
            raise unknown_op(name, "A policy names it: IR_PRIORITY, or a scope.")
    for provider in everywhere:
        if any(provider in its for its in list(_impls.values())):
            continue
        offered = {spec.provider for pack in (own_pack(), *packs()) for spec in pack.data.implementations}
        if provider not in offered:
            has = sorted({*(p for its in _impls.values() for p in its), *offered})
            raise UnknownProviderError(
                f"No op has a provider '{provider}', and the policy prefers it everywhere.",
                why=f"The providers are {', '.join(has)}.",
                fix=who_offers(provider, "any op"),
            )


def unknown_op(name: str, why: str = "") -> UnknownOpError:
    """The error of asking for an op that does not exist."""
    return UnknownOpError(
        f"There is no op '{name}'.",
        why="\n".join(filter(None, (why, f"The ops are {', '.join(op_names())}."))),
        fix="Check the spelling, or install the pack that brings it.",
    )


def unknown_provider(op: Meaning, provider: str) -> UnknownProviderError:
    """The error of asking for a provider that ``op`` does not have."""
    there = ", ".join(impl.label.partition("/")[2] for impl in known(op).values())
    return UnknownProviderError(
        f"Op '{op.name}' has no provider '{provider}'.",
        why=f"It has {there}.",
        fix=who_offers(provider, op.name),
    )


def who_offers(provider: str, op: str) -> str:
    """The next step after asking for a provider that an op does not have."""
    broken = [str(failure) for failure in failures() if failure.doing.endswith(f" {op}/{provider}")]
    if broken:
        return f"It is offered but broken: {broken[0]}"
    offers = [spec for pack in packs() for spec in pack.data.implementations if spec.provider == provider]
    if offers:
        return f"'{provider}' implements {', '.join(sorted({spec.op for spec in offers}))}, not {op}."
    if distribution := _WELL_KNOWN.get(provider):
        if distribution in {discovery.normalize(name) for name in skipped()}:
            return f"It is in {distribution}, which is installed but not allowed by {env.IR_PACKS}."
        return f"It is in the distribution {distribution}: pip install {distribution}."
    return "Check the spelling, or install the pack that brings it; `ir-core list` shows what there is."


_WELL_KNOWN: Final = {"triton": "ir-kernels-triton", "triton_batch_invariant": "ir-kernels-triton"}


def refresh() -> None:
    """Forget the installed packs and what they brought; what code registered, and the core's own ops, stay."""
    global _found
    with _lock:
        for its in list(_impls.values()):
            for impl in list(its.values()):
                if impl.point is not None and impl.point is not discovery.OWN:
                    remove(impl)
        _found = None
        _failures.clear()
        _attached.clear()
