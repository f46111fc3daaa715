# SPDX-License-Identifier: Apache-2.0
"""Register: explicit, checked, reversible.

:func:`register_op` makes an op of its native implementation and :meth:`IrOp.register_impl` gives it another one;
:meth:`IrOp.unregister` and :meth:`IrOp.unregister_impl` undo them. Packs are registered by ``discovery.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, overload

from ir_core.errors import DuplicateError, InvalidNameError

if TYPE_CHECKING:
    from ir_core.op import IrOp

OPS: Final[dict[str, IrOp]] = {}
"""All ops by name: ``IrOp.registry``."""

RESERVED_PROVIDERS: Final = ("native", "unfused", "portable")
"""Provider names that belong to the project; nobody else may register them."""

_NAME: Final = re.compile(r"[a-z_][a-z_0-9]*")


def check_name(name: str, what: str) -> None:
    """Raise :class:`InvalidNameError` unless ``name`` can name an op or a provider."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{what} name '{name}' is invalid.",
            why="A name has lower-case letters, digits and underscores, and starts with no digit.",
            fix=f"For example '{re.sub('[^a-z_0-9]', '_', name.lower()).lstrip('0123456789') or 'my_name'}'.",
        )


@overload
def register_op(
    f: Callable[..., Any],
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
) -> IrOp: ...


@overload
def register_op(
    f: None = None,
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
) -> Callable[[Callable[..., Any]], IrOp]: ...


def register_op(
    f: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    activations: list[str] | None = None,
    allow_inplace: bool = False,
    has_reduction: bool | None = None,
) -> Any:
    """Register an op: the decorated function is its native implementation, that is, its meaning.

    Args:
        f: the native implementation, when used without parentheses.
        name: the op's name; by default the function's.
        activations: parameters whose leading dimensions are the batch; by default those named ``x...``.
        allow_inplace: give the op a ``maybe_inplace`` overload, for implementations that reuse input memory.
        has_reduction: output elements sum over input elements; implementations are then not batch-invariant
            unless they declare it. By default what a trace of the function without data shows: reductions, matrix
            products, cumulative and unknown ops make it one.

    Returns:
        The :class:`IrOp`, or a decorator that makes it.

    Raises:
        InvalidNameError, DuplicateError, SchemaError: the function cannot be an op.
    """

    from ir_core.op import IrOp

    def register(fn: Callable[..., Any]) -> IrOp:
        op_name = fn.__name__ if name is None else name
        if op_name in OPS:
            raise DuplicateError(
                f"Op '{op_name}' is already registered.",
                why=f"At {OPS[op_name]._impls['native'].origin}.",
                fix="Choose another name, or call .unregister() on the other first.",
            )
        op = IrOp(op_name, fn, activations, allow_inplace=allow_inplace, has_reduction=has_reduction)
        OPS[op_name] = op
        return op

    return register if f is None else register(f)
