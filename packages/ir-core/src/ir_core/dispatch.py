# SPDX-License-Identifier: Apache-2.0
"""Call: the eager hot path.

The first call with new facts selects; every later one with the same facts must not pay for that. For each op,
policy and overload there is a :class:`Table`, whose function is generated from what the predicates asked about::

    def rms_norm(self, x, weight, epsilon, variance_size=None):
        if variance_size is None and x.dtype is c0 and weight.dtype is c1:
            if grad_enabled() and (x.requires_grad or weight.requires_grad):
                return torch_op(...)
            return impl0(x, weight, epsilon, variance_size)
        return miss(x, weight, epsilon, variance_size)

It has the op's own signature, so that nothing is packed into ``*args``, and asks only for the facts that decide.
Once a scope was entered in the process, it begins by asking the context for one. The tables of a process-wide policy
are dropped when that policy, the implementations or the packs change.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from ir_core import codegen, facts, platforms, policy, policy_guard, selection
from ir_core.errors import IrError
from ir_core.locks import fork_safe_rlock
from ir_core.policy import Policy
from ir_core.scoped import Scoped

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.op import IrOp
    from ir_core.selection import Selection

logger = logging.getLogger("ir_core")

MAX_ENTRIES: Final = 16
"""Selections kept in one generated function. A model has a handful of shapes an op; beyond this the oldest goes."""

MAX_TABLES: Final = 64
"""Tables kept for one op, four a policy. Beyond this those of scoped policies are made anew."""

_wrap_default = True
_wrap: Scoped[bool] = Scoped("ir_core_torch_wrap")
_wrap_block, _policy_block = _wrap.innermost, policy.innermost_scope
_lock = fork_safe_rlock()


def torch_wrap() -> bool:
    """Whether op calls go through the torch op here."""
    own = _wrap.get()
    return _wrap_default if own is None else own


def set_default_torch_wrap(enable: bool = True) -> None:
    """Let op calls go through their torch op (the default), or straight to the implementation; for the process."""
    global _wrap_default
    _wrap_default = bool(enable)
    reset_all()


@contextlib.contextmanager
def enable_torch_wrap(enable: bool = True) -> Iterator[None]:
    """:func:`set_default_torch_wrap` for a ``with`` block, in this thread and task.

    Through the torch op a call can be traced and lowered; straight to the implementation it is faster.
    """
    policy.use_scopes()
    with _wrap.block(bool(enable)):
        yield


def resolve(
    op: IrOp, requirement: Policy, args: Sequence[Any], device: torch.device | None = None
) -> tuple[Selection, IrOpImpl]:
    """Select for complete arguments and report what a user should hear about.

    Args:
        device: where the call runs; by default where its first tensor is.

    Raises:
        SelectionError: no implementation qualifies.
    """
    from ir_core import locking
    from ir_core.verification.evidence import evidence_for

    if device is None:
        device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), torch.device("cpu"))
    target = platforms.target_of(device)
    chosen = selection.select(op, requirement, target, args, evidence=evidence_for, full=False)
    if chosen.chosen is None:  # say everything about everybody
        chosen = selection.select(op, requirement, target, args, evidence=evidence_for, full=True)
    impl = op._impls[chosen.provider]
    locking.check(impl)
    _report(op, chosen)
    return chosen, impl


_reported: set[tuple[object, ...]] = set()


def _report(op: IrOp, chosen: Selection) -> None:
    """Log a fallback once: a provider named by the user was passed over, or only the slow portable one is left."""
    key: tuple[object, ...] = (
        op.name,
        chosen.target,
        chosen.provider,
        chosen.fallbacks,
        chosen.batch_invariant,
    )
    if key in _reported:
        return
    _reported.add(key)
    passed = chosen.fallbacks
    if not passed and chosen.batch_invariant and chosen.provider == selection.PORTABLE:
        passed = tuple(c for c in chosen.candidates if not c.chosen and c.provider != selection.NATIVE)
    if passed:
        reasons = "; ".join(f"{c.provider}: {c.reason}" for c in passed)
        logger.warning("%s runs %s on %s. %s", op.name, chosen.provider, chosen.target.device, reasons)
    else:
        logger.info("%s runs %s on %s", op.name, chosen.provider, chosen.target.device)


class Table:
    """The generated function of one op under one policy: direct or through torch, functional or in place."""

    def __init__(self, op: IrOp, requirement: Policy | None, wrap: bool, inplace: bool, kernel: bool) -> None:
        self.op, self.policy, self.wrap, self.inplace = op, requirement, wrap, inplace
        self.kernel = kernel  # called by torch's dispatcher, below autograd: gradients are taken care of
        self._entries: list[tuple[tuple[str, ...], dict[str, Any], IrOpImpl]] = []
        self._last: tuple[Policy | None, bool, Table] | None = None
        self.function = self._generate()

    def _generate(self) -> Callable[..., Any]:
        op = self.op
        space: dict[str, Any] = {
            "route": self._route,
            "miss": self._miss,
            "grad_enabled": torch.is_grad_enabled,
            "torch_op": op._library.inplace if self.inplace else op._library.functional,
            "tracing": _tracing,
            "type": type,
            "donated_twice": self._donated_twice,
        }
        body: list[str] = []
        if self.policy is None and policy.scopes_used():
            own = "{names}" if self.kernel else "$self, {names}"
            body.append(f"if ($other := $route()) is not None: return $other({own})")
        if self.wrap:
            body.append("return $torch_op({names})")
        else:
            body += self._donations()
            for number, (conditions, constants, impl) in enumerate(self._entries):
                body += self._entry(number, conditions, constants, impl, space)
            body.append("return $miss({names})")
        # A method: Python looks __call__ up on the type, and Dynamo traces only those it finds there.
        function: Callable[..., Any] = codegen.build(
            op.name, "" if self.kernel else "$self", op.signature, body, space
        )
        return function

    def _entry(
        self,
        number: int,
        conditions: tuple[str, ...],
        constants: dict[str, Any],
        impl: IrOpImpl,
        space: dict[str, Any],
    ) -> list[str]:
        op = self.op
        in_place = self.inplace or not impl.inplace
        space[f"impl{number}"] = impl.impl_fn if in_place else impl.functional_fn or impl.func_impl_fn
        rename = {key: f"${key}_{number}" for key in constants}
        space.update((rename[key].removeprefix("$"), value) for key, value in constants.items())
        tests = [condition.format(**rename) for condition in conditions]
        lines = [f"if {' and '.join(tests) or 'True'}:"]
        if not self.kernel and impl.provider != selection.NATIVE:  # native is differentiated as it stands
            wanted = codegen.gradient_test(op.tensor_params)
            lines.append(f"    if $grad_enabled() and ({wanted}): return $torch_op({{names}})")
        if not self.kernel and keeps_whole(impl, self._policy()):
            space[f"whole{number}"] = op._library.provider(impl.provider)
            lines.append(f"    if $tracing(): return $whole{number}({{names}})")
        lines.append(f"    return $impl{number}({{names}})")
        return lines

    def _donations(self) -> list[str]:
        """A test that no tensor is donated twice; Dynamo's graph is checked for that as a whole, views included.

        Straight to the implementation it would be a twentieth of the call: there only :meth:`_miss` looks.
        """
        if not (self.inplace and self.kernel):
            return []
        return [
            f"if {one} is {other} and {one} is not None: $donated_twice({one!r}, {other!r})"
            for one, other in itertools.combinations(self.op.activations, 2)
        ]

    def _donated_twice(self, one: str, other: str) -> NoReturn:
        name = self.op.name
        raise _DonationError(
            f"The same tensor is donated to {name}.maybe_inplace as '{one}' and as '{other}'.",
            why="Each result takes the memory of one of them.",
            fix=f"Call {name} itself, or clone one of them before donating it.",
        )

    def _policy(self) -> Policy:
        return self.policy if self.policy is not None else policy.default()

    def _route(self) -> Callable[..., Any] | None:
        """The function for the scope of this thread or task, or ``None`` when it is under the default."""
        if _tracing():  # Dynamo cannot look into a context variable
            return self._traced
        block, own = _policy_block(), _wrap_block()
        if block is None and own is None:
            return None
        scoped = None if block is None else block.value
        wrap = self.wrap if self.kernel else _wrap_default if own is None else own.value
        if scoped is None and wrap == self.wrap:
            return None
        last = self._last
        if last is None or last[0] is not scoped or last[1] is not wrap:
            # Not by the table of tables: hashing and comparing a policy takes longer than the rest of the call.
            last = self._last = scoped, wrap, table(self.op, scoped, wrap, self.inplace, self.kernel)
        return last[2].function

    def _traced(self, _: Any, *args: Any) -> Any:
        return _call_traced(self.op, self.inplace, *args)

    def _miss(self, *args: Any) -> Any:
        """Select for arguments with new facts, remember the outcome, and run it."""
        if _tracing():
            return _call_traced(self.op, self.inplace, *args)
        if self.inplace:
            for one, other in itertools.combinations(self.op.activation_indices, 2):
                if args[one] is args[other] and args[one] is not None:
                    self._donated_twice(self.op.params[one], self.op.params[other])
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        shapes_only = any(tensor.is_meta for tensor in tensors)
        if not shapes_only:
            chosen, impl = resolve(self.op, self._policy(), args)
            if not torch._C._len_torch_dispatch_stack():  # facts of fake tensors may be symbols
                self._remember(chosen, impl, args)
        if not self.kernel and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            overload = self.op._library.inplace if self.inplace else self.op._library.functional
            assert overload is not None
            return overload(*args)
        if shapes_only:  # no data to run an implementation on
            return self.op._fake_fn(*args)
        return impl.impl_fn(*args) if self.inplace else impl.func_impl_fn(*args)

    def _remember(self, chosen: Selection, impl: IrOpImpl, args: Sequence[Any]) -> None:
        where = (
            "" if self.kernel or not impl.opaque else "meta"
        )  # who else may come; torch ops can run on meta
        conditions, constants = _conditions(self.op, chosen, args, where)
        with _lock:
            entry = (conditions, constants, impl)
            if any(e[0] == conditions and e[1] == constants for e in self._entries):
                return
            self._entries = [entry, *self._entries][:MAX_ENTRIES]
            codegen.forget(self.function)
            self.function = self._generate()
            publish(self)  # under the lock: a reset between the look and the change would be undone


class _DonationError(IrError, RuntimeError, ValueError):
    pass


_tracing = torch.compiler.is_dynamo_compiling


def keeps_whole(impl: IrOpImpl, requirement: Policy) -> bool:
    """Whether a compiled graph calls this implementation as one op.

    In batch-invariant mode always: a compiler may drop an intermediate rounding, contract a product and a sum,
    or choose another order for a reduction, and compiled bits would no longer be the eager ones.
    """
    return impl.opaque or requirement.invariant(impl.op.name)


def _conditions(
    op: IrOp, chosen: Selection, args: Sequence[Any], beside: str
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The facts that the choice rests on, as tests on the parameters and the constants they compare with.

    Args:
        beside: a kind of device to tell apart besides those of this process; empty for none.
    """
    conditions: list[str] = []
    constants: dict[str, Any] = {}
    first = next((p for p, arg in zip(op.params, args, strict=True) if isinstance(arg, torch.Tensor)), None)
    if first is not None and (test := _device_test(first, chosen.target.device, beside)):
        conditions.append(test)
    order = {"none": 0, "dtype": 1, "value": 2, "ndim": 3}
    for name, fact, value in sorted(chosen.reads, key=lambda read: order.get(read[1], 9)):
        kind, _, arg = fact.partition(":")
        expression = facts.EXPRESSIONS[kind].format(p=name, arg=arg)
        if kind == "none":
            if op.tensor_params.get(name) != "Tensor":  # a required tensor is never None
                conditions.append(f"{name} is {'' if value else 'not '}None")
            continue
        key = f"c{len(constants)}"
        constants[key] = value
        same = "is" if kind == "dtype" or value is None or isinstance(value, bool) else "=="
        conditions.append(f"{expression} {same} {{{key}}}")
        # 1 == 1.0 == True, and a predicate can tell them apart.
        if kind == "values":
            constants[key := f"c{len(constants)}"] = [type(item) for item in value]  # type: ignore[attr-defined]
            conditions.append(f"[$type(item) for item in {name}] == {{{key}}}")
        elif kind == "value" and same == "==" and isinstance(value, (int, float)):
            constants[key := f"c{len(constants)}"] = type(value)
            conditions.append(f"$type({name}) is {{{key}}}")
    return tuple(conditions), constants


def _device_test(name: str, device: str, beside: str) -> str:
    """The cheapest test that a tensor is on ``device``, among the devices that this process has."""
    kinds = {target.device.partition(":")[0] for target in platforms.targets()}
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return f"{name}.is_cpu" if len(kinds) > 1 or beside else ""
    if kinds == {"cpu", kind}:  # a device without an index, the CPU among them, answers -1
        return f"{name}.get_device() == {index or 0}"
    return f"str({name}.device) == {device!r}"


# -- the tables of each op ---------------------------------------------------------------------------------


def table(op: IrOp, requirement: Policy | None, wrap: bool, inplace: bool, kernel: bool) -> Table:
    """The table for a policy (``None``: the default one), made when it is first asked for."""
    key = (requirement, wrap, inplace, kernel)
    found = op._tables.get(key)
    if found is None:
        with _lock:
            found = op._tables.get(key)
            if found is None:
                if len(op._tables) >= MAX_TABLES:
                    op._tables = {k: t for k, t in op._tables.items() if k[0] is None}
                found = op._tables[key] = Table(op, requirement, wrap, inplace, kernel)
    return found


def publish(changed: Table) -> None:
    """Put the function of a table of the default policy where callers find it."""
    op = changed.op
    if op._tables.get((changed.policy, changed.wrap, changed.inplace, changed.kernel)) is not changed:
        return  # dropped meanwhile
    if changed.policy is not None:
        return
    if changed.kernel:
        setattr(op, "_direct_inplace" if changed.inplace else "_direct", changed.function)
    elif changed.wrap == _wrap_default:
        _set_call(op.maybe_inplace if changed.inplace else op, changed.function)


def _set_call(instance: Any, function: Callable[..., Any]) -> None:
    type(instance).__call__ = function  # each op has a type of its own


class InplaceOverload:
    """``op.maybe_inplace``: call the op and donate its activations, whose contents are undefined afterwards."""

    def __init__(self, op: IrOp) -> None:
        self.op = op
        self.name = f"{op.name}.maybe_inplace"
        self.torch_op = op._library.inplace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("replaced by dispatch.install()")

    def __repr__(self) -> str:
        return f"{self.op!r}.maybe_inplace"

    def __reduce__(self) -> Any:
        return operator.attrgetter("maybe_inplace"), (self.op,)


def install(op: IrOp) -> None:
    """Give a new op its call."""
    op.__class__ = type(f"IrOp_{op.name}", (type(op),), {"__slots__": ()})
    if op.allow_inplace:
        overload = InplaceOverload(op)
        overload.__class__ = type(f"MaybeInplace_{op.name}", (InplaceOverload,), {"__slots__": ()})
        op.maybe_inplace = overload
    op._installed = True
    reset(op)


def reset(op: IrOp) -> None:
    """Forget every selection made for ``op``: its implementations or the default policy changed."""
    if not op._installed:
        return
    with _lock:
        op._tables = {}
        for inplace in (False, True) if op.allow_inplace else (False,):
            publish(table(op, None, _wrap_default, inplace, False))
            publish(table(op, None, False, inplace, True))


def reset_all() -> None:
    """:func:`reset` for every op."""
    from ir_core.op import IrOp

    for op in list(IrOp.registry.values()):
        reset(op)


policy.on_default_change(reset_all)


# -- Dynamo ------------------------------------------------------------------------------------------------


def _call_traced(op: IrOp, inplace: bool, *args: Any) -> Any:
    """What Dynamo traces for a call that is not on the fast path: the torch op, or a choice made here and now."""
    if _wrap_for_trace():
        return op._library.inplace(*args) if inplace else op._library.functional(*args)  # type: ignore[misc]
    described: list[tuple[Any, ...]] = []
    for name, arg in zip(op.params, args):  # noqa: B905  Dynamo knows no strict=
        if not isinstance(arg, torch.Tensor):
            if isinstance(arg, float):
                arg = float.fromhex(arg.hex())
            elif isinstance(arg, int) and not isinstance(arg, bool):
                arg = _plain(arg)
            described.append((arg,))
            continue
        shape = tuple(arg.shape)
        strides: tuple[int, ...] = ()
        if name in op.activations:  # rows stay symbols, and strides are nobody's business
            shape = (2,) * (len(shape) - 1) + shape[-1:]
        else:
            strides = tuple([_plain(n) for n in arg.stride()])
        described.append((arg.dtype, arg.device, tuple([_plain(n) for n in shape]), strides))
    provider = _provider_for_trace(op.name, tuple(described))
    if _whole_for_trace(op.name, provider):
        return op._library.provider(provider)(*args)
    impl = op._impls[provider]
    return impl.impl_fn(*args) if inplace else impl.func_impl_fn(*args)


def _plain(number: int) -> int:
    """The number, also where Dynamo made it a symbol: a range must be known, ``int()`` stays symbolic.

    For floats ``hex()`` does the same. The compiled graph then holds for these values only.
    """
    return len(range(number)) - len(range(-number))


def _provider_for_trace(name: str, described: tuple[Any, ...]) -> str:
    """The provider for arguments of which only the facts are known: constants, and descriptions of tensors."""
    from ir_core.op import IrOp

    args: list[Any] = []
    device = None
    for arg in described:
        if len(arg) == 1:
            args.append(arg[0])
            continue
        dtype, where, shape, strides = arg
        device = device or where
        meta = torch.empty(shape, dtype=dtype, device="meta")
        args.append(meta.as_strided(shape, strides) if strides else meta)
    return resolve(IrOp.registry[name], policy_guard.pin(), args, device)[1].provider


def _wrap_for_trace() -> bool:
    return torch_wrap()


def _whole_for_trace(name: str, provider: str) -> bool:
    from ir_core.op import IrOp

    return keeps_whole(IrOp.registry[name]._impls[provider], policy_guard.pin())


# Dynamo calls a function with this mark and puts its result into the trace as a constant; setting it here
# spares `torch.compiler.assume_constant_result`, which imports all of Dynamo.
for _constant in (_provider_for_trace, _wrap_for_trace, _whole_for_trace):
    _constant._dynamo_marked_constant = True  # type: ignore[union-attr]
