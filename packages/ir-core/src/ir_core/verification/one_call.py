# SPDX-License-Identifier: Apache-2.0
"""The probes that are about one call: what an implementation owes its op besides batch invariance."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ir_core.verification import bits, reference
from ir_core.verification.outcome import PASSED, Failed, Outcome, Skipped
from ir_core.verification.reference import flat

if TYPE_CHECKING:
    from ir_core.verification.calls import Call
    from ir_core.verification.subject import Subject


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((bits.as_bits(a) == bits.as_bits(b)).all())


def inputs(subject: Subject, call: Call) -> Outcome:
    """Inputs come back unmodified; an in-place implementation may change its activations only."""
    impl, op = subject.impl, subject.op
    args = subject.arguments(call)
    before = [arg.clone() if isinstance(arg, Tensor) else None for arg in args]
    impl.impl_fn(*args)
    for position, (arg, old) in enumerate(zip(args, before, strict=True)):
        donated = impl.inplace and position in op.activation_indices
        if old is not None and not donated and not _same(arg, old):
            return Failed(f"it writes into its input '{op.params[position]}', which the caller still owns")
    args = subject.arguments(call)
    before = [arg.clone() if isinstance(arg, Tensor) else None for arg in args]
    impl.func_impl_fn(*args)
    for position, (arg, old) in enumerate(zip(args, before, strict=True)):
        if old is not None and not _same(arg, old):
            return Failed(f"with functional semantics it still changes '{op.params[position]}'")
    return PASSED


def aliasing(subject: Subject, call: Call) -> Outcome:
    """Outputs share memory with nothing: not with inputs, with each other, or with what an earlier call returned."""
    impl, op = subject.impl, subject.op
    args = subject.arguments(call)
    first = flat(impl.func_impl_fn(*args))
    owned = {
        arg.untyped_storage().data_ptr(): op.params[i]
        for i, arg in enumerate(args)
        if isinstance(arg, Tensor)
    }
    for number, out in enumerate(first):
        if out.numel() == 0:
            continue
        pointer = out.untyped_storage().data_ptr()
        if pointer in owned:
            return Failed(f"output {number} shares memory with '{owned[pointer]}'")
        owned[pointer] = f"output {number}"
    kept = [out.clone() for out in first]
    second = flat(impl.func_impl_fn(*subject.arguments(call.but(start=call.start + call.rows))))
    for number, (out, old) in enumerate(zip(first, kept, strict=True)):
        if not _same(out, old):
            return Failed(f"output {number} of a call is overwritten by the next call")
    shared = {o.untyped_storage().data_ptr() for o in first} & {
        o.untyped_storage().data_ptr() for o in second
    }
    return Failed("two calls return the same memory") if shared and all(o.numel() for o in first) else PASSED


def fake(subject: Subject, call: Call) -> Outcome:
    """The fake implementation and the real one agree in shape, dtype, strides and device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    args = subject.arguments(call)
    real = flat(subject.impl.func_impl_fn(*args))
    with FakeTensorMode() as mode:
        faked = flat(subject.overload(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)))
    if len(real) != len(faked):
        return Failed(f"the fake implementation returns {len(faked)} tensors, the real one {len(real)}")
    for number, (mine, theirs) in enumerate(zip(real, faked, strict=True)):
        for what in ("shape", "dtype", "device"):
            a, b = getattr(mine, what), getattr(theirs, what)
            if a != b:
                return Failed(f"output {number} has {what} {a}, the fake implementation says {b}")
        if _strides(mine) != _strides(theirs):
            return Failed(
                f"output {number} has strides {mine.stride()}, the fake implementation says {theirs.stride()}"
            )
    return PASSED


def _strides(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one element; the others mean nothing."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def numerics(subject: Subject, call: Call) -> Outcome:
    """Results are within the op's tolerance of a float64 reference; without one, within what its roundings explain."""
    args = subject.generated(call)
    expected = flat(reference.in_float64(subject.op, args))
    found = flat(subject.impl.func_impl_fn(*args))
    if len(found) != len(expected):
        return Failed(f"it returns {len(found)} tensors, the native implementation {len(expected)}")
    for number, (mine, wanted) in enumerate(zip(found, expected, strict=True)):
        if mine.shape != wanted.shape:
            return Failed(
                f"output {number} has shape {tuple(mine.shape)}, the native one {tuple(wanted.shape)}"
            )
        bound = reference.tolerance(subject.op, args, mine)
        error = (mine.double() - wanted).abs()
        allowed = bound["atol"] + bound["rtol"] * wanted.abs()
        wrong = ~(error <= allowed) & torch.isfinite(wanted)
        if not wrong.any():
            continue
        deviation = reference.growth(subject.op, args)[number]
        if not reference.declared(subject.op, args, mine):
            allowed = allowed + reference.SPREAD * deviation
            wrong = ~(error <= allowed) & torch.isfinite(wanted)
        if wrong.any():
            place = tuple(torch.nonzero(wrong)[0].tolist())
            return Failed(
                f"output {number} at {place} is {mine[place].item()!r}, the float64 reference is "
                f"{wanted[place].item()!r}: an error of {error[place].item():.3g} where {allowed[place].item():.3g} "
                f"is allowed; {int(wrong.sum())} of {wrong.numel()} elements are outside. "
                + _culprit(subject, args, number, error[wrong] / deviation[wrong], wanted, allowed)
            )
    return PASSED


def _culprit(
    subject: Subject, args: list[Any], number: int, times: Tensor, wanted: Tensor, allowed: Tensor
) -> str:
    """Whether the implementation or the bound is the likelier culprit: by what the native one does, and roundings."""
    native = flat(subject.native.func_impl_fn(*args))[number]
    outside = ~((native.double() - wanted).abs() <= allowed) & torch.isfinite(wanted)
    worst = float(torch.nan_to_num(times, torch.inf, torch.inf).max())
    mend = f"derive it anew, and set it by ops.{subject.op.name}.override_tolerance"
    if outside.any():
        return (
            f"The bound is the likelier culprit: the native implementation, which is the op's meaning, is outside in "
            f"{int(outside.sum())} elements, too; {mend}"
        )
    if worst <= reference.SPREAD:
        return (
            f"The bound is the likelier culprit: the error is {worst:.1f} times what one rounding of inputs and of "
            f"the native implementation's steps makes; {mend}"
        )
    said = f"{worst:.3g} times" if worst < 1e6 else "far beyond"
    return (
        f"The implementation is the likelier culprit: its error is {said} what roundings make here, and the native "
        "implementation is inside"
    )


def pair(subject: Subject, call: Call) -> Outcome:
    """Two calls in one launch have the bits of two calls, in either order, and results of their own.

    The second call has another number of rows and, apart from the activations, other tensors. Static arguments are the
    same: calls that differ in them are never put together.
    """
    impl = subject.impl
    if impl.pair_fn is None:
        return PASSED

    def both() -> tuple[list[Any], list[Any]]:
        second = subject.arguments(call.but(rows=2 * call.rows + 1, start=call.start + call.rows))
        for place, name in enumerate(subject.op.params):
            if (
                isinstance(second[place], Tensor)
                and second[place].dim()
                and name not in subject.op.activations
            ):
                second[place] = second[place].flip(-1)
        return subject.arguments(call), second

    wanted = [flat(impl.func_impl_fn(*args)) for args in both()]
    given = both()
    before = [[arg.clone() if isinstance(arg, Tensor) else None for arg in args] for args in given]
    # Both launches before either is looked at: a result must outlive the next launch.
    results = [impl.pair_fn(given[0], given[1]), impl.pair_fn(given[1], given[0])]
    for result in results:
        if not isinstance(result, tuple) or len(result) != 2:
            return Failed(f"its pair returns {type(result).__name__} and not the results of two calls")
    for args, copies in zip(given, before, strict=True):
        for arg, old in zip(args, copies, strict=True):
            if old is not None and not _same(arg, old):
                return Failed("its pair changes an input")
    found = [[flat(result) for result in launch] for launch in results]
    for launch, expected in zip(found, (wanted, wanted[::-1]), strict=True):
        for number, (mine, alone) in enumerate(zip(launch, expected, strict=True)):
            if len(mine) != len(alone) or not all(
                a.dtype == b.dtype and _strides(a) == _strides(b) and _same(a, b)
                for a, b in zip(mine, alone, strict=True)
            ):
                return Failed(f"call {number} of two in one launch differs from the same call alone")
    owned = [
        {t.untyped_storage().data_ptr() for t in mine if t.numel()} for launch in found for mine in launch
    ]
    if sum(map(len, owned)) != len(set().union(*owned)):
        return Failed("its pair returns results of two calls in one memory")
    return PASSED


def opcheck(subject: Subject, call: Call) -> Outcome:
    """``torch.library.opcheck`` on the torch op that calls this implementation."""
    args = tuple(subject.arguments(call))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    results = torch.library.opcheck(subject.overload, args, test_utils=tests, raise_exception=False)
    failed = {name: error for name, error in results.items() if error != "SUCCESS"}
    if not failed:
        return PASSED
    return Failed("; ".join(f"{name}: {_first_line(error)}" for name, error in failed.items()))


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def threads(subject: Subject, call: Call) -> Outcome:
    """Four threads at once get the bits that each gets alone."""
    if subject.interpreted:
        return Skipped("Triton's interpreter is not thread-safe; compiled kernels are asked, on a GPU")
    calls = [call.but(start=(call.start + 7 * i) % subject.pool_rows(call.setting)) for i in range(4)]
    alone = [flat(subject.impl.func_impl_fn(*subject.arguments(c))) for c in calls]
    arguments = [[subject.arguments(c) for _ in range(6)] for c in calls]
    wrong: list[str] = []
    gate = threading.Barrier(len(calls))

    def work(number: int) -> None:
        gate.wait()
        for args in arguments[number]:
            try:
                with torch.no_grad():  # a mode of each thread
                    found = flat(subject.impl.func_impl_fn(*args))
            except Exception as error:
                wrong.append(
                    f"a call in one of four threads raised {type(error).__name__}: {_first_line(error)}"
                )
                return
            if not all(_same(a, b) for a, b in zip(found, alone[number], strict=True)):
                wrong.append("a call gives other bits while other threads call it too")
                return

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Failed(wrong[0]) if wrong else PASSED
