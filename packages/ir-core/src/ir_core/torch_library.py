# SPDX-License-Identifier: Apache-2.0
"""The torch library ops behind an op's meaning, all in the namespace ``ir_core``; the catalog tells of ops.

=============================  ==========================================================================
``<op>.default``               selects when it is called; what a traced graph holds until it is lowered
``<op>.maybe_inplace``         the same, activations donated (ops with ``allow_inplace=True``)
``<op>.donating``              what becomes of ``maybe_inplace`` in a graph: functional, the donation kept in mind
``<op>.<provider>``            one implementation with functional semantics: what an opaque lowering calls
``<op>.<provider>__inplace``   an in-place implementation, writing into its activations; returns nothing
=============================  ==========================================================================

The kernels are registered as CompositeExplicitAutograd, so that AOTAutograd keeps the ops whole, with an
autograd kernel beside them: the backward is the vjp of the native implementation (``autograd.py``).

Definitions stay for the life of the process and kernels come and go: torch keeps a table of operators by the text
of their arguments, without the overload's name, and taking one of two overloads with the same arguments out of it
leaves the other dangling (a segmentation fault at the next lookup). An op that comes back with the same schema
takes up its old definitions; with another schema, its torch op is called ``<op>__2``.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any, Final

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.library import Library, infer_schema

from ir_core import autograd, catalog, codegen, vmap
from ir_core.errors import InvalidNameError, SchemaError
from ir_core.impl import IrOpImpl
from ir_core.meaning import Meaning

NAMESPACE: Final = "ir_core"
INPLACE: Final = "__inplace"
_OVERLOADS: Final = ("default", "maybe_inplace", "donating")

_schemas: dict[str, str] = {}  # every definition that torch was ever given, by "<op>.<overload>"
_definitions: list[Any] = []  # the library that owns them
_owners: dict[str, Meaning] = {}  # torch names in use
_libraries: dict[str, OpLibrary] = {}


def op_of(overload: OpOverload[..., Any]) -> Meaning | None:
    """The op that a torch op of the namespace ``ir_core`` belongs to; ``None`` if it was unregistered."""
    return _owners.get(overload._opname)


def of(op: Meaning) -> OpLibrary:
    """The torch ops of ``op``."""
    return _libraries[op.name]


class OpLibrary:
    """The torch library ops of one op.

    Attributes:
        functional, donating, inplace: the overloads that select when they are called; the last two or ``None``.
        direct, direct_inplace: what they run below autograd; ``fast_path.py`` puts its functions there.
        impls: the implementations that have an overload of their own, by provider.

    Raises:
        SchemaError: the op allows in-place implementations, and its outputs do not match its activations.
        InvalidNameError: torch has no place for the name.
    """

    direct: Callable[..., Any]
    direct_inplace: Callable[..., Any]

    def __init__(self, op: Meaning) -> None:
        self._op = op
        self.impls: dict[str, IrOpImpl] = {}
        inplace_schema = ""
        if op.allow_inplace:
            self._check_inplace_returns()
            inplace_schema = infer_schema(op.fake_fn, mutates_args=list(op.activations))
        self.name = _free_name(op.name, op.schema, inplace_schema)
        self._library = Library(NAMESPACE, "FRAGMENT")
        self._providers: dict[str, Library] = {}
        try:
            self.functional = self._define(self._library, "default", op.schema, "library.direct", self)
            self.inplace: OpOverload[..., Any] | None = None
            self.donating: OpOverload[..., Any] | None = None
            if op.allow_inplace:
                self.donating = self._define(self._library, "donating", op.schema, "library.direct", self)
                self.inplace = self._define(
                    self._library, "maybe_inplace", inplace_schema, "library.direct_inplace", self
                )
        except Exception:
            self._library._destroy()
            raise
        _owners[self.name] = op

    def _check_inplace_returns(self) -> None:
        returns = self._op.schema.rpartition("->")[2].strip()
        outputs = [part.strip(" ()") for part in returns.split(",")]
        if outputs != ["Tensor"] * len(self._op.activations):
            raise SchemaError(
                f"Op '{self._op.name}' allows in-place implementations but returns {returns}.",
                why=f"Each activation ({', '.join(self._op.activations)}) must have one Tensor output.",
                fix="Return a tensor for each activation, or drop allow_inplace.",
            )

    def _define(
        self, library: Library, overload: str, schema: str, inner: str, holder: object
    ) -> OpOverload[..., Any]:
        """Define an overload whose kernel is ``inner``, an attribute of ``holder`` that is looked up on each call."""
        op = self._op
        qualified = self._declare(overload, schema)
        space = {inner.partition(".")[0]: holder}
        kernel = codegen.build("kernel", "", op.signature, [f"return ${inner}({{names}})"], space)
        library.impl(qualified, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{qualified}", self._fake, lib=library)
        found: OpOverload[..., Any] = getattr(_packet(self.name), overload)
        library.impl(qualified, autograd.kernel(op, found, inner, space), "Autograd", with_keyset=True)
        library.impl(qualified, vmap.kernel(op, found), "FuncTorchBatched", with_keyset=True)
        return found

    def _declare(self, overload: str, schema: str) -> str:
        """Tell torch of an overload, unless it knows it from before; its name within the namespace."""
        qualified = self.name if overload == "default" else f"{self.name}.{overload}"
        if qualified not in _schemas:
            if not _definitions:
                _definitions.append(_immortal_library())
            try:
                _definitions[0].define(qualified + schema, "")
            except RuntimeError as error:
                raise InvalidNameError(
                    f"torch cannot define ir_core::{qualified}.",
                    why=str(error).partition("\n")[0],
                    fix="Choose another name.",
                ) from error
            _schemas[qualified] = schema
            torch._ops._refresh_packet(_packet(self.name))  # it may have been looked up with fewer overloads
        return qualified

    def _fake(self, *args: Any, **kwargs: Any) -> Any:
        return self._op.fake(*args, **kwargs)

    def define_provider(self, impl: IrOpImpl) -> None:
        """Define ``<op>.<provider>`` (and ``__inplace``), for compiled graphs that call one implementation."""
        op, provider = self._op, impl.provider
        packet = _packet(self.name)
        taken = hasattr(OpOverloadPacket, provider) or not isinstance(
            vars(packet).get(provider, self.functional), OpOverload
        )
        if provider in _OVERLOADS or provider.endswith(INPLACE) or taken:
            raise SchemaError(
                f"Provider name '{provider}' cannot be an overload of the torch op ir_core::{op.name}.",
                fix="Choose another name.",
            )
        library = Library(NAMESPACE, "FRAGMENT")
        try:
            self._define(library, provider, op.schema, "impl.func_impl_fn", impl)
            if impl.inplace:
                schema = infer_schema(op.fake_fn, mutates_args=list(op.activations))
                qualified = self._declare(provider + INPLACE, schema.rpartition("->")[0] + "-> ()")
                library.impl(qualified, _without_result(impl), "CompositeExplicitAutograd")
                torch.library.register_fake(f"{NAMESPACE}::{qualified}", _nothing, lib=library)
        except Exception:
            library._destroy()
            raise
        self._providers[provider] = library
        self.impls[provider] = impl

    def provider(self, provider: str, *, inplace: bool = False) -> OpOverload[..., Any]:
        """The torch op that calls one implementation."""
        overload: OpOverload[..., Any] = getattr(_packet(self.name), provider + (INPLACE if inplace else ""))
        return overload

    def undefine_provider(self, provider: str) -> None:
        """Undo :meth:`define_provider`: calling the overload is an error of torch's from now on."""
        self._providers.pop(provider)._destroy()
        del self.impls[provider]

    def destroy(self) -> None:
        """Take the kernels of every op of this library out of torch."""
        for provider in list(self._providers):
            self.undefine_provider(provider)
        self._library._destroy()
        _owners.pop(self.name, None)


def _packet(name: str) -> OpOverloadPacket[..., Any]:
    packet: OpOverloadPacket[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name)
    return packet


def _immortal_library() -> Any:
    """The library of all definitions. It is never taken down, at the end of the process neither."""
    library = torch._C._dispatch_library("FRAGMENT", NAMESPACE, "")  # torch.library.Library has a finalizer
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(library))
    return library


def _free_name(name: str, schema: str, inplace_schema: str) -> str:
    """The first of ``name``, ``name__2``, ... that torch knows with this schema or not at all."""
    namespace = getattr(torch.ops, NAMESPACE)
    if name not in _schemas and hasattr(namespace, name):
        raise InvalidNameError(
            f"Op name '{name}' is taken: torch.ops.{NAMESPACE}.{name} is something else.",
            fix="Choose another name.",
        )
    for number in itertools.count(1):
        candidate = name if number == 1 else f"{name}__{number}"
        known = _schemas.get(candidate, schema) == schema
        known_inplace = _schemas.get(f"{candidate}.maybe_inplace", inplace_schema) == inplace_schema
        if candidate not in _owners and known and (known_inplace or not inplace_schema):
            return candidate
    raise AssertionError("unreachable")


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _without_result(impl: IrOpImpl) -> Any:
    """The in-place implementation as an op without outputs: its results are its activations."""

    def kernel(*args: Any, **kwargs: Any) -> None:
        results = impl.impl_fn(*args, **kwargs)
        results = results if isinstance(results, tuple) else (results,)
        given = impl.op.bind(args, kwargs)
        for index, result in zip(impl.op.activation_indices, results, strict=True):
            if result is not given[index]:  # it may, but need not, reuse the memory it was given
                given[index].copy_(result)

    return kernel


class _Listener:
    def op_added(self, op: Meaning) -> None:
        _libraries[op.name] = OpLibrary(op)

    def op_removed(self, op: Meaning) -> None:
        _libraries.pop(op.name).destroy()

    def impl_added(self, impl: IrOpImpl) -> None:
        of(impl.op).define_provider(impl)

    def impl_removed(self, impl: IrOpImpl) -> None:
        of(impl.op).undefine_provider(impl.provider)


catalog.subscribe(_Listener())
