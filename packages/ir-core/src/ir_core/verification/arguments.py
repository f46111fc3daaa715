# SPDX-License-Identifier: Apache-2.0
"""The arguments probe: arguments that are no activation take other values between calls, as layers' weights do.

A call is made, then one with another weight (or epsilon, or option), then the first one again. The second call has to
heed the new value, and the third to give the bits of the first. Tensors are replaced, and rewritten in their memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ir_core.tolerances import unit_roundoff
from ir_core.verification import bits, one_call, reference
from ir_core.verification.calls import Call, Case
from ir_core.verification.outcome import PASSED, Failed, Outcome, Skipped

if TYPE_CHECKING:
    from ir_core.verification.subject import Subject


def arguments(subject: Subject, call: Call) -> Outcome:
    """Ask about the arguments that ``call.statics`` names."""
    plain, name = call.but(statics=""), call.statics.partition("#")[0] or "static arguments"
    if (heeding := _must_move(subject, call, plain)) is None:
        return Skipped(f"the op itself cannot take another {name} here")
    first, other, again = (subject.run(c) for c in (plain, call, plain))
    if (said := _differs(subject, call, again, first)) is not None:
        return Failed(f"after a call with another {name} the same call gives other bits: {said}")
    for number, places in enumerate(heeding):
        same = bits.as_bits(first[number]) == bits.as_bits(other[number])
        if bool(places.any()) and bool(same[places].all()):
            return Failed(
                f"it takes no notice of another {name}: {int(places.sum())} elements have to change, and have the "
                "bits of the call before"
            )
    # What is wrong with the first values, too, is for the numerics probe to say.
    before, outcome = (one_call.numerics(subject, c) for c in (plain, call))
    if isinstance(outcome, Failed) and not isinstance(before, Failed):
        return Failed(f"with another {name}: {outcome.said}")
    return _rewritten(subject, call, plain, first, other)


def possible(subject: Subject, call: Call) -> bool:
    """Whether the op can do a call with these other values at all; if not, there is nothing to ask."""
    return _must_move(subject, call, call.but(statics="")) is not None


def _must_move(subject: Subject, call: Call, plain: Call) -> list[Tensor] | None:
    """For each output the elements that change by more than any rounding; ``None`` where the op cannot do this."""
    try:
        old, new = (reference.in_float64(subject.op, subject.arguments(c)) for c in (plain, call))
        given = subject.native.func_impl_fn(*subject.arguments(call))
    except Exception:  # a value that the op does not take
        return None
    dtypes = [out.dtype for out in reference.flat(given)]
    found = []
    for a, b, dtype in zip(reference.flat(old), reference.flat(new), dtypes, strict=True):
        moved = torch.zeros(a.shape, dtype=torch.bool, device=a.device)
        if dtype.is_floating_point and a.shape == b.shape:
            moved = (a - b).abs() > 64 * unit_roundoff(dtype) * a.abs() + torch.finfo(dtype).tiny
        found.append(moved.reshape(call.rows, -1))
    return found


def _differs(subject: Subject, call: Call, mine: list[Tensor], theirs: list[Tensor]) -> str | None:
    from ir_core.verification.subject import difference

    everywhere = torch.arange(call.rows)
    found = difference(Case("arguments", call, call.but(statics="")), mine, theirs, everywhere, everywhere)
    return None if found is None else str(found)


def _rewritten(
    subject: Subject, call: Call, plain: Call, first: list[Tensor], other: list[Tensor]
) -> Outcome:
    """The same tensors with new contents: what a kernel derived from them and kept is stale then."""
    kept, new = subject.arguments(plain), subject.arguments(call)
    tensors = [
        position
        for position, arg in enumerate(kept)
        if isinstance(arg, Tensor) and position not in subject.op.activation_indices
    ]
    old = {position: kept[position].clone() for position in tensors}
    if any(not torch.is_tensor(new[p]) or new[p].dtype != kept[p].dtype for p in tensors):
        return PASSED
    scalars_differ = any(not isinstance(a, Tensor) and a != b for a, b in zip(kept, new, strict=True))
    if not tensors or scalars_differ:
        return PASSED
    for contents, expected in ((old, first), (new, other), (old, first)):
        for position in tensors:
            kept[position].copy_(contents[position])
        fresh = subject.arguments(plain)
        args = [kept[i] if i in tensors else fresh[i] for i in range(len(kept))]
        found = subject.outputs(subject.impl.impl_fn(*args), call.rows)
        if (said := _differs(subject, call, found, expected)) is not None:
            name = ", ".join(subject.op.params[position] for position in tensors)
            return Failed(
                f"when {name} is rewritten in its memory, the call gives the bits of stale contents: {said}"
            )
    return PASSED
