# SPDX-License-Identifier: Apache-2.0
"""IrOpImpl: one implementation of an op, what it claims, and where it comes from."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.library import infer_schema

from ir_core import facts, sources
from ir_core.errors import PredicateError, SchemaError
from ir_core.requirement import parse_requirement

if TYPE_CHECKING:
    from ir_core.op import IrOp
    from ir_core.requirement import Requirement


Pair: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], tuple[Any, Any]]
"""``pair(first, second)``: two complete lists of an op's arguments to the results of both calls, with functional
semantics and with the bits that two calls have."""


class IrOpImpl:
    """One implementation of an op, registered by :meth:`IrOp.register_impl` or by a kernel pack.

    Attributes:
        op: the op it implements.
        provider: its name, unique within the op.
        impl_fn: the function, with the native implementation's signature.
        inplace: whether ``impl_fn`` may write its results into its activation inputs.
        functional_fn: what stands in for an in-place ``impl_fn`` on copies where the inputs must stay, or ``None``.
        pair_fn: what does two calls in one launch, or ``None``.
        batch_invariant: whether its author declares that the bits of an output row depend on that row alone.
        requires: what the device must have, or ``None``.
        opaque: whether a compiled graph calls it as one op instead of tracing into it.
        canonical: whether its author declares that its bits are those of ``portable``.
        distribution, version: the installed distribution that registered it.
    """

    def __init__(
        self,
        op: IrOp,
        provider: str,
        impl_fn: Callable[..., Any],
        *,
        supported: bool = True,
        supports_args: Callable[..., Any] | None = None,
        inplace: bool = False,
        batch_invariant: bool | None = None,
        requires: Requirement | str | dict[str, Any] | None = None,
        opaque: bool = False,
        canonical: bool = False,
        functional: Callable[..., Any] | None = None,
        pair: Pair | None = None,
        modules: Sequence[str] = (),
        distribution: str = "",
        distribution_version: str = "",
        origin: str = "",
    ) -> None:
        check_schema(op, provider, impl_fn)
        if functional is not None:
            check_schema(op, provider, functional)
            if not inplace:
                raise SchemaError(
                    f"Implementation '{provider}' of op '{op.name}' has a functional form beside it and is functional.",
                    fix="Say inplace=True of the form that writes into its inputs, or drop functional.",
                )
        if pair is not None:
            check_pair(op, provider, pair)
        if supports_args is not None:
            check_predicate(op, provider, supports_args)
        if inplace and not op.allow_inplace:
            raise SchemaError(
                f"Implementation '{provider}' of op '{op.name}' is in place, and the op does not allow that.",
                fix=f"Register the op with allow_inplace=True, or '{provider}' without inplace.",
            )
        self.impl_fn = impl_fn
        self.functional_fn = functional
        self.pair_fn = pair
        self._predicate = supports_args
        self._describe(
            op,
            provider,
            supported=supported,
            inplace=inplace,
            batch_invariant=batch_invariant,
            requires=requires,
            opaque=opaque,
            canonical=canonical,
            modules=modules,
            distribution=distribution,
            distribution_version=distribution_version,
            origin=origin,
        )

    def _describe(
        self,
        op: IrOp,
        provider: str,
        *,
        supported: bool,
        inplace: bool,
        batch_invariant: bool | None,
        requires: Requirement | str | dict[str, Any] | None,
        opaque: bool,
        canonical: bool,
        modules: Sequence[str],
        distribution: str,
        distribution_version: str,
        origin: str,
    ) -> None:
        """Set what is known of an implementation before its code is."""
        self.op = op
        self.provider = provider
        self.inplace = inplace
        self._declared = None if batch_invariant is None else bool(batch_invariant)
        self.requires = parse_requirement(requires)
        self.opaque = opaque
        self.canonical = canonical
        self.distribution = distribution
        self.version = distribution_version
        self.origin = origin
        self._flag = bool(supported)
        self._modules = tuple(modules)
        self._digest: str | None = None
        self._digest_of = -1

    def load(self) -> None:
        """Make sure that its code is there; implementations from packs import it here."""

    @property
    def batch_invariant(self) -> bool:
        return self.op.batch_invariant if self._declared is None else self._declared

    @batch_invariant.setter
    def batch_invariant(self, declared: bool | None) -> None:
        self._declared = declared

    @property
    def supported(self) -> bool:
        """Whether this process has a target it can run on (see :meth:`unsupported_reason` for one device)."""
        if self.requires is None or not self._flag:
            return self._flag
        from ir_core import platforms

        return any(self.requires.check(target) for target in platforms.targets())

    @property
    def supports_all_args(self) -> bool:
        """Whether it takes every argument that the op takes."""
        return self._predicate is None

    @property
    def offers_pair(self) -> bool:
        """Whether it can do two calls in one launch; imports nothing."""
        return self.pair_fn is not None

    def supports_args(self, *args: Any, **kwargs: Any) -> bool:
        """Whether it takes these arguments, judged by their facts alone (never by the number of rows)."""
        return self.refusal(self.op.bind(args, kwargs), []) is None

    def refusal(self, args: Sequence[Any], reads: list[facts.Read]) -> str | None:
        """Why it refuses the complete arguments ``args``, or ``None``; what the answer rests on goes to ``reads``.

        Raises:
            PredicateError: its predicate raised or asked for what it must not see.
        """
        if self._predicate is None:
            return None
        try:
            return facts.ask(self._predicate, self.op.params, self.op.activations, args, reads)
        except PredicateError as error:
            raise PredicateError(f"{self.label}: {error.what}", why=error.why, fix=error.fix) from error

    @property
    def label(self) -> str:
        """``op/provider (distribution version)``, for messages."""
        where = " ".join(part for part in (self.distribution, self.version) if part)
        return f"{self.op.name}/{self.provider}" + (f" ({where})" if where else "")

    def func_impl_fn(self, *args: Any, **kwargs: Any) -> Any:
        """Call it with functional semantics.

        An in-place implementation without a functional form gets contiguous copies of its activations.
        """
        if not self.inplace:
            return self.impl_fn(*args, **kwargs)
        if self.functional_fn is not None:
            return self.functional_fn(*args, **kwargs)
        copies = list(args)
        for index in self.op.activation_indices:
            if index < len(copies):
                copies[index] = copies[index].clone(memory_format=torch.contiguous_format)
            else:
                name = self.op.params[index]
                kwargs[name] = kwargs[name].clone(memory_format=torch.contiguous_format)
        return self.impl_fn(*copies, **kwargs)

    def uuid(self) -> str:
        """Digest of everything that decides its bits: sources, package versions, flags.

        Covers what the function, its other forms, its predicate and the modules that a pack names reach
        (``ir_core.sources``), and the versions of its distribution, torch and Triton. Read once, until
        :func:`ir_core.refresh`.
        """
        if self._digest is None or self._digest_of != sources.generation():
            self._digest_of = sources.generation()
            parts = (
                self.op.name,
                self.op.schema,
                self.provider,
                self.distribution,
                self.version,
                torch.__version__,
                _triton_version(),
                str((self.inplace, self.batch_invariant, self.opaque, self.offers_pair)),
                sources.digest(self._functions(), self._modules),
            )
            self._digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._digest

    def not_covered(self) -> tuple[str, ...]:
        """What :meth:`uuid` cannot see: data files, the environment, code made from text; one clause each."""
        return sources.not_covered(self._functions(), self._modules)

    def _functions(self) -> list[Callable[..., Any]]:
        given = (self.impl_fn, self.functional_fn, self.pair_fn, self._predicate)
        return [function for function in given if function is not None]

    def __repr__(self) -> str:
        return f"IrOpImpl({self.label})"

    def __reduce__(self) -> Any:  # by name: the function is often hidden behind its own decorator
        return _by_name, (self.op, self.provider)


def _by_name(op: IrOp, provider: str) -> IrOpImpl:
    return op.impls[provider]


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def schema_of(what: str, fn: Callable[..., Any]) -> str:
    """torch's text of a function's signature.

    Raises:
        SchemaError: torch cannot tell it, for lack of an annotation for example.
    """
    try:
        return infer_schema(fn, mutates_args=[])
    except (ValueError, TypeError, NameError, NotImplementedError) as error:
        fix = "Annotate every parameter and the result."
        raise SchemaError(f"{what} has no schema.", why=str(error), fix=fix) from error


def check_schema(op: IrOp, provider: str, impl_fn: Callable[..., Any]) -> None:
    """Raise :class:`SchemaError` unless ``impl_fn`` has the native implementation's names, types and defaults."""
    schema = schema_of(f"Implementation '{provider}' of op '{op.name}'", impl_fn)
    if schema != op.schema:
        raise SchemaError(
            f"Implementation '{provider}' of op '{op.name}' has another schema than the op.",
            why=f"The op has       {op.schema}\n'{provider}' has  {schema}",
            fix="Give it the native implementation's parameter names, annotations and defaults.",
        )


def check_pair(op: IrOp, provider: str, pair: Any) -> None:
    """Raise :class:`SchemaError` unless ``pair`` takes two argument lists by position."""
    what = f"pair of implementation '{provider}' of op '{op.name}'"
    if not callable(pair):
        raise SchemaError(f"{what} is {pair!r}, which cannot be called.")
    try:
        signature = inspect.signature(pair)
    except ValueError:  # a function in C without one: the verification calls it
        return
    try:
        signature.bind((), ())
    except TypeError as error:
        raise SchemaError(
            f"{what} cannot be called with two argument lists.",
            why=str(error),
            fix="Define it as pair(first, second): each a complete list of the op's arguments.",
        ) from None


def check_predicate(op: IrOp, provider: str, predicate: Callable[..., Any]) -> None:
    """Raise :class:`SchemaError` unless ``predicate`` takes the op's parameters, in order and by position."""
    what = f"supports_args of implementation '{provider}' of op '{op.name}'"
    if not callable(predicate):
        raise SchemaError(f"{what} is {predicate!r}, which cannot be called.")
    params = inspect.signature(predicate).parameters.values()
    expected = op.signature.parameters.values()
    if any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in params):
        raise SchemaError(f"{what} has keyword-only parameters.", fix="Take all of them by position.")
    if [p.name for p in params] != [p.name for p in expected]:
        raise SchemaError(
            f"{what} takes other parameters than the op.",
            why=f"It takes ({', '.join(p.name for p in params)}), "
            f"the op takes ({', '.join(p.name for p in expected)}).",
            fix="Give it the op's parameters, in the op's order.",
        )
    for mine, theirs in zip(params, expected, strict=True):
        if mine.default != theirs.default:
            raise SchemaError(
                f"{what} has another default for '{mine.name}' than the op.",
                why=f"It has {mine.default!r}, the op has {theirs.default!r}.",
            )
