# SPDX-License-Identifier: Apache-2.0
"""What a native function reduces, found by tracing it on tensors without data.

An element-wise function gives each output element from the input elements at its place, so its bits cannot depend on
the batch; a sum over a row, a matrix product, a running sum can, by the order in which they add. What torch does not
declare element-wise, and what only moves elements here by name, counts as a reduction: so does an op of a library that
is unknown here, and a function that cannot be traced.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_MOVES: Final = (
    "_to_copy _unsafe_view arange cat clone constant_pad_nd copy_ diag_embed embedding empty empty_like empty_strided "
    "fill fill_ flip full full_like gather glu index index_select lift_fresh lift_fresh_copy new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like pixel_shuffle pixel_unshuffle repeat "
    "repeat_interleave roll scalar_tensor select_scatter slice_scatter stack tril triu zero_ zeros zeros_like "
    "_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range_for_size"
)
MOVES: Final = frozenset(_MOVES.split())
"""Ops of torch without the tag ``pointwise`` that make, move, cast or check elements and add none to another."""

_KINDS: Final = {
    "a matrix product": "mm bmm addmm baddbmm addbmm addmv mv dot vdot linear _scaled_mm convolution _grouped_mm",
    "a cumulative operation": "cumsum cumprod cummax cummin logcumsumexp _cummax_helper _cummin_helper",
    "a reduction": "_softmax _log_softmax native_layer_norm native_group_norm _fused_rms_norm native_batch_norm "
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention logsumexp scatter_add scatter_reduce "
    "index_add index_put embedding_bag _embedding_bag sort topk",
}
_KIND_OF: Final = {name: kind for kind, listed in _KINDS.items() for name in listed.split()}

ROWS: Final = (3, 4096)
"""Numbers of rows that are traced: a function may take another way for many rows."""
HIDDEN: Final = 64
_MAX_TRACES: Final = 64


@dataclass(frozen=True)
class Reduction:
    """One reason why a function counts as a reduction.

    Args:
        name: the torch op, ``aten.mean.dim``; empty when the function could not be traced.
        kind: what it is, in words.
    """

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name} is {self.kind}" if self.name else self.kind


class _Op(Protocol):
    """What is asked of an op here."""

    name: str
    params: tuple[str, ...]
    activations: tuple[str, ...]
    tensor_params: dict[str, str]
    parameter_values: dict[str, dict[str, Any]]
    signature: Any
    native_fn: Callable[..., Any]
    input_generator: Callable[..., tuple[Any, ...]] | None


def found(op: _Op) -> tuple[Reduction, ...]:
    """The reductions in the native function of ``op``, whatever its author declared; empty if it has none.

    Traced with the arguments of the op's input generator, or, without one that works, with arguments made from its
    schema; for few rows and many, with each optional tensor and without, and for each documented value of a parameter.
    Asked once for each pair of native function and input generator.
    """
    key = (op.native_fn, op.input_generator)
    known: tuple[Any, tuple[Reduction, ...]] | None = op.__dict__.get("_reductions")
    if known is not None and known[0] == key:
        return known[1]
    result = _trace_all(op)
    op.__dict__["_reductions"] = key, result
    return result


class _Recorder(TorchDispatchMode):
    """Notes the ops that are called and are neither element-wise nor mere movement."""

    def __init__(self, notes: dict[Reduction, None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notes = notes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (kind := _kind(func)) is not None:
            self._notes[Reduction(str(func), kind)] = None
        return func(*args, **(kwargs or {}))


def _kind(func: Any) -> str | None:
    """Why an op counts as a reduction, or ``None`` if it is element-wise or moves elements."""
    if not isinstance(func, torch._ops.OpOverload):
        return "an operator of higher order, of which nothing is known here"
    name = func._opname
    if func.namespace in ("aten", "prims", "prim"):
        if name in _KIND_OF:
            return _KIND_OF[name]
        reduction = getattr(torch.Tag, "reduction", None)
        if reduction is not None and reduction in func.tags:
            return "a reduction"
        moves = name in MOVES or func.is_view or torch.Tag.view_copy in func.tags or name.startswith("sym_")
        if torch.Tag.pointwise in func.tags or moves or func.namespace == "prim":
            return None
    return "not known to be element-wise"


def _trace_all(op: _Op) -> tuple[Reduction, ...]:
    notes: dict[Reduction, None] = {}
    error: Exception | None = None
    traced = False
    native = op.native_fn
    with _nothing_active():
        for rows in ROWS:
            for attempt in itertools.islice(_arguments(op, rows), _MAX_TRACES):
                here: dict[Reduction, None] = {}
                try:
                    with FakeTensorMode() as mode, torch.no_grad():
                        args = attempt(mode)
                        with _Recorder(here):
                            native(*args)
                except Exception as caught:  # arguments of other shapes may fit
                    error = caught
                    continue
                traced = True
                notes |= here
    if not traced:
        why = (
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            if error
            else "no arguments were found"
        )
        return (Reduction("", f"its native function cannot be traced without data ({why})"),)
    return tuple(notes)


@contextlib.contextmanager
def _nothing_active() -> Iterator[None]:
    """Outside of every mode and transform that the caller may be in, a trace of torch's own among them."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    with contextlib.ExitStack() as stack:
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


def _arguments(op: _Op, rows: int) -> Iterator[Callable[[Any], Sequence[Any]]]:
    """Ways to make arguments inside a fake mode, the likeliest first."""
    if (generator := op.input_generator) is not None:
        made = functools.partial(generator, num_tokens=rows, hidden_size=HIDDEN, dtype=torch.float32)
        for changed in _variants(op):
            yield functools.partial(_generated, op, made, changed)
    for shape in ((HIDDEN,), (HIDDEN, HIDDEN), (rows, HIDDEN), (), (rows,), (1,)):
        for changed in _variants(op):
            yield functools.partial(_from_schema, op, rows, shape, changed)


def _generated(op: _Op, made: Callable[[], Sequence[Any]], changed: dict[str, Any], mode: Any) -> list[Any]:
    try:
        args = made()  # in the fake mode: no memory, whatever the number of rows
    except Exception:  # it looks at values, say
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():
            args = made()
        args = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
    return _changed(op, args, changed)


def _from_schema(op: _Op, rows: int, shape: tuple[int, ...], changed: dict[str, Any], mode: Any) -> list[Any]:
    args: list[Any] = []
    for name, parameter in op.signature.parameters.items():
        if name in op.tensor_params:
            args.append(torch.empty((rows, HIDDEN) if name in op.activations else shape))
        elif parameter.default is not parameter.empty:
            args.append(parameter.default)
        else:
            args.append(_SCALARS.get(getattr(parameter.annotation, "__name__", str(parameter.annotation)), 1))
    return _changed(op, args, changed)


_SCALARS: Final = {"float": 0.5, "bool": False, "str": ""}


def _variants(op: _Op) -> Iterator[dict[str, Any]]:
    """No change, then each change of one argument that may take the function another way."""
    yield {}
    for name in op.params:
        if op.tensor_params.get(name, "Tensor") != "Tensor":  # an optional one
            yield {name: None}
        for value in op.parameter_values.get(name, {}).values():
            yield {name: value(HIDDEN) if callable(value) else value}


def _changed(op: _Op, args: Sequence[Any], changed: dict[str, Any]) -> list[Any]:
    bound = op.signature.bind(*args)
    bound.apply_defaults()
    return [changed.get(name, value) for name, value in bound.arguments.items()]
