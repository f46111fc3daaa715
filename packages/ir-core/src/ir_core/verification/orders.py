# SPDX-License-Identifier: Apache-2.0
"""The order probe: an implementation that declares an order has the bits of the order's reference, ``portable``.

An order is an exactly specified arithmetic, so this is a stronger question than whether an implementation agrees with
itself: every element is right or wrong, whatever the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from ir_core.verification.calls import Call, Case
from ir_core.verification.outcome import PASSED, Failed, Outcome, Skipped

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.verification.subject import Subject

REFERENCE: Final = "portable"


def order_of(impl: IrOpImpl) -> str:
    """The order that an implementation declares; empty when it declares none."""
    declared = getattr(impl, "order", None)
    if declared is None:
        declared = "tree" if getattr(impl, "canonical", False) else ""
    return str(declared)


def reference_of(impl: IrOpImpl) -> IrOpImpl | None:
    """What computes the order of ``impl``: its op's ``portable``, unless that is ``impl`` itself."""
    found = impl.op.impls.get(REFERENCE)
    return None if found is impl else found


def order(subject: Subject, call: Call) -> Outcome:
    """Compare one call with the reference, element by element."""
    from ir_core.verification.subject import difference

    other = reference_of(subject.impl)
    if other is None:
        return Skipped(f"op '{subject.op.name}' has no {REFERENCE} to compare with")
    found = subject.run(call)
    wanted = subject.outputs(other.func_impl_fn(*subject.arguments(call)), call.rows)
    everywhere = torch.arange(call.rows)
    different = difference(Case("order", call), found, wanted, everywhere, everywhere)
    if different is None:
        return PASSED
    said = str(different).replace("in the other call", f"in {REFERENCE}")
    return Failed(
        f"it declares the order '{order_of(subject.impl)}', and {REFERENCE} gives other bits: {said}"
    )
