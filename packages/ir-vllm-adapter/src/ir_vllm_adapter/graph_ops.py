# SPDX-License-Identifier: Apache-2.0
"""Torch ops of the namespace ``ir_vllm``: what a compiled graph of vLLM calls. Opaque and counted.

==================================  =====================================================================
``<op>.default``                    ir-core selects at the call; for graphs where vLLM has no IR op
``<op>.<provider>``                 one implementation: what vLLM's lowering pass puts in place of its IR op
``<op>.<provider>__inplace``        an in-place implementation, writing into its activations; returns nothing
==================================  =====================================================================

A graph never looks inside, so that its bits are those of the eager call. There is no autograd kernel: vLLM runs
without gradients, and an inference graph should not pay for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ir_vllm_adapter.counters import CALLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ir_core import IrOp, IrOpImpl

NAMESPACE: Final = "ir_vllm"
INPLACE: Final = "__inplace"

_libraries: dict[str, Any] = {}


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The overload ``ir_vllm::<name>``; the existing one when it was defined before."""
    import torch

    base, _, overload = name.partition(".")
    if name not in _libraries:
        library = torch.library.Library(NAMESPACE, "FRAGMENT")
        library.define(name + schema)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        _libraries[name] = library
    return getattr(getattr(getattr(torch.ops, NAMESPACE), base), overload or "default")


def _meaning(op: IrOp) -> Callable[..., Any]:
    """Shapes and dtypes of the results, computed by the native implementation on fake tensors."""
    return op.impls["native"].impl_fn


def selecting(op: IrOp) -> Any:
    """``ir_vllm::<op>``: counts, then calls ir-core, which selects by the facts of the arguments."""
    key = f"graph:{op.name}/selected at the call"

    def kernel(*args: Any) -> Any:
        CALLS[key] += 1
        return op(*args)

    return _define(op.name, op.schema, kernel, _meaning(op))


def functional(op: IrOp, impl: IrOpImpl) -> Any:
    """``ir_vllm::<op>.<provider>``: counts, then calls that implementation with functional semantics."""
    key = f"graph:{op.name}/{impl.provider}"

    def kernel(*args: Any) -> Any:
        CALLS[key] += 1
        return impl.func_impl_fn(*args)

    return _define(f"{op.name}.{impl.provider}", op.schema, kernel, _meaning(op))


def inplace(op: IrOp, impl: IrOpImpl) -> Any:
    """``ir_vllm::<op>.<provider>__inplace``: the results are left in the activations."""
    from torch.library import infer_schema

    key = f"graph:{op.name}/{impl.provider}"

    def kernel(*args: Any) -> None:
        CALLS[key] += 1
        results = impl.impl_fn(*args)
        results = results if isinstance(results, tuple) else (results,)
        for index, result in zip(op.activation_indices, results, strict=True):
            if result is not args[index]:  # it may, but need not, reuse the memory it was given
                args[index].copy_(result)

    def nothing(*_args: Any) -> None:
        return None

    schema = infer_schema(_meaning(op), mutates_args=list(op.activations))
    arguments = schema.rpartition("->")[0]
    return _define(f"{op.name}.{impl.provider}{INPLACE}", arguments + "-> ()", kernel, nothing)
