# SPDX-License-Identifier: Apache-2.0
"""Capabilities and targets as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir_core.errors import IrError, TargetError
from ir_core.target import KINDS, Accepted, Capability, Rejected, Target

CAPABILITIES = st.builds(Capability, st.integers(1, 49), st.integers(0, 9))
A100 = {
    "device": "cuda:0",
    "kind": "cuda",
    "vendor": "nvidia",
    "name": "NVIDIA A100",
    "capability": "8.0",
    "arch": "Ampere",
    "features": ["bf16"],
    "properties": {"multiprocessors": 108},
    "batch_invariant": False,
    "batch_invariant_reason": "SM 8.0 is below 9.0",
    "override": None,
    "source": "ir-platform 0.1.0",
    "uuid": "GPU-1",
    "notes": ["driver 580"],
}


@pytest.mark.parametrize(
    "value",
    [
        "9.0",
        " 9.0 ",
        "sm90",
        "SM90",
        "sm_90",
        "sm90a",
        "sm_90a",
        "compute_90",
        "90",
        90,
        (9, 0),
        Capability(9, 0),
    ],
)
def test_parse(value: Any) -> None:
    assert Capability.parse(value) == Capability(9, 0)


@pytest.mark.parametrize(
    ("value", "text"), [("sm120", "12.0"), (103, "10.3"), ("sm_100f", "10.0"), ("7.5", "7.5")]
)
def test_the_last_digit_is_the_minor_version(value: Any, text: str) -> None:
    assert str(Capability.parse(value)) == text


@pytest.mark.parametrize(
    "value",
    ["", "9", 9, "hopper", "9.0.0", "9.10", "sm", "sm9", "sm90b", "-9.0", "90.0", "0.5", 9.0, None, True,
     (9,), (9, -1), (9, 10), (True, 0), ("9", "0"), [9, 0]],
)  # fmt: skip
def test_parse_refuses(value: Any) -> None:
    with pytest.raises(TargetError, match="is not an SM capability") as caught:
        Capability.parse(value)
    assert isinstance(caught.value, IrError)
    assert isinstance(caught.value, ValueError)
    assert "'9.0'" in str(caught.value)


@given(CAPABILITIES)
def test_every_spelling_reads_back(capability: Capability) -> None:
    assert Capability.parse(str(capability)) == capability
    assert Capability.parse(capability.sm) == capability
    assert Capability.parse(int(capability.sm[2:])) == capability


@given(CAPABILITIES, CAPABILITIES)
def test_order_is_by_number_not_by_text(one: Capability, other: Capability) -> None:
    assert (one < other) == ((one.major, one.minor) < (other.major, other.minor))
    assert (hash(one) == hash(other)) or one != other


def test_ten_is_more_than_nine() -> None:
    assert Capability.parse("10.0") > Capability.parse("9.0")


def test_verdicts_are_conditions() -> None:
    assert Accepted()
    assert not Rejected("no")
    assert Accepted() == Accepted()
    assert str(Rejected("no")) == "no"


def test_a_target_reads_back_through_json() -> None:
    target = Target.from_mapping(A100)
    assert target.to_dict() == A100
    assert Target.from_mapping(json.loads(json.dumps(target.to_dict()))) == target


def test_device_and_kind_are_enough() -> None:
    target = Target.from_mapping({"device": "cpu", "kind": "cpu"})
    assert target == Target("cpu", "cpu")
    assert (target.capability, target.features, target.properties) == (None, frozenset(), ())
    assert not target.batch_invariant


def test_equal_cards_are_equal_whatever_their_uuid() -> None:
    one, other = Target.from_mapping(A100), Target.from_mapping(A100 | {"uuid": "GPU-2", "notes": []})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Target.from_mapping(A100 | {"capability": "9.0"})
    assert one != Target.from_mapping(A100 | {"override": "IR_TARGET=sm80"})


def test_the_order_of_features_and_properties_does_not_matter() -> None:
    one = Target.from_mapping(A100 | {"features": ["a", "b"], "properties": {"x": 1, "y": 2}})
    other = Target.from_mapping(A100 | {"features": ("b", "a"), "properties": {"y": 2, "x": 1}})
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "cuda:0 (NVIDIA A100), SM 8.0"),
        ({"name": ""}, "cuda:0, SM 8.0"),
        ({"override": "IR_TARGET=sm80"}, "cuda:0 (NVIDIA A100), SM 8.0 [IR_TARGET=sm80]"),
        ({"capability": None, "arch": None}, "cuda:0 (NVIDIA A100), cuda"),
        ({"kind": "rocm", "name": "", "capability": None, "arch": "gfx942"}, "cuda:0, gfx942"),
        ({"device": "cpu", "kind": "cpu", "name": "", "capability": None, "arch": None}, "cpu"),
    ],
)
def test_describe(change: dict[str, Any], text: str) -> None:
    target = Target.from_mapping(A100 | change)
    assert target.describe() == str(target) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": ""}, "'' is not a device"),
        ({"kind": "tpu"}, f"unknown kind 'tpu'.*{', '.join(KINDS)}"),
        ({"kind": "rocm"}, r"of kind rocm and cannot have SM 8\.0"),
        ({"capability": "eight"}, "'eight' is not an SM capability"),
        ({"capabilty": "8.0"}, "unknown keys.*capabilty"),
        ({"name": None}, "name = None.*must be text"),
        ({"uuid": 1}, "uuid = 1.*must be text or None"),
        ({"batch_invariant": "yes"}, "batch_invariant = 'yes'.*True or False"),
        ({"features": "tma"}, "features = 'tma'.*list of strings"),
        ({"features": [1]}, "features = .*list of strings"),
        ({"notes": 3}, "notes = 3.*list of strings"),
        ({"properties": ["a"]}, "properties = .*mapping"),
        ({"properties": {"a": 1.5}}, "properties = .*mapping"),
        ({"properties": {"a": True}}, "properties = .*mapping"),
    ],
)
def test_a_malformed_description_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=f"(?s){message}"):
        Target.from_mapping(A100 | change)


@pytest.mark.parametrize("key", ["device", "kind"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(TargetError, match=f"has no {key}"):
        Target.from_mapping({name: value for name, value in A100.items() if name != key})


def test_a_list_of_two_is_a_capability() -> None:
    assert Target.from_mapping(A100 | {"capability": [8, 0]}).capability == Capability(8, 0)
