# SPDX-License-Identifier: Apache-2.0
"""One implementation of an op: a frozen :class:`ImplSpec`, and its code, which is there or is imported when needed.

Each property of an implementation is one field of :class:`ImplSpec`: :meth:`IrOp.register_impl` takes the fields by
keyword, a pack writes them as data, and an :class:`IrOpImpl` has them in ``spec``.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeAlias, cast

import torch
from importlib_metadata import PackageNotFoundError, version

from ir_core import distributions, facts, platforms, sources
from ir_core.errors import PackError, PredicateError, SchemaError, check_flags
from ir_core.failure import Failure, capture, distribution_of, report
from ir_core.locks import fork_safe_rlock
from ir_core.meaning import Meaning, check_pair, check_predicate, check_schema
from ir_core.requirement import Requirement, parse_requirement

Code: TypeAlias = str | Callable[..., Any]
"""A function, or where it is: ``"module:attribute"``."""


def _flag(default: bool | None) -> Any:
    return field(default=default, metadata={"flag": True})


def _code(check: Callable[[Meaning, Any, str], None], **default: Any) -> Any:
    return field(**default, metadata={"check": check})


# ruff: noqa: RUF009  fields are made by the two functions above
@dataclass(frozen=True)
class ImplSpec:
    """Every property of an implementation. In a pack each function is ``"module:attribute"``.

    Args:
        op, provider: which op it implements, under which name.
        impl: the function, with the native implementation's signature.
        supported: whether it can run on this machine at all.
        supports_args: predicate over the op's parameters, given facts in place of tensors (``ir_core.facts``);
            returns ``True``, ``False`` or the reason for refusing.
        inplace: it may write its results into its activation inputs.
        batch_invariant: whether the bits of an output row depend on that row alone; by default what the op says (no
            for an op with a reduction, else yes), and yes with an order.
        requires: what the device must have: a requirement value or its text, ``"sm>=9.0"``.
        opaque: a compiled graph calls it as one op and never traces into it; right for whatever launches kernels.
        order: the order of the op in which it computes: its bits are those of the order's reference.
        prefers_args: a second predicate, over the arguments themselves, rows and layout included: whether this is the
            implementation of its order to take for them. It counts where a certificate of this device vouches for
            the order, and must decide from shapes, strides and addresses alone.
        functional: with ``inplace``, the same with the same bits into memory of its own, for calls whose inputs must
            stay; without it such calls work on copies.
        pair: ``pair(first, second)`` does two calls in one launch, given the complete arguments of each, and returns
            what both return: with functional semantics and the bits of two calls. A compiled graph may run
            neighbouring calls through it (the q and k norms of an attention layer).
        sources: further modules whose text decides its bits.

    Raises:
        SchemaError: a flag is neither True nor False, or the forms contradict each other.
        TargetError: the requirement is malformed.
    """

    op: str
    provider: str
    impl: Code = _code(check_schema)
    supported: bool = _flag(True)
    supports_args: Code | None = _code(check_predicate, default=None)
    inplace: bool = _flag(False)
    batch_invariant: bool | None = _flag(None)
    requires: Requirement | None = None
    opaque: bool = _flag(False)
    order: str | None = None
    prefers_args: Code | None = _code(check_predicate, default=None)
    functional: Code | None = _code(check_schema, default=None)
    pair: Code | None = _code(check_pair, default=None)
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", parse_requirement(self.requires))
        object.__setattr__(self, "sources", tuple(self.sources))
        flags = {name: getattr(self, name) for name in FLAGS}
        if self.batch_invariant is None:  # what the op says
            del flags["batch_invariant"]
        check_flags(SchemaError, self.what, **flags)
        if self.functional is not None and not self.inplace:
            raise SchemaError(
                f"{self.what} has a functional form beside it and is functional.",
                fix="Say inplace=True of the form that writes into its inputs, or drop functional.",
            )

    @property
    def what(self) -> str:
        """What messages call it."""
        return f"Implementation '{self.provider}' of op '{self.op}'"


FLAGS: Final = tuple(f.name for f in fields(ImplSpec) if f.metadata.get("flag"))
CODE: Final = {f.name: f.metadata["check"] for f in fields(ImplSpec) if "check" in f.metadata}

_lock = fork_safe_rlock()


def find(path: str) -> Any:
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


class IrOpImpl:
    """One implementation of an op, registered by :meth:`IrOp.register_impl` or by a kernel pack.

    Attributes:
        op: the op it implements.
        spec: everything its author says of it.
        distribution, version: the installed distribution that registered it.
        origin: where its function is.
        failure: why its code cannot be used, or ``None``.
        point: the entry point of the pack that brings it, or ``None``.
    """

    def __init__(self, op: Meaning, spec: ImplSpec, point: Any = None) -> None:
        if spec.inplace and not op.allow_inplace:
            raise SchemaError(
                f"{spec.what} is in place, and the op does not allow that.",
                fix=f"Register the op with allow_inplace=True, or '{spec.provider}' without inplace.",
            )
        if spec.order is not None and spec.order not in op.orders:
            raise SchemaError(
                f"{spec.what} has the order '{spec.order}', which the op does not know.",
                why=f"It knows {', '.join(op.orders) or 'none'}.",
                fix="Name one of these, or register the op with that order.",
            )
        self.op, self.spec, self.point = op, spec, point
        self._code: dict[str, Any] = {}
        self._broken: PackError | None = None
        self.failure: Failure | None = None
        self._digest: str | None = None
        self._digest_of = -1
        if point is None:
            self._code = self._checked()
            self.distribution, self.version, self.origin = _home(spec.impl)
        else:
            self.distribution, self.version = distribution_of(point)
            self.origin = str(spec.impl)

    # -- what its author says ------------------------------------------------------------------------------

    @property
    def provider(self) -> str:
        return self.spec.provider

    @property
    def inplace(self) -> bool:
        return self.spec.inplace

    @property
    def order(self) -> str | None:
        return self.spec.order

    @property
    def requires(self) -> Requirement:
        return cast("Requirement", self.spec.requires)  # the spec has parsed it, and nothing is AllOf()

    @property
    def opaque(self) -> bool:
        return self.spec.opaque

    @property
    def batch_invariant(self) -> bool:
        """Whether its author declares that the bits of an output row depend on that row alone."""
        if self.spec.batch_invariant is not None:
            return self.spec.batch_invariant
        return self.spec.order is not None or self.op.batch_invariant

    @property
    def supported(self) -> bool:
        """Whether this process has a target it can run on (see ``spec.requires`` for one device)."""
        requires = self.spec.requires
        if requires is None or not self.spec.supported:
            return self.spec.supported
        return any(requires.check(target) for target in platforms.targets())

    @property
    def supports_all_args(self) -> bool:
        """Whether it takes every argument that the op takes."""
        return self.spec.supports_args is None

    @property
    def label(self) -> str:
        """``op/provider (distribution version)``, for messages."""
        where = " ".join(part for part in (self.distribution, self.version) if part)
        return f"{self.op.name}/{self.provider}" + (f" ({where})" if where else "")

    # -- its code ------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """Whether its code is there, or known to be broken."""
        return bool(self._code) or self._broken is not None

    def load(self) -> None:
        """Make sure that its code is there: import it and check it against the op, once.

        Raises:
            PackError: what went wrong, on every call.
        """
        if not self.loaded:
            with _lock:
                if not self.loaded:
                    try:
                        self._code = self._checked()
                    except (Exception, SystemExit) as error:
                        self._broken = PackError(f"{self.label}: {error}")
                        self._broken.__cause__ = error
                        self.failure = capture(self.point, f"load {self.op.name}/{self.provider}", error)
                        report([self.failure])
        if self._broken is not None:
            raise self._broken

    def _checked(self) -> dict[str, Any]:
        """Every function that the spec names, by property."""
        found = {}
        for name, check in CODE.items():
            code = getattr(self.spec, name)
            if code is not None:
                function = find(code) if self.point is not None else code
                what = self.spec.what
                check(
                    self.op,
                    function,
                    what if check is check_schema else f"{name} of {what[0].lower()}{what[1:]}",
                )
                found[name] = function
        return found

    def code(self, name: str) -> Any:
        """The function of the property ``name`` of the spec, or ``None``; imports it.

        Raises:
            PackError: it cannot be imported or does not fit the op.
        """
        self.load()
        return self._code.get(name)

    @property
    def impl_fn(self) -> Callable[..., Any]:
        """The function, with the native implementation's signature."""
        function: Callable[..., Any] = self.code("impl")
        return function

    @property
    def functional_fn(self) -> Callable[..., Any] | None:
        """What stands in for an in-place function where the inputs must stay, or ``None``."""
        function: Callable[..., Any] | None = self.code("functional")
        return function

    @property
    def pair_fn(self) -> Callable[..., Any] | None:
        """What does two calls in one launch, or ``None``; ``spec.pair`` says whether there is one."""
        function: Callable[..., Any] | None = self.code("pair")
        return function

    def func_impl_fn(self, *args: Any, **kwargs: Any) -> Any:
        """Call it with functional semantics.

        An in-place implementation without a functional form gets contiguous copies of its activations.
        """
        if not self.spec.inplace:
            return self.impl_fn(*args, **kwargs)
        if (functional := self.code("functional")) is not None:
            return functional(*args, **kwargs)
        copies = list(args)
        for index in self.op.activation_indices:
            if index < len(copies):
                copies[index] = copies[index].clone(memory_format=torch.contiguous_format)
            else:
                name = self.op.params[index]
                kwargs[name] = kwargs[name].clone(memory_format=torch.contiguous_format)
        return self.impl_fn(*copies, **kwargs)

    def supports_args(self, *args: Any, **kwargs: Any) -> bool:
        """Whether it takes these arguments, judged by their facts alone (never by the number of rows)."""
        return self.refusal(self.op.bind(args, kwargs), []) is None

    def refusal(self, args: Sequence[Any], reads: list[facts.Read]) -> str | None:
        """Why it refuses the complete arguments ``args``, or ``None``; what the answer rests on goes to ``reads``.

        Raises:
            PackError: its code cannot be loaded.
            PredicateError: its predicate raised or asked for what it must not see.
        """
        predicate = self.code("supports_args")
        if predicate is None:
            return None
        try:
            return facts.ask(predicate, self.op.params, self.op.activations, args, reads)
        except PredicateError as error:
            raise PredicateError(f"{self.label}: {error.what}", why=error.why, fix=error.fix) from error

    def uuid(self) -> str:
        """Digest of everything that decides its bits: sources, package versions, properties.

        Covers what every function of the spec and the modules that a pack names reach (``ir_core.sources``), and the
        versions of its distribution, torch and Triton. Read once, until :func:`ir_core.refresh`.
        """
        if self._digest is None or self._digest_of != sources.generation():
            self._digest_of = sources.generation()
            self.load()
            claims = {f.name: getattr(self.spec, f.name) for f in fields(ImplSpec) if f.name not in CODE}
            claims |= {"batch_invariant": self.batch_invariant, "requires": "", "forms": sorted(self._code)}
            parts = (
                self.op.schema,
                self.distribution,
                self.version,
                torch.__version__,
                _triton_version(),
                str(claims),
                sources.digest(self._functions(), self.spec.sources),
            )
            self._digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._digest

    def not_covered(self) -> tuple[str, ...]:
        """What :meth:`uuid` cannot see: data files, the environment, code made from text; one clause each."""
        return sources.not_covered(self._functions(), self.spec.sources)

    def _functions(self) -> list[Callable[..., Any]]:
        self.load()
        return list(self._code.values())

    def __repr__(self) -> str:
        return f"IrOpImpl({self.label})"

    def __reduce__(self) -> Any:  # by name: the function is often hidden behind its own decorator
        return _by_name, (self.op, self.provider)


def _by_name(op: Any, provider: str) -> Any:
    return op.impls[provider]


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def _home(fn: Any) -> tuple[str, str, str]:
    """Where a function comes from: the installed distribution of its top-level package, its version, file:line."""
    code = getattr(inspect.unwrap(fn), "__code__", None) if callable(fn) else None
    name, number = distributions.of_module(getattr(fn, "__module__", "") or "")
    return name, number, f"{code.co_filename}:{code.co_firstlineno}" if code else "?"
