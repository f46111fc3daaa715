# SPDX-License-Identifier: Apache-2.0
"""The torch library ops behind an IrOp, all in the namespace ``ir_core``.

=============================  ==========================================================================
``<op>.default``               selects when it is called; what a traced graph holds until it is lowered
``<op>.maybe_inplace``         the same, activations donated (ops with ``allow_inplace=True``)
``<op>.donating``              what becomes of ``maybe_inplace`` in a graph: functional, the donation kept in mind
``<op>.<provider>``            one implementation with functional semantics: what an opaque lowering calls
``<op>.<provider>__inplace``   an in-place implementation, writing into its activations; returns nothing
=============================  ==========================================================================

The kernels are registered as CompositeExplicitAutograd, so that AOTAutograd keeps the ops whole, with an
autograd kernel beside them: the backward is the vjp of the native implementation (``autograd.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.library import Library, infer_schema

from ir_core import autograd, codegen
from ir_core.errors import SchemaError

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from ir_core.impl import IrOpImpl
    from ir_core.op import IrOp

NAMESPACE: Final = "ir_core"
INPLACE: Final = "__inplace"


class OpLibrary:
    """The torch library ops of one :class:`~ir_core.op.IrOp`."""

    def __init__(self, op: IrOp) -> None:
        self._op = op
        self._library = Library(NAMESPACE, "FRAGMENT")
        self._providers: dict[str, Library] = {}
        self.functional = self._define(self._library, "default", op.schema, "_direct")
        self.inplace: OpOverload[..., Any] | None = None
        self.donating: OpOverload[..., Any] | None = None
        if op.allow_inplace:
            self._check_inplace_returns()
            self.donating = self._define(self._library, "donating", op.schema, "_direct")
            schema = infer_schema(op._fake_fn, mutates_args=list(op.activations))
            self.inplace = self._define(self._library, "maybe_inplace", schema, "_direct_inplace")

    def _check_inplace_returns(self) -> None:
        returns = self._op.schema.rpartition("->")[2].strip()
        outputs = [part.strip(" ()") for part in returns.split(",")]
        if outputs != ["Tensor"] * len(self._op.activations):
            raise SchemaError(
                f"Op '{self._op.name}' allows in-place implementations but returns {returns}.",
                why=f"Each activation ({', '.join(self._op.activations)}) must have one Tensor output.",
                fix="Return a tensor for each activation, or drop allow_inplace.",
            )

    def _define(self, library: Library, overload: str, schema: str, inner: str) -> OpOverload[..., Any]:
        """Define an overload whose kernel is the attribute ``inner`` of the op, looked up on each call."""
        op = self._op
        name = op.name if overload == "default" else f"{op.name}.{overload}"
        library.define(name + schema)
        body = [f"return op.{inner}({{names}})"]
        kernel = codegen.build("kernel", "", op.signature, body, {"op": op})
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._fake, lib=library)
        packet = getattr(getattr(torch.ops, NAMESPACE), op.name)
        found: OpOverload[..., Any] = getattr(packet, overload)
        if overload == "default":
            op.tensor_params = {a.name: str(a.type) for a in found._schema.arguments if "Tensor" in str(a.type)}
        library.impl(name, autograd.kernel(op, found, inner), "Autograd", with_keyset=True)
        return found

    def _fake(self, *args: Any, **kwargs: Any) -> Any:
        return self._op._fake_fn(*args, **kwargs)

    def define_provider(self, impl: IrOpImpl) -> None:
        """Define ``<op>.<provider>`` (and ``__inplace``), for compiled graphs that call one implementation."""
        op, provider = self._op, impl.provider
        if provider in ("default", "maybe_inplace", "donating") or provider.endswith(INPLACE):
            raise SchemaError(
                f"Provider name '{provider}' cannot be an overload of the torch op ir_core::{op.name}.",
                fix="Choose another name.",
            )
        library = Library(NAMESPACE, "FRAGMENT")
        self._providers[provider] = library
        self._define(library, provider, op.schema, f"_impls[{provider!r}].func_impl_fn")
        if impl.inplace:
            schema = infer_schema(op._fake_fn, mutates_args=list(op.activations))
            name = f"{op.name}.{provider}{INPLACE}"
            library.define(name + schema.rpartition("->")[0] + "-> ()")
            library.impl(name, _without_result(impl), "CompositeExplicitAutograd")
            torch.library.register_fake(f"{NAMESPACE}::{name}", _nothing, lib=library)

    def provider(self, provider: str, *, inplace: bool = False) -> OpOverload[..., Any]:
        """The torch op that calls one implementation."""
        packet = getattr(getattr(torch.ops, NAMESPACE), self._op.name)
        overload: OpOverload[..., Any] = getattr(packet, provider + (INPLACE if inplace else ""))
        return overload

    def undefine_provider(self, provider: str) -> None:
        """Undo :meth:`define_provider`."""
        self._forget(provider, provider + INPLACE)
        self._providers.pop(provider)._destroy()

    def destroy(self) -> None:
        """Take every op of this library out of torch."""
        for provider in list(self._providers):
            self.undefine_provider(provider)
        namespace = getattr(torch.ops, NAMESPACE)
        vars(namespace).pop(self._op.name, None)
        self._library._destroy()

    def _forget(self, *overloads: str) -> None:
        packet = getattr(getattr(torch.ops, NAMESPACE), self._op.name)
        for overload in overloads:
            vars(packet).pop(overload, None)
            if overload in packet._overload_names:
                packet._overload_names.remove(overload)


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
