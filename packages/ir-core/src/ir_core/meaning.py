# SPDX-License-Identifier: Apache-2.0
"""An op as plain data: what it is called with, what it means, and in which orders it may be computed.

A meaning knows no implementation but its native one, no policy, no device and nothing of torch's dispatcher. What
hangs on it (``autograd.py``, ``vmap.py``, ``torch_library.py``) reads it; ``op.py`` gives it verbs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.library import infer_schema

from ir_core import codegen, reductions
from ir_core.errors import InvalidNameError, IrError, PolicyError, SchemaError, check_flags
from ir_core.requirement import Requirement, parse_requirement
from ir_core.tolerances import DEFAULT_TOLERANCES, Tolerance

NATIVE: Final = "native"
PORTABLE: Final = "portable"
RESERVED_PROVIDERS: Final = (NATIVE, "unfused", PORTABLE)
"""Provider names that belong to the project; programs choose others. A pack may bring ``portable`` of its own op."""

_NAME: Final = re.compile(r"[a-z_][a-z_0-9]*")


def check_name(name: str, what: str) -> None:
    """Raise :class:`InvalidNameError` unless ``name`` can name an op or a provider."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{what} name '{name}' is invalid.",
            why="A name has lower-case letters, digits and underscores, and starts with no digit.",
            fix=f"For example '{re.sub('[^a-z_0-9]', '_', name.lower()).lstrip('0123456789') or 'my_name'}'.",
        )


@dataclass(frozen=True)
class Order:
    """A named, exactly specified arithmetic of an op. Two implementations of one order have equal bits.

    Args:
        name: its name, as policies and lock files say it.
        arithmetic: one paragraph, precise enough to compute it: which products, which sums in which grouping, which
            roundings. It mentions neither rows nor tiles nor layouts.
        reference: the provider that computes it on every device.
        requires: the devices on which the order is the op's default; ``None`` for all. A policy may ask for it by
            name anywhere.
        dtypes: dtypes of the first activation that it is defined for; empty for all.
        by_name: it is never the op's default: only a policy that names it brings it.
    """

    name: str
    arithmetic: str
    reference: str = PORTABLE
    requires: Requirement | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    by_name: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "Order")
        object.__setattr__(self, "requires", parse_requirement(self.requires))


class Meaning:
    """An op: a schema, a native implementation that says what it computes, and what else is known of it.

    Attributes:
        name, schema, signature, params: what it is called with; ``schema`` is torch's text of it.
        tensor_params: the parameters that are tensors, with their types in the schema.
        activations, activation_indices: the parameters whose leading dimensions are the batch.
        allow_inplace: whether implementations may write their results into the activations.
        has_reduction: whether an output element sums over input elements; if so, an implementation is not
            batch-invariant unless it says so. What the author said, else what a trace of the native implementation
            shows (:func:`ir_core.reductions.found`), made when it is first asked for.
        orders: the orders it may be computed in, by name; the first that counts on a device is the default there.
        native_fn, fake_fn, backward_fn, input_generator: the functions that say what it means; the last two or None.
        check_fn: refuses arguments that are no call of the op, or None.
        parameter_values: documented values of parameters, by name and label.

    Raises:
        InvalidNameError, SchemaError: the function cannot be an op.
    """

    def __init__(
        self,
        name: str,
        native_impl: Callable[..., Any],
        activations: Sequence[str] | None = None,
        *,
        allow_inplace: bool = False,
        has_reduction: bool | None = None,
        orders: Iterable[Order] = (),
    ) -> None:
        check_name(name, "Op")
        flags = {"allow_inplace": allow_inplace} | (
            {} if has_reduction is None else {"has_reduction": has_reduction}
        )
        check_flags(SchemaError, f"Op '{name}'", **flags)
        self.name = name
        self.signature = inspect.signature(native_impl)
        self.params = tuple(self.signature.parameters)
        self._check_parameters()
        if activations is None:
            activations = [param for param in self.params if param.startswith("x")]
        if unknown := [a for a in activations if a not in self.params]:
            raise SchemaError(
                f"Op '{name}' has no parameter {', '.join(unknown)}, which is named as an activation.",
                why=f"It has {', '.join(self.params)}.",
            )
        self.activations = tuple(activations)
        self.activation_indices = tuple(i for i, p in enumerate(self.params) if p in self.activations)
        self.allow_inplace = allow_inplace
        self._has_reduction = has_reduction
        self.orders: dict[str, Order] = {order.name: order for order in orders}
        self.schema: str = schema_of(f"Op '{name}'", native_impl)
        if re.search(r"Tensor\??\[", self.schema):
            raise SchemaError(
                f"Op '{name}' takes or returns a list of tensors.",
                why="Facts, gradients and donation are defined for tensors that are parameters of their own.",
                fix="Give each tensor its own parameter, and return a tuple.",
            )
        arguments = torch._C.parse_schema(f"ir_core::op{self.schema}").arguments
        self.tensor_params = {a.name: str(a.type) for a in arguments if "Tensor" in str(a.type)}
        self.__doc__ = inspect.getdoc(native_impl)
        self.native_fn = self.fake_fn = native_impl
        self.check_fn: Callable[..., None] | None = None
        self.backward_fn: Callable[..., Any] | None = None
        self.input_generator: Callable[..., tuple[Any, ...]] | None = None
        self.parameter_values: dict[str, dict[str, Any]] = {}
        self._tolerances: dict[torch.dtype, Tolerance] = {}

    def _check_parameters(self) -> None:
        kinds = inspect.Parameter
        for parameter in self.signature.parameters.values():
            if parameter.name.startswith(codegen.PREFIX):
                raise SchemaError(
                    f"Op '{self.name}' has the parameter '{parameter.name}'; '{codegen.PREFIX}' is ours."
                )
            if parameter.kind is kinds.KEYWORD_ONLY:
                raise SchemaError(
                    f"Op '{self.name}' has the keyword-only parameter '{parameter.name}'.",
                    why="A lowered graph passes every argument by position.",
                    fix="Take it by position as well.",
                )
            if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
                raise SchemaError(
                    f"Op '{self.name}' takes *{parameter.name}.",
                    fix="Name every parameter; a schema needs it.",
                )

    @property
    def has_reduction(self) -> bool:
        return bool(reductions.found(self)) if self._has_reduction is None else self._has_reduction

    @property
    def batch_invariant(self) -> bool:
        """What an implementation is that does not say: invariant, unless the op has a reduction."""
        return not self.has_reduction

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The complete argument tuple of a call, defaults applied."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.args

    def apply_arg_defaults(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """``args`` with the native implementation's defaults appended."""
        return self.bind(args, {})

    # -- what is registered beside the native implementation ---------------------------------------------------

    def add_order(self, order: Order) -> None:
        """Know one more order, for the implementations of a pack. An equal one is the same.

        Raises:
            SchemaError: there is another of that name.
        """
        if self.orders.setdefault(order.name, order) != order:
            raise SchemaError(
                f"Op '{self.name}' has another order '{order.name}'.",
                why="A name stands for one arithmetic.",
                fix="The pack must choose another name.",
            )

    def register_fake(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: compute shapes, dtypes and strides with ``fn`` instead of the native implementation."""
        self.fake_fn = fn
        return fn

    def register_check(self, fn: Callable[..., None]) -> Callable[..., None]:
        """Decorator: refuse arguments that are no call of this op, whichever implementation would run.

        ``fn`` takes the op's parameters and raises :class:`ir_core.errors.ArgumentError`. Eagerly it sees facts in
        place of tensors, as a predicate does, when an implementation is selected: the selection then holds for the
        calls whose facts are the same, and a call with other facts is checked anew. Where shapes are computed
        without data (compiled graphs, meta tensors) it sees the tensors themselves. Register it with the op, before
        the op is called.

        Raises:
            SchemaError: it takes other parameters than the op.
        """
        check_predicate(self, fn, f"The check of op '{self.name}'")
        self.check_fn = fn
        return fn

    def fake(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes, dtypes and strides of the results, for tensors without data.

        Raises:
            ArgumentError: the arguments are no call of this op.
        """
        if self.check_fn is not None:
            self.check_fn(*args, **kwargs)
        return self.fake_fn(*args, **kwargs)

    def register_backward(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: use ``fn(args, grad_outputs)`` as the backward in place of the native implementation's vjp.

        ``args`` is the complete argument tuple, ``grad_outputs`` one gradient (or ``None``) an output; it returns
        one gradient (or ``None``) an argument.
        """
        self.backward_fn = fn
        return fn

    def register_input_generator(self, fn: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Decorator: ``fn(num_tokens, hidden_size, dtype, ...)`` makes arguments for tests and benchmarks."""
        self.input_generator = fn
        return fn

    def register_values(self, **values: Sequence[Any] | Mapping[str, Any]) -> None:
        """Document what parameters may be, for verification: ``register_values(approximate=("none", "tanh"))``.

        A parameter's default needs no mention. A mapping names its values; a value may be a function of the hidden
        size: ``register_values(variance_size={"half": lambda hidden: hidden // 2})``.

        Raises:
            SchemaError: the op has no such parameter.
        """
        for name, listed in values.items():
            if name not in self.params:
                raise SchemaError(
                    f"Op '{self.name}' has no parameter '{name}', whose values are documented.",
                    why=f"It has {', '.join(self.params)}.",
                )
            named = listed if isinstance(listed, Mapping) else {str(value): value for value in listed}
            self.parameter_values[name] = dict(named)

    @property
    def has_input_generator(self) -> bool:
        return self.input_generator is not None

    def generate_inputs(self, **kwargs: Any) -> tuple[Any, ...]:
        """Arguments made by the registered input generator.

        Raises:
            IrError: none is registered (also a ``RuntimeError``).
        """
        if self.input_generator is None:
            raise _NoInputGeneratorError(
                f"Op '{self.name}' has no input generator.",
                fix=f"Register one: @ops.{self.name}.register_input_generator.",
            )
        return self.input_generator(**kwargs)

    def override_tolerance(self, dtype: torch.dtype, *, atol: float, rtol: float) -> None:
        """Compare results of this dtype with these bounds."""
        self._tolerances[dtype] = {"atol": atol, "rtol": rtol}

    def get_tolerance(self, dtype: torch.dtype) -> Tolerance:
        """Bounds ``|result - reference| <= atol + rtol * |reference|`` for results of this dtype.

        Raises:
            PolicyError: neither the op nor the defaults have any (also a ``ValueError``).
        """
        tolerance = self._tolerances.get(dtype) or DEFAULT_TOLERANCES.get(dtype)
        if tolerance is None:
            raise PolicyError(
                f"Op '{self.name}' has no tolerance for {dtype}.",
                fix=f"Call ops.{self.name}.override_tolerance({dtype}, atol=..., rtol=...).",
            )
        return tolerance

    def __repr__(self) -> str:
        return f"{type(self).__name__.partition('_')[0]}('{self.name}')"


class _NoInputGeneratorError(IrError, RuntimeError):
    pass


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


def check_schema(op: Meaning, impl_fn: Callable[..., Any], what: str) -> None:
    """Raise :class:`SchemaError` unless ``impl_fn`` has the native implementation's names, types and defaults."""
    schema = schema_of(what, impl_fn)
    if schema != op.schema:
        raise SchemaError(
            f"{what} has another schema than the op.",
            why=f"The op has  {op.schema}\nthis one has {schema}",
            fix="Give it the native implementation's parameter names, annotations and defaults.",
        )


def check_predicate(op: Meaning, predicate: Callable[..., Any], what: str) -> None:
    """Raise :class:`SchemaError` unless ``predicate`` takes the op's parameters, in order and by position."""
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


def check_pair(op: Meaning, pair: Any, what: str) -> None:
    """Raise :class:`SchemaError` unless ``pair`` takes two argument lists by position."""
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
