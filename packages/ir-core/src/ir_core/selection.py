# SPDX-License-Identifier: Apache-2.0
"""Select: which implementation runs, as a value with the reason for every candidate.

Pure: the answer depends on the op's meaning, its implementations, the policy, the target, the facts of the arguments
and the evidence it is given, and on nothing else. It imports no code of a pack: where it needs some that is not there
it raises :class:`CodeNeededError`, and ``resolve.py`` loads it and asks again.

First the order is fixed (:func:`fixed_order`), from the op, the dtypes, the device and the policy; then the candidates
are ranked (:func:`ladder`; nothing else ranks them) and the first that qualifies is taken:

==================================  =====================================================================
policy                              candidates, in order
==================================  =====================================================================
``disabled``                        native
``only`` for the op                 exactly those
an order, or batch-invariant        the named ones, those of the order, other packs, the references, ``native``
otherwise, something is named       the named ones, ``native``
otherwise                           ``native``
==================================  =====================================================================

Within a step, packs stand by the name of their distribution and implementations in their pack's own order. Those of
the order come first, so that installing another pack does not change what a model computes. Within an order rows and
layout may decide (:func:`_preferred`), where a certificate of the device vouches for that order; they never do across.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from ir_core.errors import PackError, PredicateError, SelectionError, StrictError
from ir_core.facts import Read, TensorFacts
from ir_core.impl import IrOpImpl
from ir_core.meaning import NATIVE, PORTABLE, Meaning, Order
from ir_core.policy import Policy
from ir_core.target import Accepted, Rejected, Target, Verdict

Impls: TypeAlias = Mapping[str, IrOpImpl]


@dataclass(frozen=True)
class Evidence:
    """What verification found out about an implementation on a device.

    Args:
        verdict: ``certified``, ``refuted`` or ``inconclusive``.
        detail: one clause: what was found, and where the certificate is.
        order: the order that the implementation was held to, bit by bit; ``None`` if only to itself.
    """

    verdict: Literal["certified", "refuted", "inconclusive"]
    detail: str = ""
    order: str | None = None


EvidenceFor: TypeAlias = Callable[[IrOpImpl, Target], "Evidence | None"]


def no_evidence(impl: IrOpImpl, target: Target) -> Evidence | None:
    """The evidence where nothing was verified."""
    return None


class CodeNeededError(Exception):
    """Selection reached an implementation whose code was not imported yet; ``impl`` is it."""

    def __init__(self, impl: IrOpImpl) -> None:
        super().__init__(impl.label)
        self.impl = impl


@dataclass(frozen=True)
class Candidate:
    """One implementation as selection judged it."""

    provider: str
    distribution: str
    version: str
    verdict: Verdict
    named: bool = False
    chosen: bool = False
    order: str | None = None

    @property
    def reason(self) -> str:
        """Why it runs or does not: one clause."""
        if isinstance(self.verdict, Rejected):
            return self.verdict.reason
        if not self.chosen:
            return "accepted, stands behind the selected one"
        return "selected" if self.order is None else f"selected, in the order {self.order}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "provider": self.provider,
            "distribution": self.distribution,
            "version": self.version,
            "accepted": bool(self.verdict),
            "chosen": self.chosen,
            "named": self.named,
            "order": self.order,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Selection:
    """The outcome: what runs for one op under one policy on one target, and why nothing else does.

    Args:
        op: the op's name.
        target: the device the call is on.
        batch_invariant: whether only batch-invariant implementations were considered.
        policy: the whole policy.
        candidates: every implementation looked at, in order.
        reads: the facts of the arguments that the choice rests on.
        order: the order that was fixed, or ``None``: any will do.
    """

    op: str
    target: Target
    batch_invariant: bool
    policy: Policy
    candidates: tuple[Candidate, ...]
    reads: tuple[Read, ...] = ()
    order: str | None = None

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that runs, or ``None`` when none qualifies."""
        return next((c for c in self.candidates if c.chosen), None)

    @property
    def provider(self) -> str:
        """The chosen provider.

        Raises:
            SelectionError: none qualifies; the message has every candidate's reason.
        """
        if self.chosen is None:
            raise self.error(SelectionError, f"No implementation of '{self.op}' qualifies.")
        return self.chosen.provider

    @property
    def fallbacks(self) -> tuple[Candidate, ...]:
        """The candidates named by the user that were passed over."""
        before: list[Candidate] = []
        for candidate in self.candidates:
            if candidate.chosen:
                break
            if candidate.named and not candidate.verdict:
                before.append(candidate)
        return tuple(before) if self.chosen is not None else ()

    @property
    def requirement(self) -> str:
        """The requirement in words."""
        asked = self.policy.for_op(self.op).order
        words = (
            "batch-invariant" if self.batch_invariant or self.unmet else "",
            f"order {asked}" if asked else "",
        )
        return ", ".join(filter(None, (*words, self.unmet))) or "any"

    @property
    def unmet(self) -> str:
        """Why a requirement of the policy is not met by what runs; empty when all are."""
        if self.policy.disabled and self.policy.invariant(self.op):
            return "NOT MET: ops are disabled (IR_DISABLE), native runs whatever is required"
        return ""

    def explain(self) -> str:
        """The whole selection as text, a line a candidate."""
        lines = [f"{self.op} on {self.target.describe()}, requirement: {self.requirement}"]
        for c in self.candidates:
            mark = "->" if c.chosen else "  "
            where = f" ({c.distribution} {c.version})" if c.distribution else ""
            lines.append(f"{mark} {c.provider}{where}: {c.reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and compile artifacts."""
        return {
            "op": self.op,
            "target": self.target.to_dict(),
            "batch_invariant": self.batch_invariant,
            "unmet": self.unmet,
            "policy": self.policy.to_dict(),
            "order": None if self.chosen is None else self.chosen.order,
            "provider": None if self.chosen is None else self.chosen.provider,
            "candidates": [c.to_dict() for c in self.candidates],
        }

    def error(self, kind: type[SelectionError], what: str) -> SelectionError:
        """An error that carries this selection and prints it."""
        if self.batch_invariant:
            fix = (
                "Install a pack with a batch-invariant implementation that accepts these arguments, name one in "
                f"IR_PRIORITY, or verify one: ir-core verify {self.op}."
            )
        else:
            fix = f"Name another provider (IR_PRIORITY='{self.op}=...'), or allow native."
        error = kind(what, why=self.explain(), fix=fix)
        error.selection = self
        return error


def computes(impl: IrOpImpl, order: Order) -> bool:
    """Whether an implementation has the order's bits: it declares the order, or is its reference."""
    return impl.order == order.name or impl.provider == order.reference


def _references(op: Meaning) -> dict[str, None]:
    """The providers that compute an order of ``op`` on every device."""
    return dict.fromkeys([*(order.reference for order in op.orders.values()), PORTABLE])


def fixed_order(
    op: Meaning, policy: Policy, target: Target, args: Sequence[Any] | None, reads: list[Read]
) -> Order | None:
    """The order in which ``op`` is computed: what the policy asks for, else in batch-invariant mode the op's default.

    The default is the first order of the op that counts on ``target`` for the dtype of the first activation, those
    apart that only a policy brings; ``None`` if the op has none there, or nothing asks for one.
    """
    if policy.disabled:
        return None
    if (name := policy.for_op(op.name).order) is not None:
        return op.orders[name]
    if not policy.invariant(op.name):
        return None
    for order in op.orders.values():
        if order.by_name or (order.requires is not None and not order.requires.check(target)):
            continue
        if not order.dtypes or args is None or _dtype(op, args, reads) in order.dtypes:
            return order
    return None


def _dtype(op: Meaning, args: Sequence[Any], reads: list[Read]) -> torch.dtype | None:
    for index in op.activation_indices:
        if isinstance(args[index], torch.Tensor):
            return TensorFacts(op.params[index], args[index], True, reads).dtype
    return None


def ladder(op: Meaning, impls: Impls, policy: Policy, order: Order | None = None) -> list[tuple[str, bool]]:
    """The providers to try, in order, each with whether the user named it. The table is in the module's docstring."""
    if policy.disabled:
        return [(NATIVE, False)]
    own = policy.for_op(op.name)
    if own.only is not None:
        return [(name, True) for name in own.only]
    tried = dict.fromkeys(own.prefer or (name for name in policy.prefer if name in impls), True)
    invariant = policy.invariant(op.name)
    if invariant or order is not None:
        places = list(impls)
        references = _references(op)
        rest = sorted(
            (impl for name, impl in impls.items() if name != NATIVE and name not in references),
            key=lambda impl: (
                order is None or not computes(impl, order),
                impl.distribution,
                places.index(impl.provider),
            ),
        )
        rest += [impls[name] for name in references if name in impls]
        for impl in rest:
            if impl.batch_invariant if invariant else order is not None and computes(impl, order):
                tried.setdefault(impl.provider, False)
    tried.setdefault(NATIVE, False)
    return list(tried.items())


def select(
    op: Meaning,
    impls: Impls,
    policy: Policy,
    target: Target,
    args: Sequence[Any] | None,
    *,
    evidence: EvidenceFor = no_evidence,
    full: bool = True,
) -> Selection:
    """Select the implementation of ``op`` for a call.

    Args:
        op: what the op means.
        impls: its implementations, by provider.
        policy: the requirement; what it names exists (``resolve.check_known``).
        target: the device the call is on.
        args: the complete argument list (real or fake tensors), read through ``facts`` only; ``None`` asks how
            the candidates stand before any call: predicates are not asked, and strictness raises nothing yet.
        evidence: what verification knows about an implementation on a target.
        full: judge every implementation; else stop at the one that runs, so that no other pack is needed.

    Raises:
        CodeNeededError: the code of an implementation is not there yet.
        StrictError: the policy is strict and a provider that the user named would be passed over.
    """
    invariant = policy.invariant(op.name) and not policy.disabled
    reads: list[Read] = []
    order = fixed_order(op, policy, target, args, reads)
    judge = _Judge(op, policy, invariant, order, target, args, evidence)
    candidates: list[Candidate] = []
    chosen: IrOpImpl | None = None
    tried = ladder(op, impls, policy, order)
    for provider, named in tried:
        impl = impls[provider]
        verdict = judge(impl, named, reads if chosen is None else [])
        candidates.append(_candidate(impl, verdict, named))
        if verdict and chosen is None:
            chosen = impl
            if not full:
                break
    if chosen is not None and order is not None and args is not None:
        chosen = _preferred(judge, chosen, [impls[provider] for provider, _ in tried], reads)
    if full:
        candidates += _left_out(op, impls, policy, invariant, order, {name for name, _ in tried})
    marked = [
        replace(c, chosen=True) if chosen is not None and c.provider == chosen.provider else c
        for c in candidates
    ]
    if chosen is not None and not any(
        c.chosen for c in marked
    ):  # preferred, and behind where the search stopped
        marked.append(replace(_candidate(chosen, Accepted(), False), chosen=True))
    selection = Selection(
        op.name,
        target,
        invariant,
        policy,
        tuple(marked),
        tuple(dict.fromkeys(reads)),
        None if order is None else order.name,
    )
    if policy.strict and args is not None:
        _check_strict(selection)
    return selection


def _candidate(impl: IrOpImpl, verdict: Verdict, named: bool = False) -> Candidate:
    return Candidate(impl.provider, impl.distribution, impl.version, verdict, named, order=impl.order)


def _preferred(judge: _Judge, chosen: IrOpImpl, tried: list[IrOpImpl], reads: list[Read]) -> IrOpImpl:
    """The implementation of the chosen one's order that prefers these arguments, rows and layout included.

    Only among those whose equality is evidenced here: both must be certified for the order on this device.
    """
    order, args = judge.order, judge.args
    assert order is not None and args is not None
    rivals = [impl for impl in tried if impl.spec.prefers_args is not None and impl is not chosen]
    if not rivals or not computes(chosen, order) or not _rows_are_known(args):
        return chosen
    for impl in rivals:
        equal = all(judge.vouched(each) for each in (chosen, impl)) and computes(impl, order)
        if not equal or not judge(impl, False, reads):
            continue
        prefers = impl.code("prefers_args")
        wanted = prefers_these(prefers, *args)
        reads.append(("", "prefers", (prefers, wanted)))
        if wanted:
            return impl
    return chosen


def prefers_these(prefers: Callable[..., object], *args: Any) -> bool:
    """Whether a preference takes these arguments; one that fails does not."""
    try:
        return bool(prefers(*args))
    except Exception:  # it decides speed alone
        return False


def _rows_are_known(args: Sequence[Any]) -> bool:
    """Whether sizes are numbers: not while a graph for any number of rows is compiled."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return all(
        not tensor.is_meta and all(isinstance(n, int) for n in (*tensor.shape, *tensor.stride()))
        for tensor in tensors
    )


@dataclass(frozen=True)
class _Judge:
    """One implementation against the requirement; the cheap questions first, code of a pack last."""

    op: Meaning
    policy: Policy
    invariant: bool
    order: Order | None
    target: Target
    args: Sequence[Any] | None
    evidence: EvidenceFor

    def __call__(self, impl: IrOpImpl, named: bool, reads: list[Read]) -> Verdict:
        spec = impl.spec
        if impl.provider in self.policy.for_op(self.op.name).deny and not self.policy.disabled:
            return Rejected("denied by the policy")
        here = None if self.order is None else self.order.name
        if impl.order != here and not (self.order is not None and computes(impl, self.order)):
            asked = here is not None and self.policy.for_op(self.op.name).order is not None
            if asked or (self.invariant and impl.order is not None and not named):
                return Rejected(f"computes {_order(impl)}, the order here is {here or 'none'}")
        if self.invariant and not (verdict := self._invariance(impl, named)):
            return verdict
        if not spec.supported:
            return Rejected("registered as not supported on this machine (supported=False)")
        if not (verdict := impl.requires.check(self.target)):
            return verdict
        if not impl.loaded:
            raise CodeNeededError(impl)
        try:
            impl.load()
            refusal = None if self.args is None else impl.refusal(self.args, reads)
        except PredicateError as error:
            return Rejected(f"its predicate is broken: {error.what}")
        except PackError as error:
            return Rejected(f"cannot be loaded: {error.what}")
        return Accepted() if refusal is None else Rejected(refusal)

    def _invariance(self, impl: IrOpImpl, named: bool) -> Verdict:
        if not impl.batch_invariant:
            return Rejected("not declared batch-invariant")
        found = self.evidence(impl, self.target)
        if found is not None and found.verdict == "refuted":
            return Rejected(f"refuted on this device: {found.detail}")
        if found is not None and found.verdict == "certified":
            return Accepted()
        if self.policy.strict:
            return Rejected("declared batch-invariant, not certified on this device (strict)")
        if impl.provider == NATIVE and self.op.has_reduction:
            if named or {self.op.name, "*"} & self.policy.vouched:
                return Accepted()
            return Rejected(
                "a reduction of torch is invariant under conditions only: no policy names native, and neither the "
                "host vouched for it nor a certificate of this device"
            )
        if impl.provider not in (NATIVE, *_references(self.op)) and not self.target.batch_invariant:
            reason = self.target.batch_invariant_reason
            reason = reason or f"{self.target.label} does not support batch invariance"
            if impl.requires.check(self.target):
                reason += f"; a certificate of this device lifts that: ir-core verify {self.op.name}/{impl.provider}"
            return Rejected(reason)
        return Accepted()

    def vouched(self, impl: IrOpImpl) -> bool:
        """Whether a certificate of this device says that ``impl`` has the bits of the order."""
        found = self.evidence(impl, self.target)
        return (
            self.order is not None
            and found is not None
            and found.verdict == "certified"
            and found.order == self.order.name
        )


def _order(impl: IrOpImpl) -> str:
    return "in no order that it declares" if impl.order is None else f"in the order {impl.order}"


def _left_out(
    op: Meaning, impls: Impls, policy: Policy, invariant: bool, order: Order | None, tried: set[str]
) -> list[Candidate]:
    """The implementations that the ladder does not name, with the reason."""
    own = policy.for_op(op.name)
    rest: list[Candidate] = []
    for provider, impl in impls.items():
        if provider in tried:
            continue
        if policy.disabled:
            reason = "IR_DISABLE is set: native everywhere"
        elif provider in own.deny:
            reason = "denied by the policy"
        elif own.only is not None:
            reason = f"the policy allows only {', '.join(own.only)}"
        elif invariant and not impl.batch_invariant:
            reason = "not declared batch-invariant"
        elif order is not None:
            reason = f"computes {_order(impl)}, the order here is {order.name}"
        else:
            names = ", ".join(own.prefer or policy.prefer) or "none is set"
            reason = f"not in the priority list ({names})"
        rest.append(_candidate(impl, Rejected(reason)))
    return rest


def _check_strict(selection: Selection) -> None:
    if selection.unmet:
        raise selection.error(
            StrictError,
            f"'{selection.op}' must be batch-invariant and is disabled, and IR_STRICT is set.",
        )
    if selection.chosen is None:
        raise selection.error(
            StrictError, f"No implementation of '{selection.op}' qualifies, and IR_STRICT is set."
        )
    if selection.fallbacks:
        names = ", ".join(c.provider for c in selection.fallbacks)
        raise selection.error(
            StrictError,
            f"'{selection.op}' would fall back from {names} to {selection.provider}, and IR_STRICT is set.",
        )
