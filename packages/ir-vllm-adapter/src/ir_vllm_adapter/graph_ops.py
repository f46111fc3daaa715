# SPDX-License-Identifier: Apache-2.0
"""Torch ops of the namespace ``ir_vllm``: what a compiled graph of vLLM calls. Opaque and counted.

=============================  ==========================================================================
``<op>``                       ir-core selects at the call; for graphs where vLLM has no IR op
``<op>__<provider>``           one implementation: what vLLM's lowering pass puts in place of its IR op
``<op>__<provider>__inplace``  an in-place implementation, writing into its activations; returns nothing
``<op>__<provider>__pair``     two calls of one implementation in one launch (``pairing.py``)
=============================  ==========================================================================

A graph never looks inside, so that its bits are those of the eager call. There is no autograd kernel: vLLM runs
without gradients, and an inference graph should not pay for one. They are ops and not overloads of one op: torch 2.13
ends the process with an abort when it takes two overloads with equal arguments out of its tables at exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ir_vllm_adapter.counters import CALLS, IN_PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ir_core import IrOp, IrOpImpl

NAMESPACE: Final = "ir_vllm"
INPLACE: Final = "__inplace"
PAIR: Final = "__pair"

_defined: dict[str, Any] = {}

PAIRS: Final[dict[Any, Any]] = {}
"""``<op>__<provider>`` to ``<op>__<provider>__pair``, for implementations that offer it."""


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The torch op ``ir_vllm::<name>``; the existing one when it was defined before."""
    import torch

    if name not in _defined:
        make: Any = torch.library.Library
        library = make(NAMESPACE, "FRAGMENT")
        library.define(name + schema)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        _defined[name] = library
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _meaning(op: IrOp) -> Callable[..., Any]:
    """Shapes and dtypes of the results, computed on fake tensors: by native, unless the op has another way."""
    return op.fake_fn


def selecting(op: IrOp) -> Any:
    """``ir_vllm::<op>``: counts, then calls ir-core, which selects by the facts of the arguments."""
    key = f"graph:{op.name}/selected at the call"

    def kernel(*args: Any) -> Any:
        CALLS[key] += 1
        return op(*args)

    return _define(op.name, op.schema, kernel, _meaning(op))


def functional(op: IrOp, impl: IrOpImpl) -> Any:
    """``ir_vllm::<op>__<provider>``: counts, then calls that implementation with functional semantics."""
    key = f"graph:{op.name}/{impl.provider}"

    def kernel(*args: Any) -> Any:
        CALLS[key] += 1
        return impl.func_impl_fn(*args)

    node = _define(f"{op.name}__{impl.provider}", op.schema, kernel, _meaning(op))
    if impl.spec.pair is not None and op.schema.endswith("-> Tensor"):
        PAIRS[node] = _pair(op, impl)  # here, because a process may take a compiled graph from vLLM's cache
    return node


def _pair(op: IrOp, impl: IrOpImpl) -> Any:
    """``ir_vllm::<op>__<provider>__pair``: the arguments of one call, then those of another.

    Counts both calls, and how often two came together.
    """
    key, count, native = f"graph:{op.name}/{impl.provider}", len(op.params), _meaning(op)
    pairs = key + IN_PAIRS

    def kernel(*args: Any) -> Any:
        CALLS[key] += 2
        CALLS[pairs] += 1
        both: Any = impl.pair_fn
        return both(args[:count], args[count:])

    def fake(*args: Any) -> Any:
        return native(*args[:count]), native(*args[count:])

    arguments, _, result = op.schema.partition(" -> ")
    listed = [argument.partition("=")[0] for argument in arguments.strip("()").split(", ")]
    twice = ", ".join([*listed, *(f"{argument}_of_second" for argument in listed)])
    return _define(f"{op.name}__{impl.provider}{PAIR}", f"({twice}) -> ({result}, {result})", kernel, fake)


def inplace(op: IrOp, impl: IrOpImpl) -> Any:
    """``ir_vllm::<op>__<provider>__inplace``: the results are left in the activations."""
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
    return _define(f"{op.name}__{impl.provider}{INPLACE}", arguments + "-> ()", kernel, nothing)
