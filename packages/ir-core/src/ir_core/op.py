# SPDX-License-Identifier: Apache-2.0
"""IrOp: what an op means (its native implementation), what it offers, and how it is called."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from ir_core import codegen, dispatch, policy, torch_library
from ir_core.errors import (
    DuplicateError,
    IrError,
    PolicyError,
    ReservedProviderError,
    SchemaError,
    UnknownProviderError,
)
from ir_core.impl import IrOpImpl, Pair, schema_of
from ir_core.policy import OpPolicy, Policy
from ir_core.registry import OPS, RESERVED_PROVIDERS, check_name
from ir_core.selection import NATIVE
from ir_core.tolerances import DEFAULT_TOLERANCES, Tolerance


class IrOp:
    """An op: a schema, a meaning, and implementations to select from. Made by :func:`ir_core.register_op`.

    Calling it runs the implementation that is selected for the arguments. ``op.maybe_inplace`` (ops registered
    with ``allow_inplace=True``) does too, and donates the activation inputs: their contents are undefined after, a
    result may have the memory and the strides of one of them, and no two of them may share memory.

    Attributes:
        registry: all ops by name.
        name, schema, signature, params: what it is called with; ``schema`` is torch's text of it.
        activations: the parameters whose leading dimensions are the batch.
        has_reduction: whether an output element sums over input elements; if so, an implementation is not
            batch-invariant unless it says so. What the author said, else what a trace of the native implementation
            shows (:func:`ir_core.reductions.found`), made when it is first asked for.
        torch_op: the torch library op ``torch.ops.ir_core.<name>.default``.
        parameter_values: documented values of parameters, by name and label (:meth:`register_values`).
    """

    registry: ClassVar[dict[str, IrOp]] = OPS
    maybe_inplace: Callable[..., Any]
    tensor_params: dict[str, str]
    _tables: dict[Any, dispatch.Table]
    _installed = False

    def __init__(
        self,
        name: str,
        native_impl: Callable[..., Any],
        activations: Sequence[str] | None = None,
        *,
        allow_inplace: bool = False,
        has_reduction: bool | None = None,
    ) -> None:
        check_name(name, "Op")
        self.name = name
        self.signature = inspect.signature(native_impl)
        self.params = tuple(self.signature.parameters)
        self._check_parameters()
        if activations is None:
            activations = [param for param in self.params if param.startswith("x")]
        if unknown := [a for a in activations if a not in self.params]:
            raise SchemaError(
                f"Op '{name}' has no parameter {', '.join(unknown)}, which is named as an activation.",
                why=f"It has {', '.join(self.params)}.",
            )
        self.activations = tuple(activations)
        self.activation_indices = tuple(i for i, p in enumerate(self.params) if p in self.activations)
        self.allow_inplace = allow_inplace
        self._has_reduction = has_reduction
        self.schema: str = schema_of(f"Op '{name}'", native_impl)
        if re.search(r"Tensor\??\[", self.schema):
            raise SchemaError(
                f"Op '{name}' takes or returns a list of tensors.",
                why="Facts, gradients and donation are defined for tensors that are parameters of their own.",
                fix="Give each tensor its own parameter, and return a tuple.",
            )
        self.__doc__ = inspect.getdoc(native_impl)
        self._impls: dict[str, IrOpImpl] = {}
        self._fake_fn: Callable[..., Any] = native_impl
        self._backward_fn: Callable[..., Any] | None = None
        self._input_generator: Callable[..., tuple[Any, ...]] | None = None
        self.parameter_values: dict[str, dict[str, Any]] = {}
        self._tolerances: dict[torch.dtype, Tolerance] = {}
        self._library = torch_library.OpLibrary(self)
        self.torch_op = self._library.functional
        self._add(IrOpImpl(self, NATIVE, native_impl, batch_invariant=True, **_home(native_impl)))
        dispatch.install(self)

    def _check_parameters(self) -> None:
        kinds = inspect.Parameter
        for parameter in self.signature.parameters.values():
            if parameter.name.startswith(codegen.PREFIX):
                raise SchemaError(
                    f"Op '{self.name}' has the parameter '{parameter.name}'; '{codegen.PREFIX}' is ours."
                )
            if parameter.kind is kinds.KEYWORD_ONLY:
                raise SchemaError(
                    f"Op '{self.name}' has the keyword-only parameter '{parameter.name}'.",
                    why="A lowered graph passes every argument by position.",
                    fix="Take it by position as well.",
                )
            if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
                raise SchemaError(
                    f"Op '{self.name}' takes *{parameter.name}.",
                    fix="Name every parameter; a schema needs it.",
                )

    # -- register ------------------------------------------------------------------------------------------

    @property
    def has_reduction(self) -> bool:
        if self._has_reduction is not None:
            return self._has_reduction
        from ir_core import reductions

        return bool(reductions.found(self))

    @property
    def batch_invariant(self) -> bool:
        """What an implementation is that does not say: invariant, unless the op has a reduction."""
        return not self.has_reduction

    @property
    def impls(self) -> dict[str, IrOpImpl]:
        """All implementations by provider, those of installed packs included (this discovers them)."""
        from ir_core import discovery

        discovery.attach(self)
        return self._impls

    def register_impl(
        self,
        provider: str,
        *,
        supported: bool = True,
        supports_args: Callable[..., Any] | None = None,
        inplace: bool = False,
        batch_invariant: bool | None = None,
        requires: Any = None,
        opaque: bool = False,
        canonical: bool = False,
        functional: Callable[..., Any] | None = None,
        pair: Pair | None = None,
    ) -> Callable[[Callable[..., Any]], IrOpImpl]:
        """Decorator that registers an implementation of this op.

        Args:
            provider: its name, unique within the op.
            supported: whether it can run on this machine at all.
            supports_args: predicate over the op's parameters, given facts in place of tensors (``ir_core.facts``);
                returns ``True``, ``False`` or the reason for refusing.
            inplace: it may write its results into its activation inputs.
            batch_invariant: whether the bits of an output row depend on that row alone; by default what the op
                says: no for an op with a reduction, else yes.
            requires: what the device must have: a requirement value or its text, ``"sm>=9.0"``.
            opaque: a compiled graph calls it as one op and never traces into it.
            canonical: its bits are those of ``portable``; in batch-invariant mode it stands before those whose are
                not.
            functional: with ``inplace``, the same with the same bits into memory of its own, for calls whose inputs
                must stay; without it such calls work on copies.
            pair: ``pair(first, second)`` does two calls in one launch, given the complete arguments of each, and
                returns what both return: with functional semantics and the bits of two calls. A compiled graph may
                run neighbouring calls through it (the q and k norms of an attention layer).

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

        def register(fn: Callable[..., Any]) -> IrOpImpl:
            return self._register(
                provider,
                fn,
                supported=supported,
                supports_args=supports_args,
                inplace=inplace,
                batch_invariant=batch_invariant,
                requires=requires,
                opaque=opaque,
                canonical=canonical,
                functional=functional,
                pair=pair,
            )

        return register

    def _register_builtin(self, provider: str, **kwargs: Any) -> Callable[[Callable[..., Any]], IrOpImpl]:
        """:meth:`register_impl` for the project's own reserved names."""
        return lambda fn: self._register(provider, fn, **kwargs)

    def _register(self, provider: str, fn: Callable[..., Any], **kwargs: Any) -> IrOpImpl:
        self._refuse_duplicate(provider)
        return self._add(IrOpImpl(self, provider, fn, **kwargs, **_home(fn)))

    def _refuse_duplicate(self, provider: str) -> None:
        if (there := self._impls.get(provider)) is not None:
            raise DuplicateError(
                f"Implementation '{provider}' of op '{self.name}' is already registered.",
                why=f"By {there.label}, at {there.origin}.",
                fix="Choose another provider name, or call .unregister_impl() first.",
            )

    def _add(self, impl: IrOpImpl) -> IrOpImpl:
        self._library.define_provider(impl)
        self._impls[impl.provider] = impl
        dispatch.reset(self)
        return impl

    def unregister_impl(self, provider: str) -> None:
        """Undo :meth:`register_impl`; ``native`` stays.

        Raises:
            UnknownProviderError: there is none of that name.
        """
        if provider == NATIVE:
            raise ReservedProviderError("'native' is what the op means; it cannot be unregistered.")
        if provider not in self._impls:
            raise self._unknown(provider)
        del self._impls[provider]
        self._library.undefine_provider(provider)
        dispatch.reset(self)

    def register_fake(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: compute shapes, dtypes and strides with ``fn`` instead of the native implementation."""
        self._fake_fn = fn
        return fn

    def register_backward(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: use ``fn(args, grad_outputs)`` as the backward in place of the native implementation's vjp.

        ``args`` is the complete argument tuple, ``grad_outputs`` one gradient (or ``None``) an output; it returns
        one gradient (or ``None``) an argument.
        """
        self._backward_fn = fn
        return fn

    def register_input_generator(self, fn: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Decorator: ``fn(num_tokens, hidden_size, dtype, ...)`` makes arguments for tests and benchmarks."""
        self._input_generator = fn
        return fn

    def register_values(self, **values: Sequence[Any] | Mapping[str, Any]) -> None:
        """Document what parameters may be, for verification: ``register_values(approximate=("none", "tanh"))``.

        A parameter's default needs no mention. A mapping names its values; a value may be a function of the hidden
        size: ``register_values(variance_size={"half": lambda hidden: hidden // 2})``.

        Raises:
            SchemaError: the op has no such parameter.
        """
        for name, listed in values.items():
            if name not in self.params:
                raise SchemaError(
                    f"Op '{self.name}' has no parameter '{name}', whose values are documented.",
                    why=f"It has {', '.join(self.params)}.",
                )
            named = listed if isinstance(listed, Mapping) else {str(value): value for value in listed}
            self.parameter_values[name] = dict(named)

    # -- what it knows -------------------------------------------------------------------------------------

    @property
    def has_input_generator(self) -> bool:
        return self._input_generator is not None

    def generate_inputs(self, **kwargs: Any) -> tuple[Any, ...]:
        """Arguments made by the registered input generator.

        Raises:
            IrError: none is registered (also a ``RuntimeError``).
        """
        if self._input_generator is None:
            raise _NoInputGeneratorError(
                f"Op '{self.name}' has no input generator.",
                fix=f"Register one: @ops.{self.name}.register_input_generator.",
            )
        return self._input_generator(**kwargs)

    def override_tolerance(self, dtype: torch.dtype, *, atol: float, rtol: float) -> None:
        """Compare results of this dtype with these bounds."""
        self._tolerances[dtype] = {"atol": atol, "rtol": rtol}

    def get_tolerance(self, dtype: torch.dtype) -> Tolerance:
        """Bounds ``|result - reference| <= atol + rtol * |reference|`` for results of this dtype.

        Raises:
            PolicyError: neither the op nor the defaults have any (also a ``ValueError``).
        """
        tolerance = self._tolerances.get(dtype) or DEFAULT_TOLERANCES.get(dtype)
        if tolerance is None:
            raise PolicyError(
                f"Op '{self.name}' has no tolerance for {dtype}.",
                fix=f"Call ops.{self.name}.override_tolerance({dtype}, atol=..., rtol=...).",
            )
        return tolerance

    def supported_providers(self) -> list[str]:
        """Providers that some device of this process can run."""
        return [name for name, impl in self.impls.items() if impl.supported]

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The complete argument tuple of a call, defaults applied."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.args

    def apply_arg_defaults(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """``args`` with the native implementation's defaults appended."""
        return self.bind(args, {})

    # -- select --------------------------------------------------------------------------------------------

    def check_known(self, policy: Policy) -> None:
        """Raise if ``policy`` names a provider that this op does not have, or an op that does not exist.

        Raises:
            UnknownProviderError, UnknownOpError: the message names what exists.
        """
        from ir_core import discovery

        if policy.disabled:  # native everywhere, whatever else is set
            return
        discovery.check_policy(policy)
        own = policy.for_op(self.name)
        for provider in (*own.named, *sorted(own.deny)):
            if provider not in self._impls and provider not in self.impls:
                raise self._unknown(provider)

    def _unknown(self, provider: str) -> UnknownProviderError:
        from ir_core import discovery

        there = ", ".join(impl.label.partition("/")[2] for impl in self._impls.values())
        return UnknownProviderError(
            f"Op '{self.name}' has no provider '{provider}'.",
            why=f"It has {there}.",
            fix=discovery.who_offers(provider, self.name),
        )

    def dispatch(self, *args: Any, **kwargs: Any) -> IrOpImpl:
        """The implementation that a call with these arguments runs (reasons: :func:`ir_core.select`)."""
        return dispatch.resolve(self, policy.current(), self.bind(args, kwargs))[1]

    def get_priority(self) -> list[str]:
        """The providers that a call here would try, in order; empty when nothing is named for this op.

        Ends with the first one that takes every argument, as in vLLM IR: nothing behind it is ever reached.
        """
        from ir_core import selection

        here = policy.current()
        own = here.for_op(self.name)
        if not (own.named or own.batch_invariant is not None or any(p in self.impls for p in here.prefer)):
            return []
        order: list[str] = []
        for provider, _ in selection.ladder(self, here):
            impl = self.impls[provider]
            if provider in own.deny or not impl.supported:
                continue
            if here.invariant(self.name) and not impl.batch_invariant:
                continue
            order.append(provider)
            if impl.supports_all_args:
                break
        return order

    def _op_policy(self, priority: Sequence[str], batch_invariant_only: bool) -> OpPolicy:
        changed = OpPolicy(prefer=tuple(priority), batch_invariant=True if batch_invariant_only else None)
        self.check_known(Policy(ops=((self.name, changed),)))
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
        raise NotImplementedError("replaced by dispatch.install()")

    def __repr__(self) -> str:
        return f"IrOp('{self.name}')"

    def __str__(self) -> str:
        first = (self.__doc__ or "").partition("\n")[0].strip()
        return f"{self!r} - {first}" if first else repr(self)

    def __reduce__(self) -> Any:
        return _by_name, (self.name,)

    def unregister(self) -> None:
        """Undo :func:`ir_core.register_op`: the name is free again, and the torch op is gone."""
        from ir_core import discovery

        OPS.pop(self.name, None)
        self._library.destroy()
        discovery.detach(self.name)


class _NoInputGeneratorError(IrError, RuntimeError):
    pass


def _by_name(name: str) -> IrOp:
    from ir_core import discovery

    return discovery.get_op(name)


def _home(fn: Callable[..., Any]) -> dict[str, Any]:
    """Where a function comes from: the installed distribution of its top-level package, and file:line."""
    from ir_core import distributions

    code = getattr(inspect.unwrap(fn), "__code__", None)
    name, version = distributions.of_module(getattr(fn, "__module__", "") or "")
    return {
        "distribution": name,
        "distribution_version": version,
        "origin": f"{code.co_filename}:{code.co_firstlineno}" if code else "?",
    }
