# SPDX-License-Identifier: Apache-2.0
"""What runs here? The one answer that a call, a lowering, ``explain``, ``freeze``, ``doctor`` and the adapter get.

Selection is pure; this is where it is given what it asks for: the packs' implementations, the evidence of this
machine, and the code of an implementation, imported when selection reaches it. A failed import rejects that
implementation, with the reason, and the next one is tried.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ir_core import catalog, facts, lock_file, platforms, selection
from ir_core.errors import PackError, PolicyError
from ir_core.impl import IrOpImpl
from ir_core.meaning import NATIVE, PORTABLE, Meaning
from ir_core.policy import Policy
from ir_core.selection import EvidenceFor, Selection
from ir_core.target import Target
from ir_core.verification.evidence import evidence_for

logger = logging.getLogger("ir_core")


def check_known(op: Meaning, policy: Policy) -> None:
    """Raise if ``policy`` names a provider or an order that ``op`` does not have, or an op that does not exist.

    Raises:
        UnknownProviderError, UnknownOpError, PolicyError: the message names what exists.
    """
    if policy.disabled:  # native everywhere, whatever else is set
        return
    catalog.check_names([name for name, _ in policy.ops], policy.prefer)
    own = policy.for_op(op.name)
    for provider in (*own.named, *sorted(own.deny)):
        if provider not in catalog.known(op) and provider not in catalog.impls(op):
            raise catalog.unknown_provider(op, provider)
    if own.order is not None and own.order not in op.orders:
        catalog.impls(op)  # an order may come with a pack
    if own.order is not None and own.order not in op.orders:
        raise PolicyError(
            f"Op '{op.name}' has no order '{own.order}'.",
            why=f"It has {', '.join(op.orders) or 'none'}.",
            fix="Name one of these, or none.",
        )


def select(
    op: Meaning,
    policy: Policy,
    target: Target,
    args: Sequence[Any] | None,
    *,
    evidence: EvidenceFor = evidence_for,
    full: bool = True,
) -> Selection:
    """Select the implementation of ``op`` for a call, as a call would.

    Args:
        op: the op.
        policy: the requirement.
        target: the device the call is on.
        args: the complete argument list (real or fake tensors), read through ``facts`` only; ``None`` asks how
            the candidates stand before any call: predicates are not asked, and strictness raises nothing yet.
        evidence: what verification knows about an implementation on a target; by default this machine's certificates.
        full: judge every implementation; else stop at the one that runs, so that no other pack is loaded.

    Raises:
        UnknownProviderError: the policy names a provider that no installed distribution offers for this op.
        StrictError: the policy is strict and a provider that the user named would be passed over.
        ArgumentError: the arguments are no call of the op.
    """
    check_known(op, policy)
    reads: list[facts.Read] = []
    if args is not None and op.check_fn is not None:
        facts.check(op.check_fn, op.params, op.activations, args, reads)
    impls = catalog.impls(op)
    while True:
        try:
            chosen = selection.select(op, impls, policy, target, args, evidence=evidence, full=full)
            return replace(chosen, reads=tuple(dict.fromkeys([*reads, *chosen.reads]))) if reads else chosen
        except selection.CodeNeededError as needed:
            with contextlib.suppress(PackError):  # selection rejects what is broken
                needed.impl.load()


def resolve(
    op: Meaning, policy: Policy, args: Sequence[Any], device: torch.device | None = None
) -> tuple[Selection, IrOpImpl]:
    """What a call with these complete arguments runs, and why; a fallback is logged once, the lock file is heeded.

    Args:
        device: where the call runs; by default where its first tensor is.

    Raises:
        SelectionError: no implementation qualifies.
        LockError: the lock file says otherwise.
    """
    if device is None:
        device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), torch.device("cpu"))
    target = platforms.target_of(device)
    chosen = select(op, policy, target, args, full=False)
    if chosen.chosen is None:  # with the reason of every candidate
        chosen = select(op, policy, target, args, full=True)
    impl = catalog.impls(op)[chosen.provider]
    lock_file.check(impl)
    _report(op, chosen)
    return chosen, impl


def priority(op: Meaning, policy: Policy, targets: Sequence[Target] | None = None) -> list[str]:
    """The providers that a call may run, in order, up to the first that takes every argument.

    Args:
        targets: the devices; by default every one of this process: a provider counts if some device can run it.
    """
    devices = platforms.targets() if targets is None else targets
    standings = [select(op, policy, target, None) for target in devices]
    accepted = {c.provider for standing in standings for c in standing.candidates if c.verdict}
    ranked = dict.fromkeys(c.provider for standing in standings for c in standing.candidates)
    order: list[str] = []
    for provider in ranked:
        if provider in accepted:
            order.append(provider)
            if catalog.impls(op)[provider].supports_all_args:
                break
    return order


def ladder(op: Meaning, policy: Policy) -> list[tuple[IrOpImpl, bool]]:
    """The implementations to try under ``policy`` for arguments of any kind, each with whether the user named it."""
    impls = catalog.impls(op)
    order = selection.fixed_order(op, policy, platforms.targets()[0], None, [])
    return [(impls[name], named) for name, named in selection.ladder(op, impls, policy, order)]


_reported: set[tuple[object, ...]] = set()


def _report(op: Meaning, chosen: Selection) -> None:
    """Log a fallback once: a provider named by the user was passed over, or only the slow portable one is left."""
    key = (op.name, chosen.target, chosen.provider, chosen.fallbacks, chosen.batch_invariant)
    if key in _reported:
        return
    _reported.add(key)
    passed = chosen.fallbacks
    if not passed and chosen.batch_invariant and chosen.provider == PORTABLE:
        passed = tuple(c for c in chosen.candidates if not c.chosen and c.provider != NATIVE)
    if passed:
        reasons = "; ".join(f"{c.provider}: {c.reason}" for c in passed)
        logger.warning("%s runs %s on %s. %s", op.name, chosen.provider, chosen.target.device, reasons)
    else:
        logger.info("%s runs %s on %s", op.name, chosen.provider, chosen.target.device)
