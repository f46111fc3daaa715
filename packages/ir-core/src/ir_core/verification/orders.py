# SPDX-License-Identifier: Apache-2.0
"""The order probe: an implementation that declares an order has the bits of the order's reference, ``portable``.

An order is an exactly specified arithmetic, so this is a stronger question than whether an implementation agrees with
itself: every element is right or wrong, whatever the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ir_core import catalog
from ir_core.verification.calls import Call, Case
from ir_core.verification.outcome import PASSED, Failed, Outcome, Skipped

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.verification.subject import Subject


def order_of(impl: IrOpImpl) -> str:
    """The order that an implementation declares; empty when it declares none."""
    return impl.order or ""


def reference_of(impl: IrOpImpl) -> IrOpImpl | None:
    """What computes the order of ``impl``: the reference of that order, unless that is ``impl`` itself."""
    known = impl.op.orders.get(order_of(impl))
    found = None if known is None else catalog.impls(impl.op).get(known.reference)
    return None if found is impl else found


def order(subject: Subject, call: Call) -> Outcome:
    """Compare one call with the reference, element by element."""
    from ir_core.verification.subject import difference

    other = reference_of(subject.impl)
    if other is None:
        return Skipped(f"op '{subject.op.name}' has no reference of that order to compare with")
    found = subject.run(call)
    wanted = subject.outputs(other.func_impl_fn(*subject.arguments(call)), call.rows)
    everywhere = torch.arange(call.rows)
    different = difference(Case("order", call), found, wanted, everywhere, everywhere)
    if different is None:
        return PASSED
    said = str(different).replace("in the other call", f"in {other.provider}")
    return Failed(
        f"it declares the order '{order_of(subject.impl)}', and {other.provider} gives other bits: {said}"
    )
