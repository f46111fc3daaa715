# SPDX-License-Identifier: Apache-2.0
"""IrOp: the face of an op, source-compatible with vLLM's IR. What it means is :class:`~ir_core.meaning.Meaning`.

Register, select and call; each verb is a few lines here and lives in a room below: ``catalog.py``, ``resolve.py``,
``fast_path.py``. Nothing below imports this module.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, overload

from ir_core import catalog, fast_path, policy, resolve, torch_library
from ir_core.errors import ReservedProviderError, SchemaError, check_flags
from ir_core.impl import CODE, ImplSpec, IrOpImpl
from ir_core.meaning import NATIVE, RESERVED_PROVIDERS, Meaning, Order, check_name
from ir_core.policy import OpPolicy, Policy

__all__ = ["RESERVED_PROVIDERS", "IrOp", "get_op", "register_op"]

_PROPERTIES = {f.name: f for f in fields(ImplSpec) if f.name not in ("op", "provider", "impl")}


class IrOp(Meaning):
    """An op: a schema, a meaning, and implementations to select from. Made by :func:`ir_core.register_op`.

    Calling it runs the implementation that is selected for the arguments. ``op.maybe_inplace`` (ops registered
    with ``allow_inplace=True``) does too, and donates the activation inputs: their contents are undefined after, a
    result may have the memory and the strides of one of them, and no two of them may share memory.

    Attributes:
        registry: all ops by name.
        torch_op: the torch library op ``torch.ops.ir_core.<name>.default``.
    """

    registry: ClassVar[Mapping[str, IrOp]] = catalog.Registry()
    maybe_inplace: Callable[..., Any]
    torch_op: Any

    # -- register ------------------------------------------------------------------------------------------

    @property
    def impls(self) -> dict[str, IrOpImpl]:
        """All implementations by provider, those of installed packs included (this discovers them)."""
        return catalog.impls(self)

    def register_impl(self, provider: str, **properties: Any) -> Callable[[Callable[..., Any]], IrOpImpl]:
        """Decorator that registers an implementation of this op.

        Args:
            provider: its name, unique within the op.
            properties: the fields of :class:`ir_core.ImplSpec`, functions in place of paths: ``supported``,
                ``supports_args``, ``inplace``, ``batch_invariant``, ``requires``, ``order`` and so on.

        Raises:
            InvalidNameError, ReservedProviderError, DuplicateError, SchemaError: it does not fit the op.
        """
        check_name(provider, "Provider")
        if provider in RESERVED_PROVIDERS:
            raise ReservedProviderError(
                f"Provider name '{provider}' is reserved.",
                why=f"{', '.join(RESERVED_PROVIDERS)} belong to the project.",
                fix="Choose another name, for example that of your package.",
            )
        return self._register_builtin(provider, **properties)

    register_impl.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("provider", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str"),
            *(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=f.default,
                    annotation="Callable[..., Any] | None" if name in CODE else f.type,
                )
                for name, f in _PROPERTIES.items()
            ),
        ],
        return_annotation="Callable[[Callable[..., Any]], IrOpImpl]",
    )

    def _register_builtin(self, provider: str, **properties: Any) -> Callable[[Callable[..., Any]], IrOpImpl]:
        """:meth:`register_impl` for the project's own reserved names."""
        if unknown := sorted(set(properties) - set(_PROPERTIES)):
            raise SchemaError(
                f"Implementation '{provider}' of op '{self.name}' has the unknown property {', '.join(unknown)}.",
                why=f"Properties: {', '.join(_PROPERTIES)}.",
            )

        def register(fn: Callable[..., Any]) -> IrOpImpl:
            catalog.check_new(self, provider)
            return catalog.add(IrOpImpl(self, ImplSpec(self.name, provider, fn, **properties)))

        return register

    def register_check(self, fn: Callable[..., None]) -> Callable[..., None]:
        made = super().register_check(fn)
        fast_path.reset(self)  # what was selected for wrong arguments no longer counts
        return made

    register_check.__doc__ = Meaning.register_check.__doc__

    def unregister_impl(self, provider: str) -> None:
        """Undo :meth:`register_impl`; ``native`` stays.

        Raises:
            UnknownProviderError: there is none of that name.
        """
        if provider == NATIVE:
            raise ReservedProviderError("'native' is what the op means; it cannot be unregistered.")
        if (impl := catalog.known(self).get(provider)) is None:
            raise catalog.unknown_provider(self, provider)
        catalog.remove(impl)

    def unregister(self) -> None:
        """Undo :func:`ir_core.register_op`: the name is free again, and the torch op is gone.

        A default or a scope that names the op stays valid, and counts again when the op comes back.
        """
        catalog.remove_op(self)

    # -- select --------------------------------------------------------------------------------------------

    def supported_providers(self) -> list[str]:
        """Providers that some device of this process can run."""
        return [name for name, impl in self.impls.items() if impl.supported]

    def dispatch(self, *args: Any, **kwargs: Any) -> IrOpImpl:
        """The implementation that a call with these arguments runs (reasons: :func:`ir_core.select`)."""
        return resolve.resolve(self, policy.current(), self.bind(args, kwargs))[1]

    def get_priority(self) -> list[str]:
        """The providers that a call here would try, in order; empty when nothing is named for this op.

        Ends with the first one that takes every argument, as in vLLM IR: nothing behind it is ever reached.
        """
        here = policy.current()
        own = here.for_op(self.name)
        asked = own.named or own.order or own.batch_invariant is not None
        return resolve.priority(self, here) if asked or any(p in self.impls for p in here.prefer) else []

    def _op_policy(self, priority: Sequence[str], batch_invariant_only: bool) -> OpPolicy:
        if not isinstance(priority, str):  # a name twice says nothing that once does not
            priority = tuple(dict.fromkeys(priority))
        check_flags(SchemaError, f"A priority of op '{self.name}'", batch_invariant_only=batch_invariant_only)
        changed = OpPolicy(prefer=priority, batch_invariant=True if batch_invariant_only else None)  # type: ignore[arg-type]
        resolve.check_known(self, Policy(ops=((self.name, changed),)))
        return changed

    @contextlib.contextmanager
    def set_priority(self, priority: Sequence[str], *, batch_invariant_only: bool = False) -> Iterator[None]:
        """Prefer these providers, in this order, inside a ``with`` block.

        ``native`` stands behind them (in batch-invariant mode ``portable``); providers that this machine does not
        support are passed over, and a warning says so once.

        Args:
            priority: provider names.
            batch_invariant_only: consider batch-invariant implementations only, whatever the mode.

        Raises:
            UnknownProviderError: a name that this op does not have.
        """
        mine = self._op_policy(priority, batch_invariant_only)
        with policy.scope(policy.current().with_op(self.name, mine)):
            yield

    def set_default(self, priority: Sequence[str], *, batch_invariant_only: bool = False) -> None:
        """:meth:`set_priority` for the life of the process."""
        mine = self._op_policy(priority, batch_invariant_only)
        policy.change_default(lambda old: old.with_op(self.name, mine))

    # -- call ----------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("replaced when the op is registered")

    def source(self) -> str:
        """The text of the functions that a call runs here: the op's own, and what its torch op runs below autograd."""
        here = policy.here()
        texts = []
        for callee in fast_path.callees(self):
            name = f"{self.name}{'.maybe_inplace' if callee.inplace else ''}"
            where = "below its torch op" if callee.kernel else "as it is called"
            functions = [callee.function] if here is None else [callee.function, callee.scoped[here]]
            lines = [line for f in functions for line in linecache.getlines(f.__code__.co_filename)]
            texts.append(f"# {name}, {where}\n" + "".join(lines))
        return "\n".join(texts)

    def __str__(self) -> str:
        first = (self.__doc__ or "").partition("\n")[0].strip()
        return f"{self!r} - {first}" if first else repr(self)

    def __reduce__(self) -> Any:
        return get_op, (self.name,)


def get_op(name: str) -> IrOp:
    """The op of that name: of the core, registered by code, or brought by a pack (which imports it).

    Raises:
        UnknownOpError: no pack brings it; the message names what exists.
        PackError: the pack that offers it is broken.
    """
    op: IrOp = catalog.get_op(name)
    return op


@overload
def register_op(
    f: Callable[..., Any],
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
    orders: Sequence[Order] = (),
) -> IrOp: ...


@overload
def register_op(
    f: None = None,
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
    orders: Sequence[Order] = (),
) -> Callable[[Callable[..., Any]], IrOp]: ...


def register_op(
    f: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
    orders: Sequence[Order] = (),
) -> Any:
    """Register an op: the decorated function is its native implementation, that is, its meaning.

    Args:
        f: the native implementation, when used without parentheses.
        name: the op's name; by default the function's.
        activations: parameters whose leading dimensions are the batch; by default those named ``x...``.
        allow_inplace: give the op a ``maybe_inplace`` overload, for implementations that reuse input memory.
        has_reduction: output elements sum over input elements; implementations are then not batch-invariant
            unless they declare it. By default what a trace of the function without data shows: reductions, matrix
            products, cumulative and unknown ops make it one.
        orders: the orders it may be computed in (:class:`ir_core.Order`); of those that count on a device the first
            is the default in batch-invariant mode.

    Returns:
        The :class:`IrOp`, or a decorator that makes it.

    Raises:
        InvalidNameError, DuplicateError, SchemaError: the function cannot be an op.
    """

    def register(fn: Callable[..., Any]) -> IrOp:
        op = IrOp(
            fn.__name__ if name is None else name,
            fn,
            activations,
            allow_inplace=allow_inplace,
            has_reduction=has_reduction,
            orders=orders,
        )
        catalog.add_op(op)
        op.torch_op = torch_library.of(op).functional
        return op

    return register if f is None else register(f)
