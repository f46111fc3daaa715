# SPDX-License-Identifier: Apache-2.0
"""The grammar of IR_PRIORITY, and the strict switches beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ir_core
from ir_core import env, policy
from ir_core.errors import EnvError, UnknownOpError, UnknownProviderError
from ir_core.policy import OpPolicy, Policy, parse_priority

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize(
    ("text", "everywhere", "ops"),
    [
        ("", (), {}),
        (" ; ;", (), {}),
        ("a", ("a",), {}),
        ("a,b", ("a", "b"), {}),
        (" a , b ,", ("a", "b"), {}),
        ("prefer:a,b", ("a", "b"), {}),
        ("op=a,b", (), {"op": OpPolicy(prefer=("a", "b"))}),
        ("op=prefer:a", (), {"op": OpPolicy(prefer=("a",))}),
        ("op = only : a , b", (), {"op": OpPolicy(only=("a", "b"))}),
        ("op=deny:a", (), {"op": OpPolicy(deny=frozenset("a"))}),
        ("op=a;op=deny:b", (), {"op": OpPolicy(prefer=("a",), deny=frozenset("b"))}),
        ("op=only:a;op=deny:b", (), {"op": OpPolicy(only=("a",), deny=frozenset("b"))}),
        ("x;op=a;other=b", ("x",), {"op": OpPolicy(prefer=("a",)), "other": OpPolicy(prefer=("b",))}),
    ],
)
def test_what_can_be_written(text, everywhere, ops):
    assert parse_priority(text) == (everywhere, ops)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("op=", "names no provider"),
        ("op=only:", "names no provider"),
        ("=a", "cannot be read"),
        ("op=maybe:a", "cannot be read"),
        ("op=a:b:c", "cannot be read"),
        ("only:a", "may only prefer"),
        ("deny:a", "may only prefer"),
        ("a;b", "one list"),
        ("op=a;op=b", "two 'prefer' rules for op"),
        ("op=a,a", "twice"),
        ("op=only:a;op=b", "both"),
        ("op=a;op=deny:a", "names and denies"),
    ],
)
def test_what_cannot(text: str, message: str):
    with pytest.raises(EnvError, match=message) as caught:
        parse_priority(text)
    assert env.IR_PRIORITY in str(caught.value)
    assert isinstance(caught.value, ValueError)


names = st.from_regex(r"[a-z_][a-z_0-9]{0,5}", fullmatch=True)


@given(
    st.dictionaries(names, st.lists(names, min_size=1, unique=True), max_size=4), st.lists(names, unique=True)
)
def test_a_list_written_out_is_read_back(ops, everywhere):
    rules = [",".join(everywhere)] if everywhere else []
    rules += [f"{op}={','.join(providers)}" for op, providers in ops.items()]
    assert parse_priority(" ; ".join(rules)) == (
        tuple(everywhere),
        {op: OpPolicy(prefer=tuple(providers)) for op, providers in ops.items()},
    )


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab=:;, onlydeny", max_size=20))
def test_any_text_is_read_or_refused_with_an_explanation(text: str):
    try:
        parse_priority(text)
    except EnvError as error:
        assert env.IR_PRIORITY in error.what  # noqa: PT017


def test_a_wrong_op_is_an_error_that_names_those_there_are(environment):
    environment(IR_PRIORITY="rms_nrom=native")
    with pytest.raises(UnknownOpError, match=r"no op 'rms_nrom'") as caught:
        ir_core.ops.rms_norm(torch.zeros(1, 4), None, 1e-6)
    assert "fused_add_rms_norm, " in str(caught.value)
    assert "rms_norm" in str(caught.value)


def test_a_wrong_provider_is_an_error_that_names_those_there_are(environment):
    environment(IR_PRIORITY="rms_norm=trition")
    with pytest.raises(UnknownProviderError, match=r"no provider 'trition'") as caught:
        ir_core.ops.rms_norm(torch.zeros(1, 4), None, 1e-6)
    assert "native (ir-core" in str(caught.value)
    environment(IR_PRIORITY="trition")
    with pytest.raises(UnknownProviderError, match=r"native, portable"):
        ir_core.ops.rms_norm(torch.zeros(1, 4), None, 1e-6)


@pytest.mark.parametrize("text", ["triton", "rms_norm=triton"])
def test_a_provider_of_a_known_distribution_says_what_to_install(environment, text: str):
    environment(IR_PRIORITY=text)
    with pytest.raises(UnknownProviderError, match=r"ir-kernels-triton"):
        ir_core.ops.rms_norm(torch.zeros(1, 4), None, 1e-6)


def test_switched_off_nothing_in_the_list_matters(environment):
    environment(IR_PRIORITY="nobody=nothing", IR_DISABLE="1")
    ir_core.ops.rms_norm(torch.zeros(1, 4), None, 1e-6)


@pytest.mark.parametrize("name", [env.VLLM_BATCH_INVARIANT, env.IR_STRICT, env.IR_DISABLE])
@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("Yes", True), (" on ", True), ("0", False), ("", False)]
)
def test_switches(environment, name: str, text: str, value: bool):
    environment(**{name: text})
    field = {
        env.VLLM_BATCH_INVARIANT: "batch_invariant",
        env.IR_STRICT: "strict",
        env.IR_DISABLE: "disabled",
    }[name]
    assert getattr(policy.current(), field) is value


@pytest.mark.parametrize("name", [env.VLLM_BATCH_INVARIANT, env.IR_STRICT, env.IR_DISABLE])
def test_switches_are_strict(environment, name: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EnvError, match=rf"{name}='2' is not a switch"):
        environment(**{name: "2"})
    monkeypatch.delenv(name)


def test_every_variable_is_known_once():
    assert len(set(env.ALL)) == len(env.ALL)
    constants = {value for key, value in vars(env).items() if key.isupper() and isinstance(value, str)}
    assert constants == set(env.ALL)


def test_the_snapshot_has_what_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IR_STRICT", "0")
    assert env.snapshot()["IR_STRICT"] == "0"
    assert set(env.snapshot()) <= set(env.ALL)


def test_a_policy_as_plain_data():
    own = OpPolicy(prefer=("a", "b"), deny=frozenset({"d", "c"}), batch_invariant=False, order="tree")
    policy = Policy(
        batch_invariant=True,
        strict=True,
        prefer=("p",),
        ops={"one": own, "another": OpPolicy(only=("x",))},
        vouched=frozenset({"v", "u"}),
    )
    assert policy.to_dict() == {
        "batch_invariant": True,
        "strict": True,
        "disabled": False,
        "prefer": ["p"],
        "vouched": ["u", "v"],
        "covers_torch": False,
        "ops": {
            "another": {"prefer": [], "only": ["x"], "deny": [], "batch_invariant": None, "order": None},
            "one": {
                "prefer": ["a", "b"],
                "only": None,
                "deny": ["c", "d"],
                "batch_invariant": False,
                "order": "tree",
            },
        },
    }
