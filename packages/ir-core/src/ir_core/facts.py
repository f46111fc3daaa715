# SPDX-License-Identifier: Apache-2.0
"""What a predicate may see of a call: never the number of rows, never how the batch lies in memory.

``supports_args`` predicates receive a :class:`TensorFacts` in place of each tensor. It answers for dtype,
device, rank and the last dimension; for tensors that are not activations (weights) it answers for every
dimension and stride. Whatever would let the selection depend on the batch raises :class:`PredicateError`.

Every answer is recorded. A predicate is a function of the answers it was given, so a selection stays valid for
each later call whose answers are the same: that is the key of the eager fast path (``fast_path.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import torch

from ir_core.errors import PredicateError

Read: TypeAlias = tuple[str, str, object]
"""One recorded answer: parameter name, fact, value."""

# How the eager fast path asks for a fact again, as an expression of the parameter's name. Keys are what
# `Read` names; a value in brackets is a dimension of a non-activation tensor.
EXPRESSIONS: Final[dict[str, str]] = {
    "none": "({p} is None)",
    "dtype": "{p}.dtype",
    "device": "{p}.device",
    "ndim": "{p}.ndim",
    "last": "{p}.shape[-1]",
    "stride": "{p}.stride({arg})",
    "size": "{p}.shape[{arg}]",
    "shape": "{p}.shape",
    "value": "{p}",
    "values": "tuple({p})",
}

_ALLOWED: Final = "dtype, device, ndim, shape[-1], size(-1)"


class ShapeFacts:
    """The shape of a tensor as a predicate sees it: its length and its last entry."""

    __slots__ = ("_of",)

    def __init__(self, of: TensorFacts) -> None:
        self._of = of

    def __len__(self) -> int:
        return self._of.ndim

    def __getitem__(self, index: int) -> int:
        return self._of._size(index)

    def __iter__(self) -> NoReturn:
        self._of._refuse("iterate over .shape")

    def __eq__(self, other: object) -> bool:
        return self._of._whole_shape() == other

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._of._refuse(f"read .shape.{name}")

    __hash__ = None  # type: ignore[assignment]


class TensorFacts:
    """The facts of one tensor argument that a predicate may read.

    Args:
        name: the parameter's name.
        tensor: the tensor (real or fake) the facts are read from; it is never handed out.
        activation: whether leading dimensions are batch dimensions, which stay hidden.
        reads: where each answer is recorded.
    """

    __slots__ = ("_activation", "_name", "_reads", "_tensor")

    def __init__(self, name: str, tensor: torch.Tensor, activation: bool, reads: list[Read]) -> None:
        self._name, self._tensor, self._activation, self._reads = name, tensor, activation, reads

    def _answer(self, fact: str, value: Any) -> Any:
        self._reads.append((self._name, fact, value))
        return value

    def _refuse(self, what: str) -> NoReturn:
        raise PredicateError(
            f"A predicate may not {what} of '{self._name}'.",
            why="The answer would depend on how many rows the call has or how they lie in memory; then adding "
            "rows could change which implementation runs, and with it the bits.",
            fix=f"Decide from {_ALLOWED}; accept every batch layout and copy inside the implementation if "
            "the kernel needs it.",
        )

    def _size(self, index: int) -> int:
        if not isinstance(index, int):
            self._refuse(f"slice .shape[{index}]")
        if index == -1 and self._tensor.dim():  # whatever the rank: do not make it part of the answer
            return int(self._answer("last", int(self._tensor.shape[-1])))
        ndim = self.ndim
        if not -ndim <= index < ndim:
            raise IndexError(f"dimension {index} of '{self._name}', which has {ndim}")
        if index == ndim - 1:
            return int(self._answer("last", int(self._tensor.shape[-1])))
        if self._activation:
            self._refuse(f"read .shape[{index}]")
        return int(self._answer(f"size:{index % ndim}", int(self._tensor.shape[index])))

    def _whole_shape(self) -> tuple[int, ...]:
        if self._activation:
            self._refuse("compare .shape")
        return tuple(self._answer("shape", tuple(map(int, self._tensor.shape))))

    @property
    def dtype(self) -> torch.dtype:
        value: torch.dtype = self._answer("dtype", self._tensor.dtype)
        return value

    @property
    def device(self) -> torch.device:
        value: torch.device = self._answer("device", self._tensor.device)
        return value

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def ndim(self) -> int:
        return int(self._answer("ndim", self._tensor.dim()))

    def dim(self) -> int:
        return self.ndim

    @property
    def shape(self) -> ShapeFacts:
        return ShapeFacts(self)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._size(dim)

    def stride(self, dim: int | None = None) -> int:
        if self._activation or not isinstance(dim, int):
            self._refuse("read .stride()")  # a transposed batch has the number of rows there
        ndim = self.ndim
        if not -ndim <= dim < ndim:
            raise IndexError(f"dimension {dim} of '{self._name}', which has {ndim}")
        return int(self._answer(f"stride:{dim % ndim}", int(self._tensor.stride(dim))))

    def element_size(self) -> int:
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f"read .{name}")

    def __bool__(self) -> NoReturn:  # noqa: PLE0304  it refuses
        self._refuse("take the truth value")

    def __len__(self) -> NoReturn:  # noqa: PLE0303  it refuses
        self._refuse("take the length")

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse(f"take [{index}]")

    def __iter__(self) -> NoReturn:
        self._refuse("iterate over the rows")

    def __float__(self) -> NoReturn:
        self._refuse("take the value")

    def __int__(self) -> NoReturn:
        self._refuse("take the value")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        seen = next(arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, cls))
        seen._refuse(f"call torch.{getattr(function, '__name__', function)}")

    def __repr__(self) -> str:
        return f"TensorFacts({self._name})"


def view(
    params: Sequence[str], activations: Sequence[str], args: Sequence[Any], reads: list[Read]
) -> list[Any]:
    """The arguments as a predicate sees them; what it reads is appended to ``reads``.

    Scalars count as read: a predicate that receives ``1e-6`` can do anything with it, so the caller records
    them (see :func:`record_scalars`) only for predicates that name them.
    """
    seen: list[Any] = []
    for name, arg in zip(params, args, strict=True):
        if isinstance(arg, torch.Tensor):
            seen.append(TensorFacts(name, arg, name in activations, reads))
        else:
            seen.append(arg)
    return seen


def ask(
    predicate: Callable[..., object],
    params: Sequence[str],
    activations: Sequence[str],
    args: Sequence[Any],
    reads: list[Read],
) -> str | None:
    """Run ``predicate`` on the facts of ``args``; ``None`` if it accepts, else its reason.

    Args:
        predicate: takes the op's parameters by position; returns ``True``, ``False`` or the reason for refusing.
        args: the complete argument list, defaults applied.
        reads: receives every fact the answer rests on.

    Raises:
        PredicateError: the predicate raised, or asked for what it must not see.
    """
    record_scalars(predicate, params, args, reads)
    try:
        answer = predicate(*view(params, activations, args, reads))
    except PredicateError:
        raise
    except Exception as error:
        raise PredicateError(
            f"The predicate {describe(predicate)} raised {type(error).__name__}: {error}.",
            why="A predicate decides from the facts of the arguments and must not fail.",
            fix="Return False, or a sentence that says why the arguments are refused.",
        ) from error
    if answer is True:
        return None
    if isinstance(answer, str):
        return answer
    if answer is False:
        return f"{describe(predicate)} refuses these arguments"
    raise PredicateError(
        f"The predicate {describe(predicate)} returned {answer!r}.",
        why="It must return True, False, or a str that says why it refuses.",
        fix="Wrap the last expression in bool(...).",
    )


def record_scalars(
    function: Callable[..., object], params: Sequence[str], args: Sequence[Any], reads: list[Read]
) -> None:
    """Note the values that ``function`` mentions and the tensors that are absent: its answer may rest on them."""
    used = names_used(function)
    for name, arg in zip(params, args, strict=True):
        if arg is None or isinstance(arg, torch.Tensor):
            reads.append((name, "none", arg is None))
        elif used is not None and name not in used:
            continue
        elif isinstance(arg, list):  # a copy: the caller may change the list and call again
            reads += [(name, "none", False), (name, "values", tuple(arg))]
        else:
            reads.append((name, "value", arg))


def check(
    checker: Callable[..., None],
    params: Sequence[str],
    activations: Sequence[str],
    args: Sequence[Any],
    reads: list[Read],
) -> None:
    """Run an op's check (``IrOp.register_check``) on the facts of ``args``; what it read is appended to ``reads``.

    Raises:
        ArgumentError: the check refuses the call.
        PredicateError: the check asked for what it must not see.
    """
    record_scalars(checker, params, args, reads)
    checker(*view(params, activations, args, reads))


def names_used(predicate: Callable[..., object]) -> frozenset[str] | None:
    """Parameters that the predicate's code mentions; ``None`` if that cannot be told.

    Only the arguments it mentions can influence its answer, so a scalar that it ignores (an epsilon) does not
    become part of the fast path's key.
    """
    code = getattr(predicate, "__code__", None)
    if code is None or code.co_flags & 0x0C:  # *args or **kwargs: everything may be used
        return None
    import dis

    mentioned = set(code.co_cellvars)
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith(("LOAD_FAST", "STORE_FAST_LOAD_FAST")):
            value = instruction.argval
            mentioned.update(value if isinstance(value, tuple) else (value,))
    return frozenset(mentioned)


def describe(fn: Callable[..., object]) -> str:
    """``module.qualname`` of a function, for messages."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"
