# SPDX-License-Identifier: Apache-2.0
"""CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, against the rules written a second time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_platform.detect import Card, Instance
from ir_platform.visible import visible

A = "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1"
B = "GPU-9e8d35e3-a134-0fdd-0e01-23811fdbd293"
C = "GPU-e429a63e-c61c-4795-b757-5132caeb8e70"
D = "GPU-eee1dfbc-0a0f-6ad8-5ff6-dc942a8b9d98"
M0 = "MIG-c788539f-c1ea-5a36-8b4d-9b07d024b1bb"
M1 = "MIG-405bbda1-6b05-535f-9702-f95e8cd170ce"
M2 = "MIG-c71dc464-b9f9-5611-9d29-d601a47cffd6"


def card(uuid: str, *instances: str, mig: bool = False, speed: int = 1, bus: int = 0) -> Card:
    made = tuple(Instance(name, name[:8], 7 + index, 0, 16, 1) for index, name in enumerate(instances))
    return Card(uuid, f"00000000:{bus:02X}:00.0", "card", (9, 0), 1, speed, 1, mig or bool(made), made)


FOUR = [card(A), card(B), card(C), card(D)]
MIXED = [card(A, M0, M1), card(B), card(C, mig=True), card(D, M2)]


def uuids(cards: Sequence[Card], devices: str | None, order: str | None = "PCI_BUS_ID") -> list[str]:
    return [slot.uuid for slot in visible(cards, devices, order).slots]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [A, B, C, D]),
        ("", []),
        (" ", []),
        ("0", [A]),
        ("3,1", [D, B]),
        ("0,1,2,3", [A, B, C, D]),
        # an invalid entry ends the list
        ("0,2,-1,1", [A, C]),
        ("-1", []),
        ("-1,0", []),
        ("0,4,1", [A]),
        ("4", []),
        ("0,,1", [A]),
        (",0", []),
        ("0,", [A]),
        ("none", []),
        ("NoDevFiles", []),
        ("all", []),
        ("0,one,2", [A]),
        # a number is what the entry starts with
        ("1gpu2,2ampere", [B, C]),
        (" 1, 2", [B, C]),
        ("2, +3, -0, 1", [C, D, A, B]),
        ("0x1", [A]),
        ("0-2", [A]),
        ("0;1", [A]),
        ("99999999999999999999", []),
        # a device named twice hides all
        ("0,0", []),
        ("0,1,2,1", []),
        ("0,+0", []),
        ("0,-1,0", [A]),  # the list has ended before the second 0
        ("0,99,99", [A]),  # and here before the second 99
        ("99,99", []),
        ("0,99,0", [A]),
        ("0,0,99", []),
        # UUIDs, whole and shortened
        (B, [B]),
        (f"{D},{A}", [D, A]),
        ("GPU-9942,GPU-9e8d35e3", [A, B]),
        ("GPU-e", []),  # ambiguous
        ("GPU-9", []),
        ("GPU-9942,GPU-e,GPU-9e", [A]),
        ("GPU-9942,GPU-99421", []),  # the same card twice
        ("GPU-9942,GPU-123,GPU-9e", [A]),
        ("GPU-", []),
        ("gpu-9942", []),
        ("9942190a-aa31-4ff1-4aa9-c388d80f85f1", []),  # the number 9942190, out of range
        # forms do not mix
        ("GPU-9942,1", [A]),
        ("1,GPU-9942", [B]),
        ("GPU-9942, GPU-9e8d35e3", [A]),  # a space before a UUID
        (" GPU-9942", []),
        (f"GPU-9942,{M0}", [A]),
    ],
)
def test_whole_cards(value: str | None, expected: list[str]) -> None:
    assert uuids(FOUR, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("GPU-", []),  # it is the beginning of every UUID, and names none
        ("MIG-", []),
        ("GPU-9", [A]),
        ("0,99,99", [A]),
        ("0,99,0", [A]),
        ("99,99", []),
        ("0,0", []),
    ],
)
def test_one_card(value: str, expected: list[str]) -> None:
    assert uuids([card(A)], value) == expected


def test_the_bare_word_names_no_instance_either() -> None:
    assert uuids([card(A, M0)], "MIG-") == []
    assert uuids([card(A, M0)], "GPU-") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [M0]),  # an instance is enumerated, so no whole card is
        ("0", [B]),  # whole cards have the first numbers
        ("1", [M0]),
        ("2", [M2]),
        ("3", []),  # the card in MIG mode without an instance has no number
        ("0,1", [M0]),
        ("2,0", [M2]),
        (M1, [M1]),
        (f"{M1},{M0}", [M1]),
        (f"{M1},{M1}", []),
        ("MIG-405b", [M1]),
        ("MIG-c7", []),  # ambiguous
        (f"MIG-{A}/8/0", [M1]),
        (f"MIG-{A}/8/1", []),
        (f"MIG-{A}/9/0", []),
        (f"MIG-{D}/7/0,{M0}", [M2]),
        ("MIG-", []),
        (A, [M0]),  # a card in MIG mode stands for its first instance
        (f"{A},{B}", [M0]),
        (C, []),
        (f"{B},{C},{D}", [B]),
        (f"{M0},{B}", [M0]),
    ],
)
def test_instances(value: str | None, expected: list[str]) -> None:
    assert uuids(MIXED, value) == expected


def test_the_default_order_is_fastest_first_with_ties_in_pci_order() -> None:
    cards = [card(A, speed=1), card(B, speed=3), card(C, speed=1), card(D, speed=2)]
    assert uuids(cards, None, "PCI_BUS_ID") == [A, B, C, D]
    for order in (None, "FASTEST_FIRST", "", "pci_bus_id"):
        found = visible(cards, "0,2", order)
        assert [slot.uuid for slot in found.slots] == [B, A]
        assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in found.notes)  # said to be a guess


def test_equal_cards_have_a_certain_order() -> None:
    assert uuids(FOUR, None, None) == [A, B, C, D]
    assert visible(FOUR, None, None).notes == ()


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ("", "is empty, which hides every device"),
        ("0,7,1", "'7' names no device, and ends the list"),
        ("GPU-9942,1", "'1' names no device, and ends the list"),
        ("1,1", f"names {B} twice, which hides every device"),
        ("GPU-9942,GPU-99421", f"names {A} twice, which hides every device"),
    ],
)
def test_a_list_that_hides_devices_is_explained(value: str, note: str) -> None:
    assert any(note in text for text in visible(FOUR, value, None).notes)


def test_one_instance_only_is_explained() -> None:
    (note,) = visible(MIXED, f"{M1},{M0}", "PCI_BUS_ID").notes
    assert note == f"CUDA sees one MIG instance only: {M1}. Hidden: 1 more."


def test_no_cards() -> None:
    for value in (None, "", "0", A, M0):
        assert uuids([], value) == []


# The rules a second time, as one walk over the characters, sharing nothing with the parser but the data.

WORDS = st.text(alphabet="ab", min_size=1, max_size=3)  # few letters: shared prefixes are common
MACHINES = st.lists(
    st.tuples(WORDS, st.booleans(), st.lists(WORDS, max_size=2)),
    max_size=4,
    unique_by=lambda entry: entry[0],
)


def build(machine: list[tuple[str, bool, list[str]]]) -> list[Card]:
    cards = []
    for number, (word, mig, names) in enumerate(machine):
        instances = [f"MIG-{word}{name}{index}" for index, name in enumerate(names)] if mig else []
        cards.append(card(f"GPU-{word}", *instances, mig=mig, bus=number))
    return cards


def strtol(text: str) -> int | None:
    digits, sign = "", 1
    text = text.lstrip(" ")
    if text[:1] in ("+", "-"):
        sign, text = (-1 if text[0] == "-" else 1), text[1:]
    for letter in text:
        if letter not in "0123456789":
            break
        digits += letter
    return sign * int(digits) if digits else None


def oracle(cards: list[Card], value: str | None) -> list[str]:
    by_number = [c.uuid for c in cards if not c.mig] + [c.instances[0].uuid for c in cards if c.instances]
    seen: list[str] = []
    if value is None:
        seen = by_number
    else:
        first, ended, keys = value[:4], False, []
        for entry in value.split(","):
            if first in ("GPU-", "MIG-"):
                ended = ended or entry[:4] != first
                key: object = entry
            else:
                key = strtol(entry)
                ended = ended or key is None or int(str(key)) < 0
            if not ended:
                keys.append(key)
        for key in keys:
            if isinstance(key, int):
                named = by_number[key : key + 1]
            elif first == "GPU-":
                owners = [c for c in cards if c.uuid[: len(str(key))] == key and key != "GPU-"]
                named = []
                if len(owners) == 1:
                    one = owners[0]
                    named = [one.instances[0].uuid] if one.instances else [] if one.mig else [one.uuid]
            elif str(key)[:8] == "MIG-GPU-":
                named = [
                    i.uuid
                    for c in cards
                    for i in c.instances
                    if key == f"MIG-{c.uuid}/{i.gpu_instance}/{i.compute_instance}"
                ]
            else:
                named = [
                    i.uuid for c in cards for i in c.instances if i.uuid[: len(str(key))] == key != "MIG-"
                ]
            if len(named) != 1:
                break
            if named[0] in seen:
                return []
            seen += named
    instances = [uuid for uuid in seen if uuid[:4] == "MIG-"]
    return instances[:1] or seen


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Card], str | None]:
    cards = build(draw(MACHINES))
    whole = [c.uuid for c in cards] + [i.uuid for c in cards for i in c.instances]
    legacy = [f"MIG-{c.uuid}/{i.gpu_instance}/{i.compute_instance}" for c in cards for i in c.instances]
    entry = st.one_of(
        st.integers(-2, 5).map(str),
        st.sampled_from(
            ["", " ", "+1", " 0", "-0", "1gpu", "x", "GPU-", "MIG-", "0 ", "00", "1.5", "+", "-"]
        ),
        st.sampled_from([*whole, *legacy, "GPU-zz"]),
        st.sampled_from([*whole, "GPU-ab", "MIG-ab"]).flatmap(
            lambda name: st.integers(4, len(name)).map(lambda end: name[:end])
        ),
    )
    return cards, draw(st.none() | st.lists(entry, max_size=5).map(",".join))


@settings(max_examples=1000, deadline=None)
@given(cases())
def test_the_parser_follows_the_rules(case: tuple[list[Card], str | None]) -> None:
    cards, value = case
    assert uuids(cards, value) == oracle(cards, value)


@settings(max_examples=300, deadline=None)
@given(cases(), st.text(alphabet="0123, +-GPUMIG/ab", max_size=24))
def test_any_text_is_an_answer(case: tuple[list[Card], str | None], value: str) -> None:
    """No text is an error; what is visible exists, once; one instance at most, and then alone."""
    cards, _ = case
    found = uuids(cards, value)
    assert found == oracle(cards, value)
    everything = {c.uuid for c in cards if not c.mig} | {i.uuid for c in cards for i in c.instances}
    assert set(found) <= everything
    assert len(set(found)) == len(found)
    assert len(found) == 1 or not any(uuid.startswith("MIG-") for uuid in found)
