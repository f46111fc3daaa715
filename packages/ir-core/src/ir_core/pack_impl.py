# SPDX-License-Identifier: Apache-2.0
"""PackImpl: an implementation from a pack, whose code is imported when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ir_core.errors import PackError
from ir_core.failure import capture, distribution_of
from ir_core.impl import IrOpImpl, Pair, check_pair, check_predicate, check_schema
from ir_core.locks import fork_safe_rlock

if TYPE_CHECKING:
    from ir_core.op import IrOp
    from ir_core.pack import ImplSpec

_lock = fork_safe_rlock()


def resolve(path: str) -> Any:
    """The object at ``"module:attribute"``.

    Raises:
        PackError: the module cannot be imported (a ``SystemExit`` included), or has no such attribute.
    """
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise PackError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return found


class PackImpl(IrOpImpl):
    """An :class:`IrOpImpl` made of an :class:`~ir_core.pack.ImplSpec`.

    What selection needs first (flags, requirement) is data; the predicate and the function are imported by
    :meth:`load`. A failure is remembered and reported: the pack is broken, the host goes on.
    """

    def __init__(self, op: IrOp, spec: ImplSpec, point: Any) -> None:
        self._spec, self._point = spec, point
        self._loaded: Callable[..., Any] | None = None
        self._loaded_functional: Callable[..., Any] | None = None
        self._loaded_pair: Pair | None = None
        self._failure: PackError | None = None
        self._predicate_loaded = False
        self._lazy_predicate: Callable[..., Any] | None = None
        distribution, version = distribution_of(point)
        self._describe(
            op,
            spec.provider,
            supported=True,
            inplace=spec.inplace,
            batch_invariant=spec.batch_invariant,
            requires=spec.requires,
            opaque=spec.opaque,
            canonical=spec.canonical,
            modules=spec.sources,
            distribution=distribution,
            distribution_version=version,
            origin=spec.impl,
        )

    @property
    def impl_fn(self) -> Callable[..., Any]:  # type: ignore[override]
        """The function; imports it.

        Raises:
            PackError: it cannot be imported or does not fit the op.
        """
        self.load()
        assert self._loaded is not None
        return self._loaded

    @property
    def functional_fn(self) -> Callable[..., Any] | None:  # type: ignore[override]
        """The functional form of an in-place function; imports it.

        Raises:
            PackError: it cannot be imported or does not fit the op.
        """
        self.load()
        return self._loaded_functional

    @property
    def pair_fn(self) -> Pair | None:  # type: ignore[override]
        """What does two calls in one launch; imports it.

        Raises:
            PackError: it cannot be imported or does not fit the op.
        """
        self.load()
        return self._loaded_pair

    @property
    def _predicate(self) -> Callable[..., Any] | None:  # type: ignore[override]
        if self._spec.supports_args is not None and not self._predicate_loaded:
            with _lock:
                self._attempt(self._load_predicate)
        return self._lazy_predicate

    @property
    def supports_all_args(self) -> bool:
        return self._spec.supports_args is None

    @property
    def offers_pair(self) -> bool:
        return self._spec.pair is not None

    def load(self) -> None:
        """Import the function and check it against the op, once.

        Raises:
            PackError: what went wrong, on every call.
        """
        if self._loaded is None:
            with _lock:
                self._attempt(self._load_function)

    def _load_function(self) -> None:
        if self._loaded is None:
            fn = resolve(self._spec.impl)
            check_schema(self.op, self.provider, fn)
            if self._spec.functional is not None:
                functional = resolve(self._spec.functional)
                check_schema(self.op, self.provider, functional)
                self._loaded_functional = functional
            if self._spec.pair is not None:
                pair = resolve(self._spec.pair)
                check_pair(self.op, self.provider, pair)
                self._loaded_pair = pair
            self._loaded = fn

    def _load_predicate(self) -> None:
        if not self._predicate_loaded:
            assert self._spec.supports_args is not None
            predicate = resolve(self._spec.supports_args)
            check_predicate(self.op, self.provider, predicate)
            self._lazy_predicate, self._predicate_loaded = predicate, True

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._failure is None:
            try:
                action()
            except (Exception, SystemExit) as error:
                from ir_core import discovery

                self._failure = PackError(f"{self.label}: {error}")
                self._failure.__cause__ = error
                discovery.record(capture(self._point, f"load {self.op.name}/{self.provider}", error))
        if self._failure is not None:
            raise self._failure
