# SPDX-License-Identifier: Apache-2.0
"""The backward of every op: the vjp of its native implementation, unless one is registered.

The forward runs whatever is selected, with the same bits whether gradients are recorded or not. Forward mode (jvp) is
that of the native implementation; ``torch.func.vmap`` of the batch dimension is one call with one more of them.

A backward runs under the policy that its forward had: torch runs those of a GPU in threads of its own, which no scope
reaches, and a scope may have ended by then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from ir_core import codegen, policy
from ir_core.meaning import Meaning

_after_autograd = torch._C._after_autograd_keyset


def _bits(key: torch._C.DispatchKey) -> int:
    return torch._C.DispatchKeySet(key).raw_repr()


_keys = torch._C.DispatchKey
_OTHERS = _bits(_keys.Python) | _bits(_keys.Functionalize) | (_bits(_keys.Meta) & ~_bits(_keys.CPU))
"""Tensor subclasses and dispatch modes, functional wrappers, and tensors without data: torch decides for these."""


def kernel(
    op: Meaning, overload: OpOverload[..., Any], inner: str, held: dict[str, Any]
) -> Callable[..., Any]:
    """The Autograd kernel of ``overload``; ``inner`` runs it below autograd, an attribute of the object in ``held``.

    With plain tensors and no gradient to record it calls ``inner`` at once: a second trip through the dispatcher
    would cost as much again as the first.
    """
    body = [
        f"if $forward_ad._current_level >= 0 or $grad_enabled() and ({codegen.gradient_test(op.tensor_params)}):",
        "    return $record($op, $overload, $keyset, {names})",
        f"if $keyset.raw_repr() & {_OTHERS}:",
        "    return $redispatch($keyset & $after_autograd, {names})",
        f"return ${inner}({{names}})",
    ]
    space = held | {
        "op": op,
        "overload": overload,
        "grad_enabled": torch.is_grad_enabled,
        "record": _record,
        "forward_ad": forward_ad,
        "redispatch": overload.redispatch,
        "after_autograd": _after_autograd,
    }
    return cast("Callable[..., Any]", codegen.build("autograd_kernel", "$keyset", op.signature, body, space))


def _record(*args: Any) -> Any:
    """Call the op, and record what its derivatives need."""
    if not torch._C._are_functorch_transforms_active():
        return _Backward.apply(*args)  # type: ignore[no-untyped-call]
    from torch._functorch.utils import enable_single_level_autograd_function

    # torch.func calls this kernel once for each of its levels, as it does torch's own; torch.autograd.Function would
    # begin at the outermost level again.
    with enable_single_level_autograd_function():
        return _BackwardOfOneLevel.apply(*args)  # type: ignore[attr-defined]


class _BackwardOfOneLevel(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, op: Meaning, overload: OpOverload[..., Any], keyset: Any, *args: Any) -> Any:
        ctx.op = op
        ctx.policy = policy.current()
        ctx.set_materialize_grads(False)
        ctx.positions = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
        ctx.rest = [None if isinstance(arg, Tensor) else arg for arg in args]
        tensors = [args[i] for i in ctx.positions]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        with _outer_levels_on():
            if overload._schema.is_mutable:  # the saved inputs must survive: donate copies
                donated = set(op.activation_indices)
                args = tuple(arg.clone() if i in donated else arg for i, arg in enumerate(args))
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & _after_autograd, *args)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _native_jvp(ctx.op, _saved(ctx), tangents[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if policy.current() == ctx.policy:
            return _gradients(ctx, grads)
        with policy.scope(ctx.policy):
            return _gradients(ctx, grads)


def _gradients(ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    args = _saved(ctx)
    backward = ctx.op.backward_fn
    if backward is not None:
        return (None, None, None, *backward(tuple(args), grads))
    return (None, None, None, *_native_vjp(ctx.op, args, grads, ctx.needs_input_grad[3:]))


class _Backward(_BackwardOfOneLevel, torch.autograd.Function):
    pass


def _outer_levels_on() -> AbstractContextManager[Any]:
    """A Function's forward records nothing; under torch.func what is below it belongs to outer levels, which must."""
    stack = ExitStack()
    if torch._C._are_functorch_transforms_active():
        stack.enter_context(torch.enable_grad())
        stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
    return stack


def _saved(ctx: Any) -> list[Any]:
    """The argument list of the recorded call."""
    args = list(ctx.rest)
    for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
        args[position] = tensor
    return args


def _native_jvp(op: Meaning, args: list[Any], tangents: tuple[Any, ...]) -> Any:
    """Tangents of the native implementation's outputs at ``args``, one an output."""
    with forward_ad._set_fwd_grad_enabled(True):
        duals = [
            forward_ad.make_dual(forward_ad.unpack_dual(arg).primal, tangent)
            if isinstance(tangent, Tensor)
            else arg
            for arg, tangent in zip(args, tangents, strict=True)
        ]
        outputs = op.native_fn(*duals)
        results = []
        for out in outputs if isinstance(outputs, tuple) else (outputs,):
            tangent = forward_ad.unpack_dual(out).tangent
            results.append(torch.zeros_like(out) if tangent is None else tangent)
        return tuple(results) if isinstance(outputs, tuple) else results[0]


def _native_vjp(
    op: Meaning, args: list[Any], grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the native implementation at ``args`` for the output gradients ``grads``."""
    if torch._C._are_functorch_transforms_active():
        return _native_vjp_in_transform(op, args, grads, needed)
    higher = torch.is_grad_enabled()  # backward of the backward is wanted: keep this graph differentiable
    with torch.enable_grad():
        inputs = [
            (arg if higher and arg.requires_grad else arg.detach().requires_grad_()) if need else arg
            for arg, need in zip(args, needed, strict=True)
        ]
        # A view keeps the graph of the recomputation apart from the graph that the saved tensor belongs to.
        seen = [arg.view_as(arg) if need else arg for arg, need in zip(inputs, needed, strict=True)]
        outputs = op.native_fn(*seen)
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


def _native_vjp_in_transform(
    op: Meaning, args: list[Any], grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """:func:`_native_vjp` inside ``torch.func``: recomputed on a level of its own, so that all others see it."""
    wanted = [i for i, need in enumerate(needed) if need]

    def native(*moving: Tensor) -> tuple[Tensor, ...]:
        seen = list(args)
        for index, tensor in zip(wanted, moving, strict=True):
            seen[index] = tensor
        outputs = op.native_fn(*seen)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    vjp: Any = torch.func.vjp
    outputs, pull = vjp(native, *(args[i] for i in wanted))
    given = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True)]
    results: list[Tensor | None] = [None] * len(args)
    for index, grad in zip(wanted, pull(tuple(given)), strict=True):
        results[index] = grad
    return results
