# SPDX-License-Identifier: Apache-2.0
"""Call: the eager hot path.

The first call with new facts selects; every later one with the same facts must not pay for that. Each callable of an
op (the op, ``maybe_inplace``, and what torch's dispatcher calls for each of them) is a function generated from what
the predicates asked about; ``op.source()`` prints it::

    def rms_norm(self, x, weight, epsilon, variance_size=None):
        if (there := get_here()) is not None:  # once a scope was entered in this process
            if there is first:
                ...  # the tests of the first scope that called
            return scoped[there](self, x, weight, epsilon, variance_size)
        if variance_size is None and x.dtype is c0 and weight.dtype is c1:
            if grad_enabled() and (x.requires_grad or weight.requires_grad):
                return torch_op(...)
            return impl0(x, weight, epsilon, variance_size)
        return miss(None, x, weight, epsilon, variance_size)

It has the op's own signature, so that nothing is packed into ``*args``, and asks only for the facts that decide. Each
scope has a function of its own: Dynamo guards on the code that a call finds, which a new scope must not change. The
tests of the first scope, which most programs stay in, are also in the function outside of it, where they save a call;
once Dynamo has traced one, that function no longer follows its scope.
What was selected is forgotten when the default policy, the implementations or the packs change. Dynamo traces another
function in its place (:func:`_call_traced`), since it cannot look into a context variable.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn, TypeAlias, cast

import torch

from ir_core import (
    catalog,
    codegen,
    facts,
    platforms,
    policy,
    policy_guard,
    resolve,
    selection,
    torch_library,
)
from ir_core.errors import IrError
from ir_core.impl import IrOpImpl
from ir_core.locks import fork_safe_rlock
from ir_core.meaning import NATIVE, Meaning
from ir_core.policy import Here, Policy
from ir_core.selection import Selection

MAX_ENTRIES: Final = 16
"""Selections kept in one function. A model has a handful of shapes an op; beyond this the oldest goes."""

MAX_SCOPES: Final = 64
"""Scopes whose functions are kept for one callable; beyond this the oldest goes."""

_lock = fork_safe_rlock()

Entry: TypeAlias = tuple[tuple[str, ...], dict[str, Any], IrOpImpl]
"""Tests on the parameters, the constants they compare with, and what runs when they hold."""


def set_default_torch_wrap(enable: bool = True) -> None:
    """Let op calls go through their torch op (the default), or straight to the implementation; for the process."""
    policy.set_default_wrap(bool(enable))


@contextlib.contextmanager
def enable_torch_wrap(enable: bool = True) -> Iterator[None]:
    """:func:`set_default_torch_wrap` for a ``with`` block, in this thread and task.

    Through the torch op a call can be traced and lowered; straight to the implementation it is faster.
    """
    with policy.wrap_scope(bool(enable)):
        yield


class _Scoped(dict[Here, Callable[..., Any]]):
    """The function of each scope, made when a scope first calls."""

    def __init__(self, make: Callable[[Here], Callable[..., Any]]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, here: Here) -> Callable[..., Any]:
        return self._make(here)


class Callee:
    """The generated functions of one callable of an op: functional or donating, called by users or by torch.

    Attributes:
        entries: what is remembered, by scope; ``None`` is outside of all.
        function: what callers outside of all scopes find; it passes calls inside of one on.
        scoped: the function of each scope.
        first: the first scope that called.
        traced: whether a compiled graph may rest on the code of ``function``.
    """

    def __init__(self, op: Meaning, holder: Any, inplace: bool, kernel: bool) -> None:
        self.op, self.inplace = op, inplace
        self.kernel = kernel  # called by torch's dispatcher, below autograd: gradients are taken care of
        self._holder = holder  # whose attribute the function is
        library = torch_library.of(op)
        self._torch_op: Any = library.inplace if inplace else library.functional
        self.entries: dict[Here | None, list[Entry]] = {None: []}
        self.scoped = _Scoped(self._enter)
        self.first: Here | None = None
        self.traced = False
        self._epoch = 0
        body = ["return $call_traced($op, $library, $inplace, {names})"]
        space = {"call_traced": _call_traced, "op": op, "library": library, "inplace": inplace}
        self._traced = None if kernel else codegen.build(op.name, "$self", op.signature, body, space)
        self.function = self._generate(None)
        self._publish()

    def reset(self) -> None:
        """Forget every selection."""
        with _lock:
            self._epoch += 1
            self.entries, self.first, self.traced = {None: []}, None, False
            for function in list(self.scoped.values()):
                codegen.forget(function)
            self.scoped.clear()
            self._renew(None)

    def _renew(self, here: Here | None) -> None:
        old = self.function if here is None else self.scoped.get(here)
        if old is not None:
            codegen.forget(old)
        if here is not None:
            self.scoped[here] = self._generate(here)
        else:
            self.function = self._generate(None)
            self._publish()

    def _publish(self) -> None:
        if self.kernel:
            setattr(self._holder, "direct_inplace" if self.inplace else "direct", self.function)
        else:  # a method: Python looks __call__ up on the type, and Dynamo traces only what it finds there
            self.function._torchdynamo_inline = self._traced  # type: ignore[attr-defined]
            type(self._holder).__call__ = self.function

    def _enter(self, here: Here) -> Callable[..., Any]:
        """The function of a scope that calls for the first time."""
        with _lock:
            if here not in self.scoped:
                while len(self.scoped) >= MAX_SCOPES:
                    oldest = next(iter(self.scoped))
                    codegen.forget(self.scoped.pop(oldest))
                    self.entries.pop(oldest, None)
                self.entries[here] = []
                self.first = self.first or here
                self._renew(here)
            return self.scoped[here]

    def _generate(self, here: Here | None) -> Callable[..., Any]:
        """The function of one scope, or the one outside of all."""
        space: dict[str, Any] = {
            "get_here": policy.here,
            "scoped": self.scoped,
            "first": self.first,
            "here": here,
            "miss": self._miss,
            "grad_enabled": torch.is_grad_enabled,
            "torch_op": self._torch_op,
            "type": type,
            "donated_twice": self._donated_twice,
        }
        body: list[str] = []
        if here is None and policy.scopes_used():
            own = "{names}" if self.kernel else "$self, {names}"
            body.append("if ($there := $get_here()) is not None:")
            if self.first is not None and self.entries.get(self.first):
                tests = self._entries(self.first, "first", space)
                body += ["    if $there is $first:", *(f"        {line}" for line in tests)]
            body.append(f"    return $scoped[$there]({own})")
        if not self.kernel and policy.wrap_of(here):
            body.append("return $torch_op({names})")
        else:
            body += [*self._entries(here, "", space), "return $miss($here, {names})"]
        function: Callable[..., Any] = codegen.build(
            self.op.name, "" if self.kernel else "$self", self.op.signature, body, space
        )
        return function

    def _entries(self, here: Here | None, name: str, space: dict[str, Any]) -> list[str]:
        """The calls that were selected for in ``here``."""
        entries = enumerate(self.entries.get(here, ()))
        lines = [line for number, entry in entries for line in self._entry(f"{name}{number}", *entry, space)]
        return [*self._donations(), *lines]

    def _entry(
        self,
        suffix: str,
        conditions: tuple[str, ...],
        constants: dict[str, Any],
        impl: IrOpImpl,
        space: dict[str, Any],
    ) -> list[str]:
        space[f"impl{suffix}"] = _function(impl, self.inplace)
        rename = {key: f"${key}{suffix}" for key in constants}
        space.update((f"{key}{suffix}", value) for key, value in constants.items())
        tests = [condition.format(**rename, names="{names}") for condition in conditions]
        lines = [f"if {' and '.join(tests) or 'True'}:"]
        if not self.kernel and impl.provider != NATIVE:  # native is differentiated as it stands
            wanted = codegen.gradient_test(self.op.tensor_params)
            lines.append(f"    if $grad_enabled() and ({wanted}): return $torch_op({{names}})")
        return [*lines, f"    return $impl{suffix}({{names}})"]

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

    def _miss(self, here: Here | None, *args: Any) -> Any:
        """Select for arguments with new facts, remember the outcome, and run it."""
        if self.inplace:
            for one, other in itertools.combinations(self.op.activation_indices, 2):
                if args[one] is args[other] and args[one] is not None:
                    self._donated_twice(self.op.params[one], self.op.params[other])
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        shapes_only = any(tensor.is_meta for tensor in tensors)
        impl = None if shapes_only else self._select(here, args)
        if not self.kernel and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return self._torch_op(*args)
        if impl is None:  # no data to run an implementation on
            return self.op.fake(*args)
        return _function(impl, self.inplace)(*args)

    def _select(self, here: Here | None, args: Sequence[Any]) -> IrOpImpl:
        """What runs, remembered. A selection that another change overtook is made again, so that none is lost."""
        for _ in range(3):
            requirement = policy.policy_of(here)
            catalog.impls(self.op)  # packs come now, not while the selection is made
            epoch = self._epoch
            chosen, impl = resolve.resolve(self.op, requirement, args)
            if torch._C._len_torch_dispatch_stack():  # facts of fake tensors may be symbols
                break
            if self._remember(here, epoch, chosen, impl, args):
                break
        return impl

    def _remember(
        self, here: Here | None, epoch: int, chosen: Selection, impl: IrOpImpl, args: Sequence[Any]
    ) -> bool:
        # An op of torch may be asked to run on meta tensors: an opaque implementation must not take their calls.
        conditions, constants = _conditions(self.op, chosen, args, impl.opaque and not self.kernel)
        with _lock:
            if epoch != self._epoch:
                return False
            entries = self.entries.get(here)
            if entries is None or any(e[0] == conditions and e[1] == constants for e in entries):
                return True
            self.entries[here] = [(conditions, constants, impl), *entries][:MAX_ENTRIES]
            self._renew(here)
            if here is not None and here is self.first and not self.traced:
                self._renew(None)
            return True


class _DonationError(IrError, RuntimeError, ValueError):
    pass


def _function(impl: IrOpImpl, inplace: bool) -> Callable[..., Any]:
    if inplace or not impl.inplace:
        return impl.impl_fn
    return impl.functional_fn or impl.func_impl_fn


def keeps_whole(impl: IrOpImpl, requirement: Policy) -> bool:
    """Whether a compiled graph calls this implementation as one op.

    In batch-invariant mode always: a compiler may drop an intermediate rounding, contract a product and a sum,
    or choose another order for a reduction, and compiled bits would no longer be the eager ones. The same holds where
    a policy asks for an order.
    """
    name = impl.op.name
    return impl.opaque or requirement.invariant(name) or requirement.for_op(name).order is not None


def _conditions(
    op: Meaning, chosen: Selection, args: Sequence[Any], beside_meta: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The facts that the choice rests on, as tests on the parameters and the constants they compare with.

    Args:
        beside_meta: whether tensors without data have to be told apart from those of this device.
    """
    conditions: list[str] = []
    constants: dict[str, Any] = {}

    def constant(value: object) -> str:
        constants[key := f"c{len(constants)}"] = value
        return f"{{{key}}}"

    first = next((p for p, arg in zip(op.params, args, strict=True) if isinstance(arg, torch.Tensor)), None)
    if first is not None and (test := _device_test(first, chosen.target.device, beside_meta)):
        conditions.append(test)
    order = {"none": 0, "dtype": 1, "value": 2, "ndim": 3, "prefers": 10}
    for name, fact, value in sorted(chosen.reads, key=lambda read: order.get(read[1], 9)):
        kind, _, arg = fact.partition(":")
        if kind == "none":
            if op.tensor_params.get(name) != "Tensor":  # a required tensor is never None
                conditions.append(f"{name} is {'' if value else 'not '}None")
            continue
        if kind == "prefers":
            prefers, wanted = cast("tuple[object, bool]", value)
            asked = f"{constant(selection.prefers_these)}({constant(prefers)}, {{names}})"
            conditions.append(asked if wanted else f"not {asked}")
            continue
        expression = facts.EXPRESSIONS[kind].format(p=name, arg=arg)
        same = "is" if kind == "dtype" or value is None or isinstance(value, bool) else "=="
        conditions.append(f"{expression} {same} {constant(value)}")
        # 1 == 1.0 == True, and a predicate can tell them apart.
        if kind == "values":
            types = [type(item) for item in value]  # type: ignore[attr-defined]
            conditions.append(f"[$type(item) for item in {name}] == {constant(types)}")
        elif kind == "value" and same == "==" and isinstance(value, (int, float)):
            conditions.append(f"$type({name}) is {constant(type(value))}")
    return tuple(conditions), constants


def _device_test(name: str, device: str, beside_meta: bool) -> str:
    """The cheapest test that a tensor is on ``device``, among the devices that this process has."""
    kinds = {target.device.partition(":")[0] for target in platforms.targets()}
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return f"{name}.is_cpu" if len(kinds) > 1 or beside_meta else ""
    if kinds == {"cpu", kind}:  # a device without an index, the CPU among them, answers -1
        return f"{name}.get_device() == {index or 0}"
    return f"str({name}.device) == {device!r}"


# -- the callees of each op ------------------------------------------------------------------------------------


class InplaceOverload:
    """``op.maybe_inplace``: call the op and donate its activations, whose contents are undefined afterwards."""

    def __init__(self, op: Meaning) -> None:
        self.op = op
        self.name = f"{op.name}.maybe_inplace"
        self.torch_op = torch_library.of(op).inplace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("replaced when the op is registered")

    def __repr__(self) -> str:
        return f"{self.op!r}.maybe_inplace"

    def __reduce__(self) -> Any:
        return operator.attrgetter("maybe_inplace"), (self.op,)


_callees: dict[str, list[Callee]] = {}


def callees(op: Meaning) -> list[Callee]:
    """The callables of ``op``: the functional one and torch's, then the donating one and torch's."""
    return _callees[op.name]


class _Listener:
    def op_added(self, op: Meaning) -> None:
        """Give a new op its call: a type of its own, whose ``__call__`` is the generated function."""
        library = torch_library.of(op)
        op.__class__ = type(f"{type(op).__name__}_{op.name}", (type(op),), {"__slots__": ()})
        made = [Callee(op, op, False, False), Callee(op, library, False, True)]
        if op.allow_inplace:
            overload = InplaceOverload(op)
            overload.__class__ = type(f"MaybeInplace_{op.name}", (InplaceOverload,), {"__slots__": ()})
            op.maybe_inplace = overload  # type: ignore[attr-defined]
            made += [Callee(op, overload, True, False), Callee(op, library, True, True)]
        _callees[op.name] = made

    def op_removed(self, op: Meaning) -> None:
        _callees.pop(op.name, None)

    def impl_added(self, impl: IrOpImpl) -> None:
        reset(impl.op)

    def impl_removed(self, impl: IrOpImpl) -> None:
        reset(impl.op)


def reset(op: Meaning) -> None:
    """Forget every selection made for ``op``."""
    for callee in _callees.get(op.name, ()):
        callee.reset()


def reset_all() -> None:
    """:func:`reset` for every op."""
    for op in catalog.loaded():
        reset(op)


catalog.subscribe(_Listener())
policy.on_default_change(reset_all)


# -- Dynamo ------------------------------------------------------------------------------------------------------


def _call_traced(op: Meaning, library: torch_library.OpLibrary, inplace: bool, *args: Any) -> Any:
    """What Dynamo traces for a call: the torch op, or a choice made here and now."""
    if _wrap_for_trace(op.name):
        return library.inplace(*args) if inplace else library.functional(*args)  # type: ignore[misc]
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
        if name in op.activations:  # rows stay symbols, and a predicate does not see the batch's strides
            shape = (2,) * (len(shape) - 1) + shape[-1:]
        else:
            strides = tuple([_plain(n) for n in arg.stride()])
        described.append((arg.dtype, arg.device, tuple([_plain(n) for n in shape]), strides))
    provider = _provider_for_trace(op.name, tuple(described))
    if _whole_for_trace(op.name, provider):
        return library.provider(provider)(*args)
    impl = library.impls[provider]
    return impl.impl_fn(*args) if inplace else impl.func_impl_fn(*args)


def _plain(number: int) -> int:
    """The number, also where Dynamo made it a symbol: a range must be known, ``int()`` stays symbolic.

    For floats ``hex()`` does the same. The compiled graph then holds for these values only.
    """
    return len(range(number)) - len(range(-number))


def _provider_for_trace(name: str, described: tuple[Any, ...]) -> str:
    """The provider for arguments of which only the facts are known: constants, and descriptions of tensors."""
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
    return resolve.resolve(catalog.get_op(name), policy_guard.pin(), args, device)[1].provider


def _wrap_for_trace(name: str) -> bool:
    for callee in _callees[name]:
        callee.traced = True
    return policy.wrap_of(policy.here())


def _whole_for_trace(name: str, provider: str) -> bool:
    op = catalog.get_op(name)
    return keeps_whole(catalog.impls(op)[provider], policy_guard.pin())


# Dynamo calls a function with this mark and puts its result into the trace as a constant; setting it here
# spares `torch.compiler.assume_constant_result`, which imports all of Dynamo.
for _constant in (_provider_for_trace, _wrap_for_trace, _whole_for_trace):
    _constant._dynamo_marked_constant = True  # type: ignore[union-attr]
