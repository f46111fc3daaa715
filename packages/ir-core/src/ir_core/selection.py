# SPDX-License-Identifier: Apache-2.0
"""Select: which implementation runs, as a value with the reason for every candidate.

Pure: the answer depends on the op's implementations, the policy, the target, the facts of the arguments and the
evidence it is given, and on nothing else. The order of candidates is :func:`ladder`; nothing else ranks them.

==================================  =====================================================================
policy                              candidates, in order
==================================  =====================================================================
``disabled``                        native
``only`` for the op                 exactly those
batch-invariant                     the named ones, those with canonical bits, other packs, ``portable``, ``native``
otherwise, something is named       the named ones, ``native``
otherwise                           ``native``
==================================  =====================================================================

Within a step, packs stand by the name of their distribution and implementations in their pack's own order. Those
with canonical bits come first, so that installing another pack does not change what a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ir_core.errors import PackError, PredicateError, SelectionError, StrictError
from ir_core.facts import Read
from ir_core.policy import Policy
from ir_core.target import Accepted, Rejected, Target, Verdict

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.op import IrOp

NATIVE: Final = "native"
PORTABLE: Final = "portable"


@dataclass(frozen=True)
class Evidence:
    """What verification found out about an implementation on a device.

    Args:
        verdict: ``certified``, ``refuted`` or ``inconclusive``.
        detail: one clause: what was found, and where the certificate is.
    """

    verdict: Literal["certified", "refuted", "inconclusive"]
    detail: str = ""


EvidenceFor: TypeAlias = "Callable[[IrOpImpl, Target], Evidence | None]"


def no_evidence(impl: IrOpImpl, target: Target) -> Evidence | None:
    """The evidence of somebody who verified nothing."""
    return None


@dataclass(frozen=True)
class Candidate:
    """One implementation as selection judged it."""

    provider: str
    distribution: str
    version: str
    verdict: Verdict
    named: bool = False
    chosen: bool = False

    @property
    def reason(self) -> str:
        """Why it runs or does not: one clause."""
        if isinstance(self.verdict, Rejected):
            return self.verdict.reason
        return "selected" if self.chosen else "accepted, stands behind the selected one"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "provider": self.provider,
            "distribution": self.distribution,
            "version": self.version,
            "accepted": bool(self.verdict),
            "chosen": self.chosen,
            "named": self.named,
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
    """

    op: str
    target: Target
    batch_invariant: bool
    policy: Policy
    candidates: tuple[Candidate, ...]
    reads: tuple[Read, ...] = ()

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
            if candidate.named:
                before.append(candidate)
        return tuple(before) if self.chosen is not None else ()

    @property
    def requirement(self) -> str:
        """The requirement in words."""
        if self.unmet:
            return f"batch-invariant, {self.unmet}"
        return "batch-invariant" if self.batch_invariant else "any"

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


def ladder(op: IrOp, policy: Policy) -> list[tuple[str, bool]]:
    """The providers to try, in order, each with whether the user named it. The table is in the module's docstring."""
    if policy.disabled:
        return [(NATIVE, False)]
    own = policy.for_op(op.name)
    if own.only is not None:
        return [(name, True) for name in own.only]
    named = own.prefer or tuple(name for name in policy.prefer if name in op.impls)
    order = [(name, True) for name in named]
    if policy.invariant(op.name):
        rest = sorted(
            (impl for name, impl in op.impls.items() if name not in (NATIVE, PORTABLE)),
            key=lambda impl: (not impl.canonical, impl.distribution, list(op.impls).index(impl.provider)),
        )
        order += [(impl.provider, False) for impl in rest if impl.batch_invariant]
        order += [(name, False) for name in (PORTABLE,) if name in op.impls]
    order.append((NATIVE, False))
    return [(name, named) for i, (name, named) in enumerate(order) if name not in {n for n, _ in order[:i]}]


def select(
    op: IrOp,
    policy: Policy,
    target: Target,
    args: Sequence[Any] | None,
    *,
    evidence: EvidenceFor = no_evidence,
    full: bool = True,
) -> Selection:
    """Select the implementation of ``op`` for a call.

    Args:
        op: the op.
        policy: the requirement.
        target: the device the call is on.
        args: the complete argument list (real or fake tensors), read through ``facts`` only; ``None`` asks how
            the candidates stand before any call: predicates are not asked, and strictness raises nothing yet.
        evidence: what verification knows about an implementation on a target.
        full: judge every implementation; else stop at the one that runs, so that no other pack is loaded.

    Raises:
        UnknownProviderError: the policy names a provider that no installed distribution offers for this op.
        StrictError: the policy is strict and a provider that the user named would be passed over.
    """
    op.check_known(policy)
    invariant = policy.invariant(op.name) and not policy.disabled
    reads: list[Read] = []
    candidates: list[Candidate] = []
    decided = False
    order = ladder(op, policy)
    for provider, named in order:
        impl = op.impls[provider]
        verdict = _judge(op, impl, named, policy, invariant, target, args, evidence, [] if decided else reads)
        chosen = bool(verdict) and not decided
        decided = decided or chosen
        candidates.append(Candidate(provider, impl.distribution, impl.version, verdict, named, chosen))
        if decided and not full:
            break
    if full:
        candidates += _left_out(op, policy, invariant, {name for name, _ in order})
    selection = Selection(op.name, target, invariant, policy, tuple(candidates), tuple(dict.fromkeys(reads)))
    if policy.strict and args is not None:
        _check_strict(selection)
    return selection


def _judge(
    op: IrOp,
    impl: IrOpImpl,
    named: bool,
    policy: Policy,
    invariant: bool,
    target: Target,
    args: Sequence[Any] | None,
    evidence: EvidenceFor,
    reads: list[Read],
) -> Verdict:
    """One implementation against the requirement; the cheap questions first, code of a pack last."""
    if impl.provider in policy.for_op(op.name).deny and not policy.disabled:
        return Rejected("denied by the policy")
    if invariant:
        verdict = _judge_invariance(op, impl, named, policy, target, evidence)
        if not verdict:
            return verdict
    if not impl._flag:
        return Rejected("registered as not supported on this machine (supported=False)")
    if impl.requires is not None and not (verdict := impl.requires.check(target)):
        return verdict
    try:
        refusal = None if args is None else impl.refusal(args, reads)
        impl.load()
    except PredicateError as error:
        return Rejected(f"its predicate is broken: {error.what}")
    except PackError as error:
        return Rejected(f"cannot be loaded: {error.what}")
    return Accepted() if refusal is None else Rejected(refusal)


def _judge_invariance(
    op: IrOp, impl: IrOpImpl, named: bool, policy: Policy, target: Target, evidence: EvidenceFor
) -> Verdict:
    if not impl.batch_invariant:
        return Rejected("not declared batch-invariant")
    found = evidence(impl, target)
    if found is not None and found.verdict == "refuted":
        return Rejected(f"refuted on this device: {found.detail}")
    if found is not None and found.verdict == "certified":
        return Accepted()
    if policy.strict:
        return Rejected("declared batch-invariant, not certified on this device (strict)")
    if impl.provider == NATIVE and op.has_reduction:
        if named or {op.name, "*"} & policy.vouched:
            return Accepted()
        return Rejected(
            "a reduction of torch is invariant under conditions only: nobody named native, vouched for it "
            "or certified it on this device"
        )
    if impl.provider not in (NATIVE, PORTABLE) and not target.batch_invariant:
        return Rejected(target.batch_invariant_reason or f"{target.label} does not support batch invariance")
    return Accepted()


def _left_out(op: IrOp, policy: Policy, invariant: bool, tried: set[str]) -> list[Candidate]:
    """The implementations that the ladder does not name, with the reason."""
    own = policy.for_op(op.name)
    rest: list[Candidate] = []
    for provider, impl in op.impls.items():
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
        else:
            names = ", ".join(own.prefer or policy.prefer) or "none is set"
            reason = f"not in the priority list ({names})"
        rest.append(Candidate(provider, impl.distribution, impl.version, Rejected(reason)))
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
