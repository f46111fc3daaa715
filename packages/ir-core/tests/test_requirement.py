# SPDX-License-Identifier: Apache-2.0
"""The requirement language: what is accepted, and the reasons of what is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_core.errors import TargetError
from ir_core.requirement import SM, AllOf, AnyOf, Feature, Kind, Requirement, parse_requirement
from ir_core.target import KINDS, Accepted, Capability, Rejected, Target


def cuda(sm: str | None, *features: str, name: str = "", override: str | None = None) -> Target:
    capability = None if sm is None else Capability.parse(sm)
    return Target(
        "cuda:0", "cuda", name=name, capability=capability, features=frozenset(features), override=override
    )


T4 = cuda("7.5", name="Tesla T4")
A100 = cuda("8.0", "bf16", name="NVIDIA A100")
H100 = cuda("9.0", "bf16", "fp8", "tma", name="NVIDIA H100")
B200 = cuda("10.0", "bf16", "fp8", "tma", name="NVIDIA B200")
CPU = Target("cpu", "cpu")
INTERPRETER = Target("cpu", "cpu", features=frozenset({"triton_interpreter"}))
MI300 = Target("cuda:0", "rocm", arch="gfx942", features=frozenset({"gfx942"}))
ALL = [T4, A100, H100, B200, CPU, INTERPRETER, MI300, cuda(None)]


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("sm>=8.0", [A100, H100, B200]),
        ("sm >= sm80", [A100, H100, B200]),
        ("SM>=8.0", [A100, H100, B200]),
        ("sm<9.0", [T4, A100]),
        ("sm<=9.0", [T4, A100, H100]),
        ("sm==9.0", [H100]),
        ("sm>=8.0,sm<10.0", [A100, H100]),
        ("cuda", [T4, A100, H100, B200, cuda(None)]),
        ("cpu", [CPU, INTERPRETER]),
        ("tma", [H100, B200]),
        ("sm<10.0,tma", [H100]),
        ("rocm,gfx942", [MI300]),
        ("sm>=8.0,sm<10.0,tma | cpu,triton_interpreter", [H100, INTERPRETER]),
        ("sm>=9.0 | cpu | rocm", [H100, B200, CPU, INTERPRETER, MI300]),
    ],
)
def test_text(text: str, accepted: list[Target]) -> None:
    requirement = parse_requirement(text)
    assert [target for target in ALL if requirement.check(target)] == [t for t in ALL if t in accepted]


@pytest.mark.parametrize(
    ("requirement", "target", "reason"),
    [
        ("sm>=9.0", A100, "needs SM >= 9.0, cuda:0 (NVIDIA A100) is SM 8.0"),
        ("sm>=9.0", cuda("8.0"), "needs SM >= 9.0, cuda:0 is SM 8.0"),
        ("sm>=9.0", CPU, "needs SM >= 9.0, cpu is a CPU"),
        ("sm>=9.0", MI300, "needs SM >= 9.0, cuda:0 is of kind rocm"),
        ("sm>=9.0", cuda(None), "needs SM >= 9.0, the SM of cuda:0 is unknown"),
        ("sm==9.0", B200, "needs SM == 9.0, cuda:0 (NVIDIA B200) is SM 10.0"),
        (SM(min="8.0", below="10.0"), B200, "needs SM >= 8.0 and < 10.0, cuda:0 (NVIDIA B200) is SM 10.0"),
        (SM(min="8.0", max="9.0"), T4, "needs SM >= 8.0 and <= 9.0, cuda:0 (Tesla T4) is SM 7.5"),
        ("sm>=8.0,tma", A100, "needs feature tma, cuda:0 (NVIDIA A100) has bf16"),
        ("sm>=9.0,tma", A100, "needs SM >= 9.0, cuda:0 (NVIDIA A100) is SM 8.0"),
        ("tma", T4, "needs feature tma, cuda:0 (Tesla T4) has none"),
        ("cuda", CPU, "needs kind cuda, cpu is a CPU"),
        ("cpu", T4, "needs kind cpu, cuda:0 (Tesla T4) is of kind cuda"),
        ("triton_interpreter", CPU, "needs feature triton_interpreter, cpu has none; set TRITON_INTERPRET=1"),
        (
            "sm>=8.0 | cpu,triton_interpreter",
            cuda("7.5"),
            "needs SM >= 8.0, cuda:0 is SM 7.5; or needs kind cpu, cuda:0 is of kind cuda",
        ),
        ("sm>=9.0 | sm>=9.0", T4, "needs SM >= 9.0, cuda:0 (Tesla T4) is SM 7.5"),
        (
            "sm>=9.0",
            cuda("8.0", override="IR_TARGET=sm80"),
            "needs SM >= 9.0, cuda:0 is SM 8.0 [IR_TARGET=sm80]",
        ),
    ],
)
def test_reasons_quote_both_values(requirement: Any, target: Target, reason: str) -> None:
    assert parse_requirement(requirement).check(target) == Rejected(reason)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"sm": {"min": "8.0", "below": "10.0"}}, "sm>=8.0,sm<10.0"),
        ({"sm": {"min": "9.0", "max": "9.0"}}, "sm==9.0"),
        ({"sm": ">=8.0, <10.0"}, "sm>=8.0,sm<10.0"),
        ({"kind": "cpu", "features": ["triton_interpreter"]}, "cpu,triton_interpreter"),
        ({"any_of": ["sm>=9.0", {"kind": "cpu"}]}, "sm>=9.0 | cpu"),
        ({"all_of": ["sm>=9.0", "tma"]}, "sm>=9.0,tma"),
        ({}, ""),
    ],
)
def test_a_mapping_says_the_same_as_text(data: dict[str, Any], text: str) -> None:
    assert str(parse_requirement(data)) == text
    for target in ALL:
        assert bool(parse_requirement(data).check(target)) == bool(
            parse_requirement(text or None).check(target)
        )


def test_none_asks_nothing() -> None:
    assert all(parse_requirement(None).check(target) == Accepted() for target in ALL)
    assert parse_requirement(None) == AllOf()


def test_values_combine() -> None:
    made = SM(min="9.0") & Feature("tma") | Kind("cpu")
    assert made == parse_requirement("sm>=9.0,tma | cpu")
    assert hash(made) == hash(parse_requirement("sm>=9.0,tma|cpu"))
    assert eval(repr(made)) == made
    assert parse_requirement(made) is made
    assert AnyOf("sm>=9.0", None, "cpu").check(T4)  # one alternative asks nothing


def test_text_multiplies_out_what_it_cannot_bracket() -> None:
    made = AllOf(AnyOf("sm>=9.0", "cpu"), "tma")
    assert str(made) == "sm>=9.0,tma | cpu,tma"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "has an empty term"),
        ("sm>=9.0,", "has an empty term"),
        ("| cpu", "has an empty term"),
        ("sm>=", "the term 'sm>='"),
        ("sm >= 9.0 tma", "the term 'sm >= 9.0 tma'|is not an SM capability"),
        ("not tma", "the term 'not tma'"),
        ("(cpu)", r"the term '\(cpu\)'"),
        ("sm>9.0", r"compares with '>'.*sm>=9\.0"),
        ("sm!=9.0", "compares with '!='"),
        ("sm=9.0", "compares with '='"),
        ("sm>=hopper", "In the requirement 'sm>=hopper', 'hopper' is not an SM capability"),
        ("sm", "'sm' is not a feature.*sm>=9.0"),
        ("sm90", "'sm90' is not a feature.*sm>=9.0"),
        ("sm_90a", "'sm_90a' is not a feature"),
        (9, "9 is not a requirement"),
        (["cpu"], "is not a requirement"),
        ({"sm": "9.0"}, "'9.0' is not a range of SM"),
        ({"sm": {"least": "9.0"}}, "is not a range of SM"),
        ({"sm": {}}, "has no bound"),
        ({"kinds": "cpu"}, "has 'kinds': 'cpu'"),
        ({"features": "tma"}, "has 'features': 'tma'"),
        ({"any_of": []}, "has no alternative"),
        ({"kind": "tpu"}, "'tpu' is not a kind of device"),
    ],
)
def test_a_malformed_requirement_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(TargetError, match=f"(?s){message}"):
        parse_requirement(value)


def test_contradictions_and_misnomers_are_errors() -> None:
    for build in (
        lambda: SM(),
        lambda: SM(min="9.0", max="8.0"),
        lambda: SM(min="9.0", below="9.0"),
        lambda: Kind("gpu"),
        lambda: Feature("cpu"),
        lambda: Feature("two words"),
        lambda: AnyOf(),
    ):
        with pytest.raises(TargetError):
            build()


def test_sm_takes_every_spelling() -> None:
    assert SM("8.0") == SM(min="sm80") == SM(min=80) == SM(min=(8, 0)) == SM(min=Capability(8, 0))


CAPABILITIES = st.builds(Capability, st.integers(1, 14), st.integers(0, 9))
TERMS: st.SearchStrategy[Requirement] = st.one_of(
    st.builds(SM, CAPABILITIES),
    st.builds(lambda bound: SM(max=bound), CAPABILITIES),
    st.builds(lambda bound: SM(below=bound), CAPABILITIES),
    st.builds(lambda bound: SM(min=bound, max=bound), CAPABILITIES),
    st.sampled_from(KINDS).map(Kind),
    st.sampled_from(["tma", "fp8", "gfx942"]).map(Feature),
)
REQUIREMENTS = st.recursive(
    TERMS,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(lambda found: AllOf(*found)),
        st.lists(parts, min_size=1, max_size=3).map(lambda found: AnyOf(*found)),
    ),
    max_leaves=5,
)
TARGETS = st.one_of(
    st.builds(
        lambda sm, features: Target("cuda:0", "cuda", capability=sm, features=features),
        CAPABILITIES,
        st.frozensets(st.sampled_from(["tma", "fp8"])),
    ),
    st.sampled_from(ALL),
)


def holds(requirement: Requirement, target: Target) -> bool:
    """The meaning, without reasons."""
    if isinstance(requirement, AllOf):
        return all(holds(part, target) for part in requirement.parts)
    if isinstance(requirement, AnyOf):
        return any(holds(part, target) for part in requirement.parts)
    if isinstance(requirement, Kind):
        return target.kind == requirement.name
    if isinstance(requirement, Feature):
        return requirement.name in target.features
    assert isinstance(requirement, SM)
    sm = target.capability
    return sm is not None and not (
        (requirement.min and sm < requirement.min)
        or (requirement.max and sm > requirement.max)
        or (requirement.below and sm >= requirement.below)
    )


@settings(max_examples=300, deadline=None)
@given(REQUIREMENTS, TARGETS)
def test_check_means_what_it_says_and_text_reads_back(requirement: Requirement, target: Target) -> None:
    verdict = requirement.check(target)
    assert bool(verdict) == holds(requirement, target)
    if isinstance(verdict, Rejected):
        assert verdict.reason.startswith("needs ")
    assert bool(parse_requirement(str(requirement)).check(target)) == bool(verdict)
