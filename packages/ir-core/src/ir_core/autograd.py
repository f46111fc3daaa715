# SPDX-License-Identifier: Apache-2.0
"""The backward of every op: the vjp of its native implementation, unless one is registered.

The forward runs whatever is selected, with the same bits whether gradients are recorded or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ir_core import codegen

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from ir_core.op import IrOp

_after_autograd = torch._C._after_autograd_keyset


def _bits(key: torch._C.DispatchKey) -> int:
    return torch._C.DispatchKeySet(key).raw_repr()


_keys = torch._C.DispatchKey
_OTHERS = _bits(_keys.Python) | _bits(_keys.Functionalize) | (_bits(_keys.Meta) & ~_bits(_keys.CPU))
"""Tensor subclasses and dispatch modes, functional wrappers, and tensors without data: torch decides for these."""


def kernel(op: IrOp, overload: OpOverload[..., Any], inner: str) -> Callable[..., Any]:
    """The Autograd kernel of ``overload``; ``inner`` is the attribute of ``op`` that runs it below autograd.

    With plain tensors and no gradient to record it calls ``inner`` at once: a second trip through the dispatcher
    would cost as much again as the first.
    """
    body = [
        f"if $grad_enabled() and ({codegen.gradient_test(op.tensor_params)}):",
        "    return $record($op, $overload, $keyset, {names})",
        f"if $keyset.raw_repr() & {_OTHERS}:",
        "    return $redispatch($keyset & $after_autograd, {names})",
        f"return $op.{inner}({{names}})",
    ]
    space = {
        "op": op,
        "overload": overload,
        "grad_enabled": torch.is_grad_enabled,
        "record": _Backward.apply,
        "redispatch": overload.redispatch,
        "after_autograd": _after_autograd,
    }
    return cast("Callable[..., Any]", codegen.build("autograd_kernel", "$keyset", op.signature, body, space))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: IrOp, overload: OpOverload[..., Any], keyset: Any, *args: Any) -> Any:
        ctx.op = op
        ctx.set_materialize_grads(False)
        ctx.positions = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
        ctx.rest = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.save_for_backward(*(args[i] for i in ctx.positions))
        if overload._schema.is_mutable:  # the saved inputs must survive: donate copies
            donated = set(op.activation_indices)
            args = tuple(arg.clone() if i in donated else arg for i, arg in enumerate(args))
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & _after_autograd, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        args = list(ctx.rest)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            args[position] = tensor
        backward = ctx.op._backward_fn
        if backward is not None:
            return (None, None, None, *backward(tuple(args), grads))
        return (None, None, None, *_native_vjp(ctx.op, args, grads, ctx.needs_input_grad[3:]))


def _native_vjp(
    op: IrOp, args: list[Any], grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the native implementation at ``args`` for the output gradients ``grads``."""
    higher = torch.is_grad_enabled()  # backward of the backward is wanted: keep this graph differentiable
    with torch.enable_grad():
        inputs = [
            (arg if higher and arg.requires_grad else arg.detach().requires_grad_()) if need else arg
            for arg, need in zip(args, needed, strict=True)
        ]
        # A view keeps the graph of the recomputation apart from the graph that the saved tensor belongs to.
        seen = [arg.view_as(arg) if need else arg for arg, need in zip(inputs, needed, strict=True)]
        outputs = op._impls["native"].impl_fn(*seen)
    pairs = [
        (out, grad)
        for out, grad in zip(outputs if isinstance(outputs, tuple) else (outputs,), grads, strict=True)
        if grad is not None and out.requires_grad
    ]
    results: list[Tensor | None] = [None] * len(args)
    wanted = [i for i, need in enumerate(needed) if need]
    if pairs and wanted:
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [seen[i] for i in wanted],
            [grad for _, grad in pairs],
            allow_unused=True,
            create_graph=higher,
        )
        for index, grad in zip(wanted, found, strict=True):
            results[index] = grad
    return results
