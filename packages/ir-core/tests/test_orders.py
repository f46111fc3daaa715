# SPDX-License-Identifier: Apache-2.0
"""Orders: fixed before the implementation, and never by rows; within one, rows may decide where equality is proven."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import catalog, lock_file, platforms, resolve, selection
from ir_core.errors import EnvError, LockError, PolicyError, SchemaError, StrictError
from ir_core.policy import OpPolicy, Policy
from ir_core.resolve import select
from ir_core.selection import Evidence
from ir_core.target import Target

pytestmark = pytest.mark.usefixtures("alone")

CPU = Target(device="cpu", kind="cpu", batch_invariant=True)
SM80, SM90 = (
    Target(device="cuda:0", kind="cuda", capability=ir_core.Capability(major, 0), batch_invariant=True)
    for major in (8, 9)
)
HALF, SINGLE = torch.zeros(2, 8, dtype=torch.float16), torch.zeros(2, 8)
ORDERS = (
    ir_core.Order("chain16", "sixteen at a time", "portable", "sm>=9.0 | cpu", (torch.float16,)),
    ir_core.Order("chain8", "eight at a time", "other_reference", "sm>=8.0,sm<9.0", (torch.float16,)),
    ir_core.Order("single", "one at a time", "portable", None, (torch.float32,)),
)


def body(x: Tensor) -> Tensor:
    return x.clone()


@pytest.fixture
def op() -> ir_core.IrOp:
    """A reduction with three orders, by dtype and by generation of the device."""
    op = ir_core.register_op(body, name="ordered", has_reduction=True, orders=ORDERS)
    op._register_builtin("portable", batch_invariant=True)(body)
    op.register_impl("other_reference", batch_invariant=True)(body)
    op.register_impl("new_kernel", order="chain16")(body)
    op.register_impl("old_kernel", order="chain8")(body)
    op.register_impl("single_kernel", order="single")(body)
    op.register_impl("own_bits", batch_invariant=True)(body)
    op.register_impl("variant")(body)
    return op


INVARIANT = Policy(batch_invariant=True)


@pytest.mark.parametrize(
    ("target", "x", "order", "provider"),
    [
        (SM90, HALF, "chain16", "new_kernel"),
        (CPU, HALF, "chain16", "new_kernel"),
        (SM80, HALF, "chain8", "old_kernel"),
        (SM90, SINGLE, "single", "single_kernel"),
        (SM80, SINGLE, "single", "single_kernel"),
        (SM90, SINGLE.double(), None, "own_bits"),
    ],
)
def test_the_order_is_that_of_the_dtype_and_the_device(op, target, x: Tensor, order, provider: str):
    found = select(op, INVARIANT, target, (x,))
    assert (found.order, found.provider) == (order, provider)
    if order is not None:
        assert found.chosen is not None
        assert found.chosen.reason == f"selected, in the order {order}"
        assert found.to_dict()["order"] == order
        assert f"-> {provider}" in found.explain() and order in found.explain()
        assert ("x", "dtype", x.dtype) in found.reads  # so that the fast path asks for it


def test_implementations_of_another_order_never_run(op):
    reasons = {c.provider: c.reason for c in select(op, INVARIANT, SM90, (HALF,)).candidates}
    assert reasons["old_kernel"] == "computes in the order chain8, the order here is chain16"
    assert reasons["single_kernel"].endswith("the order here is chain16")
    op.unregister_impl("new_kernel")
    assert select(op, INVARIANT, SM90, (HALF,)).provider == "own_bits"  # a claim of its own, in no order
    op.unregister_impl("own_bits")
    assert select(op, INVARIANT, SM90, (HALF,)).provider == "portable"


def test_a_policy_asks_for_an_order_by_name(op):
    asked = Policy(ops={"ordered": OpPolicy(order="chain8")})
    found = select(op, asked, CPU, (HALF,))  # what an older card computed, checked on a CPU
    assert (found.order, found.provider) == ("chain8", "old_kernel")
    assert found.requirement == "order chain8"
    op.unregister_impl("old_kernel")
    assert select(op, asked, CPU, (HALF,)).provider == "other_reference"
    op.unregister_impl("other_reference")
    refused = select(op, asked, CPU, (HALF,))
    assert refused.chosen is None
    assert "native: computes in no order that it declares, the order here is chain8" in refused.explain()
    with pytest.raises(PolicyError, match="no order 'tree'") as caught:
        select(op, Policy(ops={"ordered": OpPolicy(order="tree")}), CPU, (HALF,))
    assert "chain16, chain8, single" in str(caught.value)


def test_the_environment_asks_for_an_order(op, environment):
    environment(IR_PRIORITY="ordered=order:chain8;rms_norm=portable")
    assert op.dispatch(HALF).provider == "old_kernel"
    assert op.get_priority() == ["old_kernel"]
    assert ir_core.current().to_dict()["ops"]["ordered"]["order"] == "chain8"
    for wrong in ("ordered=order:chain8,chain16", "order:chain8", "ordered=order:"):
        with pytest.raises(EnvError):
            environment(IR_PRIORITY=wrong)


def test_an_order_is_a_claim_of_invariance(op):
    assert op.impls["new_kernel"].batch_invariant
    assert not op.impls["variant"].batch_invariant
    with pytest.raises(SchemaError, match="the order 'tree', which the op does not know"):
        op.register_impl("wrong", order="tree")(body)


def test_the_same_call_without_the_mode_has_no_order(op):
    found = select(op, Policy(), SM90, (HALF,))
    assert (found.order, found.provider) == (None, "native")


# -- rows, within an order


def few_rows(x: Tensor) -> bool:
    return x.shape[0] <= 2


def certified(*providers: str, order: str | None = "chain16"):
    return lambda impl, target: Evidence("certified", order=order) if impl.provider in providers else None


MANY = torch.zeros(5, 8, dtype=torch.float16)


@pytest.fixture
def small(op):
    """An implementation of chain16 for few rows, behind the one for all."""
    op.register_impl("small_kernel", order="chain16", prefers_args=few_rows)(body)
    return op


def provider_of(op, x: Tensor, evidence, policy: Policy = INVARIANT, **kwargs) -> str:
    return select(op, policy, SM90, (x,), evidence=evidence, **kwargs).provider


@pytest.mark.parametrize("full", [True, False])
def test_rows_decide_where_both_are_certified_for_the_order(small, full: bool):
    both = certified("new_kernel", "small_kernel")
    assert provider_of(small, HALF, both, full=full) == "small_kernel"
    assert provider_of(small, MANY, both, full=full) == "new_kernel"


@pytest.mark.parametrize(
    "evidence",
    [
        certified(),
        certified("new_kernel"),
        certified("small_kernel", order="chain8"),
        certified("new_kernel", "small_kernel", order=None),
        lambda impl, target: Evidence("inconclusive", order="chain16"),
    ],
)
def test_rows_decide_nothing_without_evidence_of_the_order(small, evidence):
    assert provider_of(small, HALF, evidence) == provider_of(small, MANY, evidence)


def test_rows_never_lead_to_another_order(op):
    op.register_impl("tempting", order="chain8", prefers_args=few_rows)(body)
    everything = lambda impl, target: Evidence("certified", order=impl.order)  # noqa: E731
    assert provider_of(op, HALF, everything) == "new_kernel"
    op.register_impl("own_small", batch_invariant=True, prefers_args=few_rows)(body)
    assert provider_of(op, HALF, everything) == "new_kernel"


def test_a_preference_that_fails_or_cannot_know_the_rows_decides_nothing(small):
    both = certified("new_kernel", "small_kernel", "broken")
    small.register_impl("broken", order="chain16", prefers_args=lambda x: x.nonsense)(body)
    assert provider_of(small, HALF, both) == "small_kernel"
    assert provider_of(small, MANY, both) == "new_kernel"  # the broken one was asked, behind the small one
    assert provider_of(small, HALF.to("meta"), both) == "new_kernel"


def test_one_that_is_preferred_is_judged_like_any_other(small):
    """It was certified and it prefers these rows, and its predicate still decides."""
    small.unregister_impl("small_kernel")
    refuses = lambda x: "takes nothing" if x.dtype is torch.float16 else True  # noqa: E731
    small.register_impl("small_kernel", order="chain16", supports_args=refuses, prefers_args=few_rows)(body)
    both = certified("new_kernel", "small_kernel")
    found = select(small, INVARIANT, SM90, (HALF,), evidence=both)
    assert found.provider == "new_kernel"
    (refused,) = [c for c in found.candidates if c.provider == "small_kernel"]
    assert refused.reason == "takes nothing"


def test_an_order_outside_of_the_mode_is_asked_of_all_and_only_of_those_that_compute_it(op):
    policy = Policy(ops={"ordered": OpPolicy(order="chain8")})
    order = op.orders["chain8"]
    named = [(name, False) for name in ("old_kernel", "other_reference", "native")]
    assert selection.ladder(op, op.impls, policy, order) == named
    own = Policy(ops={"ordered": OpPolicy(order="chain8", prefer=("variant",))})
    assert selection.ladder(op, op.impls, own, order) == [("variant", True), *named]
    reasons = {c.provider: c.reason for c in select(op, policy, CPU, (HALF,)).candidates}
    assert reasons["new_kernel"] == "computes in the order chain16, the order here is chain8"
    assert reasons["own_bits"] == "computes in no order that it declares, the order here is chain8"


# -- what a selection says


def test_a_selection_as_plain_data(op):
    policy = Policy(batch_invariant=True, ops={"ordered": OpPolicy(prefer=("variant",))})
    found = select(op, policy, SM90, (HALF,))
    data = found.to_dict()
    candidates = data.pop("candidates")
    assert data == {
        "op": "ordered",
        "target": SM90.to_dict(),
        "batch_invariant": True,
        "unmet": "",
        "policy": policy.to_dict(),
        "order": "chain16",
        "provider": "new_kernel",
    }
    assert candidates[:2] == [
        {
            "provider": "variant",
            "distribution": op.impls["variant"].distribution,
            "version": op.impls["variant"].version,
            "accepted": False,
            "chosen": False,
            "named": True,
            "order": None,
            "reason": "not declared batch-invariant",
        },
        {
            "provider": "new_kernel",
            "distribution": op.impls["new_kernel"].distribution,
            "version": op.impls["new_kernel"].version,
            "accepted": True,
            "chosen": True,
            "named": False,
            "order": "chain16",
            "reason": "selected, in the order chain16",
        },
    ]
    nothing = select(op, Policy(ops={"ordered": OpPolicy(only=("own_bits",), order="chain16")}), CPU, (HALF,))
    assert nothing.to_dict()["provider"] is None and nothing.to_dict()["order"] is None
    json.dumps(data)


def test_what_disabling_leaves(op):
    found = select(op, Policy(disabled=True, batch_invariant=True), SM90, (HALF,))
    assert found.chosen is not None and not found.chosen.named and found.provider == "native"
    assert {c.reason for c in found.candidates if not c.chosen} == {"IR_DISABLE is set: native everywhere"}
    assert selection.ladder(op, op.impls, Policy(disabled=True)) == [("native", False)]
    assert "NOT MET" in found.requirement and found.to_dict()["unmet"] == found.unmet


def test_errors_of_a_strict_policy(op):
    strict = Policy(strict=True, disabled=True, batch_invariant=True)
    with pytest.raises(StrictError, match="is disabled, and IR_STRICT is set") as caught:
        select(op, strict, SM90, (HALF,))
    assert caught.value.selection is not None and caught.value.selection.provider == "native"
    with pytest.raises(StrictError, match="No implementation of 'ordered' qualifies") as caught:
        select(op, Policy(strict=True, batch_invariant=True), SM90, (HALF,))
    assert "ir-core verify ordered" in str(caught.value.fix)
    refuses = op.register_impl("refuses", supports_args=lambda x: "never")(body)
    assert refuses is not None
    falls = Policy(strict=True, ops={"ordered": OpPolicy(prefer=("refuses",))})
    with pytest.raises(StrictError, match="would fall back from refuses to native") as caught:
        select(op, falls, SM90, (HALF,))
    assert "IR_PRIORITY='ordered=...'" in str(caught.value.fix)
    assert "refuses: never" in str(caught.value.why)


def test_the_fast_path_asks_the_preference_again(small, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        resolve.select,
        "__kwdefaults__",
        {
            **resolve.select.__kwdefaults__,
            "evidence": certified("new_kernel", "small_kernel"),
        },
    )
    ran: list[str] = []
    for name in ("new_kernel", "small_kernel"):
        original = small.impls[name].impl_fn
        small.impls[name]._code["impl"] = lambda x, name=name, run=original: ran.append(name) or run(x)
    made = []
    inner = selection.select
    monkeypatch.setattr(selection, "select", lambda *a, **k: made.append(1) or inner(*a, **k))
    for wrap in (True, False):
        ran.clear(), made.clear()
        with ir_core.scope(batch_invariant=True), ir_core.enable_torch_wrap(wrap):
            for rows in (1, 2, 3, 300, 1, 300):
                small(torch.zeros(rows, 8, dtype=torch.float16))
        assert ran == [
            "small_kernel",
            "small_kernel",
            "new_kernel",
            "new_kernel",
            "small_kernel",
            "new_kernel",
        ]
        assert len(made) == 2  # one for each answer, not for each number of rows


# -- lock files


def test_a_lock_names_the_order_and_holds_for_every_kernel_of_it(
    op, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "ir.lock"

    def lock(entry: dict[str, str]) -> None:
        file.write_text(json.dumps({"format": 1, "ops": {"ordered": entry}}))
        monkeypatch.setenv("IR_LOCK", str(file))
        ir_core.refresh()

    try:
        lock(lock_file.describe(op.impls["portable"]) | {"order": "chain16"})
        with ir_core.scope(batch_invariant=True):
            op(HALF)  # another kernel, the same bits
        with pytest.raises(LockError, match="order: locked 'chain16', here None"):
            op(HALF)
        lock(lock_file.describe(op.impls["new_kernel"], provider=True) | {"provider": "another"})
        with ir_core.scope(batch_invariant=True), pytest.raises(LockError, match="locked 'another'"):
            op(HALF)
    finally:
        monkeypatch.undo()
        ir_core.refresh()


def test_the_cores_own_ops_have_the_order_tree():
    for name in ("rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse"):
        op = ir_core.get_op(name)
        assert list(op.orders) == ["tree"]
        assert len(op.orders["tree"].arithmetic) > 200
        assert op.impls["portable"].order == "tree"
        found = resolve.select(op, INVARIANT, platforms.targets()[0], None)
        assert (found.order, found.provider) == ("tree", "portable")
    assert catalog.known(op) is op.impls


def test_freeze_writes_orders_and_locks_providers_on_demand():
    from ir_core.cli import freeze_cmd

    entry = freeze_cmd.selected("4x64", "float32", "cpu", True)["ops"]["rms_norm"]
    assert (entry["order"], entry["provider"]) == ("tree", "portable") and "locked" not in entry
    locked = freeze_cmd.selected("4x64", "float32", "cpu", True, providers=True)["ops"]["rms_norm"]
    assert locked == {**entry, "locked": "provider"}
    other = {"rms_norm": {**entry, "provider": "triton_batch_invariant", "digest": "another"}}
    assert freeze_cmd.compare(other, {"rms_norm": entry}) == []
    strict = {"rms_norm": {**other["rms_norm"], "locked": "provider"}}
    assert len(freeze_cmd.compare(strict, {"rms_norm": entry})) == 2


def test_a_property_is_declared_in_one_place():
    """The decorator, pack data and the digest follow the fields of ``ImplSpec``."""
    import dataclasses
    import inspect

    from ir_core.pack import KernelPack

    names = [f.name for f in dataclasses.fields(ir_core.ImplSpec)]
    taken = list(inspect.signature(ir_core.IrOp.register_impl).parameters)
    assert ["op", "provider", "impl", *taken[2:]] == names
    functions = {"supports_args", "prefers_args", "functional", "pair"}
    data = dict.fromkeys(("impl", *functions), "a_pack:f") | {"op": "o", "provider": "p", "inplace": True}
    parsed = KernelPack.parse({"api": 1, "name": "x", "implementations": [data | {"order": "tree"}]})
    assert {getattr(parsed.implementations[0], name) for name in functions} == {"a_pack:f"}
    assert parsed.implementations[0].order == "tree"
