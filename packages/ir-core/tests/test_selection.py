# SPDX-License-Identifier: Apache-2.0
"""Select: every row of the ladder, every reason, and the requirement that holds without a priority."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import resolve
from ir_core.errors import (
    PolicyError,
    SelectionError,
    StrictError,
    UnknownOpError,
    UnknownProviderError,
)
from ir_core.policy import OpPolicy, Policy
from ir_core.resolve import select
from ir_core.selection import Evidence
from ir_core.target import Target

pytestmark = pytest.mark.usefixtures("alone")

CPU = Target(device="cpu", kind="cpu", batch_invariant=True)
SM75 = Target(
    device="cuda:0",
    kind="cuda",
    name="NVIDIA T4",
    capability=ir_core.Capability(7, 5),
    batch_invariant=False,
    batch_invariant_reason="batch invariance needs SM >= 9.0, cuda:0 (NVIDIA T4) is SM 7.5",
)
SM90 = Target(
    device="cuda:0", kind="cuda", name="H", capability=ir_core.Capability(9, 0), batch_invariant=True
)
ARGS = (torch.zeros(2, 8), 1e-6)


def body(x: Tensor, epsilon: float) -> Tensor:
    return x.clone()


@pytest.fixture
def op():
    """A reduction with four implementations: fast and invariant ones, of two distributions."""
    op = ir_core.register_op(body, name="probe", has_reduction=True)
    op._register_builtin("portable", batch_invariant=True)(body)
    op.register_impl("fast")(body)
    for provider, distribution in (("zeta", "z-dist"), ("alpha", "b-dist"), ("beta", "a-dist")):
        op.register_impl(provider, batch_invariant=True)(body).distribution = distribution
    return op


def ladder(op, policy):
    return [(impl.provider, named) for impl, named in resolve.ladder(op, policy)]


def policy_of(*, batch_invariant=False, strict=False, disabled=False, prefer=(), vouched=(), **own):
    return Policy(
        batch_invariant=batch_invariant,
        strict=strict,
        disabled=disabled,
        prefer=prefer,
        vouched=frozenset(vouched),
        ops={"probe": OpPolicy(**own)} if own else (),
    )


INVARIANT_REST = ["beta", "alpha", "zeta", "portable", "native"]  # by distribution, then the project's own


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (policy_of(), ["native"]),
        (policy_of(prefer=("fast",)), ["fast", "native"]),
        (policy_of(prefer=("fast", "native", "zeta")), ["fast", "native", "zeta"]),
        (policy_of(prefer=("elsewhere", "zeta")), ["zeta", "native"]),
        (policy_of(only=("fast", "zeta")), ["fast", "zeta"]),
        (policy_of(only=()), []),
        (policy_of(deny={"fast"}), ["native"]),
        (policy_of(disabled=True, batch_invariant=True, only=("fast",)), ["native"]),
        (policy_of(batch_invariant=True), INVARIANT_REST),
        (policy_of(batch_invariant=True, prefer=("zeta",)), ["zeta", "beta", "alpha", "portable", "native"]),
        (
            policy_of(batch_invariant=True, prefer=("native",)),
            ["native", "beta", "alpha", "zeta", "portable"],
        ),
        (policy_of(batch_invariant=True, prefer=("fast",)), ["fast", *INVARIANT_REST]),
        (policy_of(batch_invariant=True, only=("zeta",)), ["zeta"]),
    ],
)
def test_the_ladder(op, asked: Policy, expected: list[str]):
    assert [name for name, _ in ladder(op, asked)] == expected
    if asked.prefer:  # the same list for this op alone
        own = tuple(name for name in asked.prefer if name in op.impls)
        asked = Policy(batch_invariant=asked.batch_invariant, ops={"probe": OpPolicy(prefer=own)})
        assert [name for name, _ in ladder(op, asked)] == expected


def test_names_of_the_op_stand_before_those_for_every_op(op):
    both = Policy(prefer=("fast",), ops={"probe": OpPolicy(prefer=("zeta",))})
    assert ladder(op, both) == [("zeta", True), ("native", False)]


def test_the_chosen_and_every_reason(op):
    op.register_impl("picky", supports_args=lambda x, epsilon: "wants 7 columns")(body)
    op.register_impl("elsewhere", supported=False)(body)
    op.register_impl("newer", requires="sm>=9.0")(body)
    asked = policy_of(prefer=("picky", "elsewhere", "newer", "fast", "zeta"), deny={"beta"})
    outcome = select(op, asked, SM75, ARGS)
    reasons = {c.provider: c.reason for c in outcome.candidates}
    assert reasons == {
        "picky": "wants 7 columns",
        "elsewhere": "registered as not supported on this machine (supported=False)",
        "newer": "needs SM >= 9.0, cuda:0 (NVIDIA T4) is SM 7.5",
        "fast": "selected",
        "zeta": "accepted, stands behind the selected one",
        "native": "accepted, stands behind the selected one",
        "beta": "denied by the policy",
        "alpha": "not in the priority list (picky, elsewhere, newer, fast, zeta)",
        "portable": "not in the priority list (picky, elsewhere, newer, fast, zeta)",
    }
    assert outcome.provider == "fast"
    assert [c.provider for c in outcome.fallbacks] == ["picky", "elsewhere", "newer"]
    text = outcome.explain()
    assert "-> fast: selected" in text
    assert all(reason in text for reason in reasons.values())
    data = json.loads(json.dumps(outcome.to_dict()))
    assert data["provider"] == "fast"
    assert {c["provider"]: c["reason"] for c in data["candidates"]} == reasons


def test_reasons_of_those_left_out(op):
    def reason(asked, provider):
        return next(c.reason for c in select(op, asked, CPU, ARGS).candidates if c.provider == provider)

    assert reason(policy_of(disabled=True), "fast") == "IR_DISABLE is set: native everywhere"
    assert reason(policy_of(only=("zeta",)), "fast") == "the policy allows only zeta"
    assert reason(policy_of(batch_invariant=True), "fast") == "not declared batch-invariant"
    assert reason(policy_of(), "fast") == "not in the priority list (none is set)"


def test_without_a_full_account_the_search_stops_at_the_chosen(op):
    outcome = select(op, policy_of(prefer=("fast", "zeta")), CPU, ARGS, full=False)
    assert [c.provider for c in outcome.candidates] == ["fast"]


def test_the_reads_are_those_up_to_the_chosen(op):
    op.register_impl("picky", supports_args=lambda x, epsilon: x.dtype is torch.float16)(body)
    op.register_impl("later", supports_args=lambda x, epsilon: x.shape[-1] == 8)(body)
    reads = select(op, policy_of(prefer=("picky", "fast", "later")), CPU, ARGS).reads
    assert reads == (("x", "none", False), ("x", "dtype", torch.float32))


# -- batch-invariant mode


def invariant(**kwargs):
    return policy_of(batch_invariant=True, **kwargs)


def test_it_holds_with_no_priority_at_all(op):
    assert select(op, invariant(), CPU, ARGS).provider == "beta"


def test_it_holds_against_a_priority(op):
    outcome = select(op, invariant(prefer=("fast",)), CPU, ARGS)
    assert outcome.provider == "beta"
    assert outcome.fallbacks[0].reason == "not declared batch-invariant"
    assert outcome.requirement == "batch-invariant"


def test_portable_stands_before_an_unvouched_native(op):
    for provider in ("alpha", "beta", "zeta"):
        op.unregister_impl(provider)
    assert select(op, invariant(), CPU, ARGS).provider == "portable"
    native = next(c for c in select(op, invariant(), CPU, ARGS).candidates if c.provider == "native")
    assert "vouched" in native.reason


def test_a_device_without_batch_invariance_gets_portable_with_its_reason(op):
    outcome = select(op, invariant(), SM75, ARGS)
    assert outcome.provider == "portable"
    first = outcome.candidates[0]
    assert first.reason == (
        f"{SM75.batch_invariant_reason}; a certificate of this device lifts that: "
        f"ir-core verify {op.name}/{first.provider}"
    )


def test_no_reduction_no_conditions():
    op = ir_core.register_op(body, name="probe")
    op.register_impl("fast")(body)
    assert select(op, invariant(), CPU, ARGS).provider == "fast"  # inherits invariance from the op
    op.unregister_impl("fast")
    assert select(op, invariant(), CPU, ARGS).provider == "native"


@pytest.mark.parametrize("how", ["named", "vouched", "vouched for all", "certified"])
def test_native_is_taken_when_somebody_answers_for_it(op, how: str):
    for provider in ("alpha", "beta", "zeta", "portable"):
        op.unregister_impl(provider)
    with pytest.raises(SelectionError):
        _ = select(op, invariant(), CPU, ARGS).provider
    asked = {
        "named": invariant(prefer=("native",)),
        "vouched": invariant(vouched=("probe",)),
        "vouched for all": invariant(vouched=("*",)),
        "certified": invariant(),
    }[how]
    found = Evidence("certified", "by a test") if how == "certified" else None
    assert select(op, asked, CPU, ARGS, evidence=lambda impl, target: found).provider == "native"


def test_a_certificate_refutes_a_claim(op):
    def evidence(impl, target):
        assert target is CPU
        return Evidence("refuted", "row 3 differs") if impl.provider in ("beta", "native") else None

    outcome = select(op, invariant(prefer=("native",)), CPU, ARGS, evidence=evidence)
    assert outcome.provider == "alpha"
    reasons = {c.provider: c.reason for c in outcome.candidates}
    assert reasons["beta"] == reasons["native"] == "refuted on this device: row 3 differs"


def test_a_certificate_admits_a_device_that_is_below_the_bound(op):
    outcome = select(op, invariant(), SM75, ARGS, evidence=lambda i, t: Evidence("certified"))
    assert outcome.provider == "beta"


def test_an_inconclusive_certificate_changes_nothing(op):
    assert (
        select(op, invariant(), CPU, ARGS, evidence=lambda i, t: Evidence("inconclusive")).provider == "beta"
    )


def test_a_certificate_does_not_replace_the_declaration(op):
    outcome = select(op, invariant(only=("fast",)), CPU, ARGS, evidence=lambda i, t: Evidence("certified"))
    assert outcome.chosen is None


def test_evidence_is_not_asked_outside_the_mode(op):
    def never(impl, target):
        raise AssertionError

    assert select(op, policy_of(prefer=("zeta",)), CPU, ARGS, evidence=never).provider == "zeta"


def test_one_op_can_be_asked_alone(op):
    only_it = Policy(ops={"probe": OpPolicy(batch_invariant=True)})
    assert select(op, only_it, CPU, ARGS).provider == "beta"
    all_but_it = Policy(batch_invariant=True, ops={"probe": OpPolicy(batch_invariant=False)})
    assert select(op, all_but_it, CPU, ARGS).provider == "native"
    assert not select(op, all_but_it, CPU, ARGS).batch_invariant


# -- strict, disabled, nothing qualifies


def test_strict_refuses_any_fallback(op):
    op.register_impl("picky", supports_args=lambda x, epsilon: "no")(body)
    assert select(op, policy_of(prefer=("picky",)), CPU, ARGS).provider == "native"
    with pytest.raises(StrictError, match="would fall back from picky to native") as caught:
        select(op, policy_of(prefer=("picky",), strict=True), CPU, ARGS)
    assert "picky: no" in str(caught.value)
    assert caught.value.selection.provider == "native"
    assert select(op, policy_of(prefer=("fast",), strict=True), CPU, ARGS).provider == "fast"
    assert select(op, policy_of(strict=True), CPU, ARGS).provider == "native"  # nothing was asked for


def test_strict_and_batch_invariant_takes_certified_ones_only(op):
    with pytest.raises(StrictError, match="not certified on this device"):
        select(op, invariant(strict=True), CPU, ARGS)
    only_zeta = lambda i, t: Evidence("certified") if i.provider == "zeta" else None  # noqa: E731
    assert select(op, invariant(strict=True), CPU, ARGS, evidence=only_zeta).provider == "zeta"


def test_disabled_is_native_whatever_else_is_set(op):
    asked = policy_of(disabled=True, batch_invariant=True, only=("gone",))
    outcome = select(op, asked, SM75, ARGS)
    assert outcome.provider == "native"
    assert not outcome.batch_invariant and "IR_DISABLE" in outcome.unmet
    assert select(op, policy_of(disabled=True, strict=True, only=("gone",)), SM75, ARGS).provider == "native"
    assert select(op, policy_of(disabled=True, deny={"native"}), CPU, ARGS).provider == "native"


@pytest.mark.parametrize(
    "asked",
    [policy_of(only=()), policy_of(deny={"native"}), invariant(only=("fast",)), policy_of(only=("newer",))],
)
def test_when_none_qualifies_every_reason_is_given(op, asked: Policy):
    op.register_impl("newer", requires="sm>=9.0")(body)
    outcome = select(op, asked, CPU, ARGS)
    assert outcome.chosen is None
    assert outcome.fallbacks == ()
    with pytest.raises(SelectionError, match="No implementation of 'probe' qualifies") as caught:
        _ = outcome.provider
    assert isinstance(caught.value, RuntimeError)
    assert all(c.reason in str(caught.value) for c in outcome.candidates)
    assert {c.provider for c in outcome.candidates} == set(op.impls)
    with ir_core.scope(asked), pytest.raises(SelectionError) as caught:
        op(*ARGS)
    assert {c.provider for c in caught.value.selection.candidates} == set(op.impls)


def test_a_requirement_is_checked_against_the_device_of_the_call(op):
    op.register_impl("newer", requires="sm>=9.0")(body)
    assert select(op, policy_of(prefer=("newer",)), SM75, ARGS).provider == "native"
    assert select(op, policy_of(prefer=("newer",)), SM90, ARGS).provider == "newer"
    assert select(op, policy_of(prefer=("newer",)), CPU, ARGS).provider == "native"


# -- unknown names


def test_unknown_providers_name_what_exists(op):
    for own in ({"prefer": ("nope",)}, {"only": ("nope",)}, {"deny": {"nope"}}):
        with pytest.raises(UnknownProviderError, match="'probe' has no provider 'nope'") as caught:
            select(op, Policy(ops={"probe": OpPolicy(**own)}), CPU, ARGS)
        assert "It has native, portable, fast" in str(caught.value)
        for kind in (AssertionError, KeyError, ValueError):
            assert isinstance(caught.value, kind)
    with pytest.raises(UnknownProviderError), op.set_priority(["nope"]):
        pass
    with pytest.raises(UnknownProviderError):
        op.set_default(["native", "nope"])


def test_a_provider_of_another_op_is_named_as_such(op):
    with pytest.raises(UnknownProviderError, match="No op has a provider 'nope'"):
        select(op, policy_of(prefer=("nope",)), CPU, ARGS)
    select(ir_core.ops.rms_norm, Policy(prefer=("zeta",)), CPU, (torch.zeros(1, 4), None, 1e-6, None))


def test_unknown_ops_name_what_exists(op):
    with pytest.raises(UnknownOpError, match="no op 'nope'") as caught:
        select(op, Policy(ops={"nope": OpPolicy(prefer=("native",))}), CPU, ARGS)
    assert "rms_norm" in str(caught.value)
    with pytest.raises(UnknownOpError, match="The ops are"):
        ir_core.get_op("nope")
    with pytest.raises(AttributeError, match="no op 'nope'"):
        _ = ir_core.ops.nope


# -- policies are values


def test_contradictions_are_refused():
    for wrong in (
        lambda: OpPolicy(prefer=("a",), only=("b",)),
        lambda: OpPolicy(prefer=("a",), deny={"a"}),
        lambda: OpPolicy(only=("a",), deny={"a"}),
        lambda: OpPolicy(prefer=("a", "a")),
        lambda: OpPolicy(prefer="fast"),
        lambda: Policy(prefer="fast"),
        lambda: Policy(prefer=("a", "a")),
    ):
        with pytest.raises(PolicyError) as caught:
            wrong()
        assert isinstance(caught.value, ValueError)


def test_equal_policies_are_one_key():
    one = Policy(ops={"a": OpPolicy(prefer=["x"]), "b": OpPolicy(deny=["y"])}, vouched={"*"})
    other = Policy(ops=(("b", OpPolicy(deny=("y",))), ("a", OpPolicy(prefer=("x",)))), vouched=["*"])
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_dict() == other.to_dict()
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()
    assert one != one.with_op("a", None)
    assert one.with_op("a", None).for_op("a") == OpPolicy()
    assert one != Policy(ops=one.ops)


def test_selection_prints_the_same_everywhere(op):
    outcome = select(op, policy_of(prefer=("fast",)), SM90, ARGS)
    assert outcome.explain().startswith("probe on cuda:0 (H), SM 9.0, requirement: any")
    error = outcome.error(SelectionError, "What happened.")
    assert outcome.explain() in str(error)
    assert error.selection is outcome


def test_get_priority_says_what_a_call_would_try(op):
    assert op.get_priority() == []
    with op.set_priority(["fast", "zeta"]):
        assert op.get_priority() == ["fast"]  # it takes everything: nothing behind it is reached
    op.register_impl("picky", supports_args=lambda x, epsilon: False)(body)
    op.register_impl("gone", supported=False)(body)
    with op.set_priority(["gone", "picky", "zeta"]):
        assert op.get_priority() == ["picky", "zeta"]
    with op.set_priority(["picky"]):
        assert op.get_priority() == ["picky", "native"]
    with op.set_priority(["picky", "fast"], batch_invariant_only=True):
        assert op.get_priority() == ["beta"]
    assert op.get_priority() == []


def test_how_candidates_stand_before_any_call():
    """Without arguments predicates are not asked, and strictness has nothing to raise about."""
    from ir_core import ops

    op = ops.rms_norm
    op.register_impl("picky", supports_args=lambda x, weight, epsilon, variance_size=None: False)(
        op.impls["portable"].impl_fn
    )
    try:
        target = ir_core.Target(device="cpu", kind="cpu", batch_invariant=True)
        policy = ir_core.Policy(strict=True, prefer=("picky",))
        standing = ir_core.select(op, policy, target, None)
        assert [c.provider for c in standing.candidates if c.verdict][:2] == ["picky", "native"]
        assert standing.provider == "picky"
    finally:
        op.unregister_impl("picky")


def test_canonical_bits_stand_before_other_invariant_ones():
    """Installing another pack must not change what a model computes in batch-invariant mode."""
    from ir_core import ops

    op = ops.rms_norm
    portable = op.impls["portable"].impl_fn
    op.register_impl("aaa_other_bits", batch_invariant=True)(portable)
    op.register_impl("zzz_canonical", batch_invariant=True, order="tree")(portable)
    try:
        order = [provider for provider, _ in ladder(op, Policy(batch_invariant=True))]
        assert order.index("zzz_canonical") < order.index("aaa_other_bits") < order.index("portable")
    finally:
        op.unregister_impl("aaa_other_bits")
        op.unregister_impl("zzz_canonical")
