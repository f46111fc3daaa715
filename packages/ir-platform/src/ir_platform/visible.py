# SPDX-License-Identifier: Apache-2.0
"""Which cards the program will see, and in what order: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER.

Pure functions of the variables' values and of what the driver reported. The rules, as the CUDA runtime has
them:

1. ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` numbers cards by PCI bus id; any other value means ``FASTEST_FIRST``.
2. Cards in MIG mode come after the others; each stands for its first instance, or for nothing without one.
3. Unset, every device is visible; empty, none.
4. The list is separated by commas. The first entry says what the list holds: indices, ``GPU-`` UUIDs or
   ``MIG-`` identifiers. An entry of another form is invalid.
5. An index is the number that the entry starts with (``1gpu`` is 1), with or without spaces before it.
   A UUID may be shortened as far as it stays unique, and has no space before it. The bare word ``GPU-`` or ``MIG-``
   is short of everything and names nothing, also where there is one card only.
   ``MIG-GPU-<uuid>/<gpu instance>/<compute instance>``, the form of old drivers, names an instance too.
6. An invalid entry (negative, out of range, unknown, ambiguous) ends the list; those before it stay visible, and what
   stands behind it does not matter.
7. A device named twice, before the list ends, makes the whole list empty. ``0,99,99`` on one card is card 0: 99 ends
   the list before it is repeated.
8. A program sees one MIG instance only: if any is selected, the first one is all that is visible.

Sources: CUDA Programming Guide, "CUDA Environment Variables" (1, 3, 4, 6); NVIDIA MIG User Guide, "CUDA
Device Enumeration" (2, 8); PyTorch's tests of its own parser against driver 525 (7; leading numbers, spaces
and mixed forms in 4 and 5). Where the tests of this package, beside the CUDA runtime of an H200, contradicted PyTorch's
parser, the rule is the one that agrees with them: the bare words in 5, and that 6 comes before 7.

``FASTEST_FIRST`` is an unpublished heuristic. Here it is cores times clock, ties in PCI order; so equal cards
keep their PCI order, as they do in CUDA. Where cards differ, the order is a guess, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from ir_platform.detect import Card, Instance

CUDA_VISIBLE_DEVICES: Final = "CUDA_VISIBLE_DEVICES"
CUDA_DEVICE_ORDER: Final = "CUDA_DEVICE_ORDER"

_GUESS: Final = (
    "The cards differ, and CUDA's default order, FASTEST_FIRST, is unpublished: which is cuda:0 is a guess."
    f" Set {CUDA_DEVICE_ORDER}=PCI_BUS_ID to make it certain."
)
_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_LEGACY_MIG: Final = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/([0-9]+)/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Slot:
    """A device as CUDA numbers them: a card, or a MIG instance of one."""

    card: Card
    instance: Instance | None = None

    @property
    def uuid(self) -> str:
        return self.instance.uuid if self.instance else self.card.uuid


@dataclass(frozen=True, slots=True)
class Visible:
    """The visible devices, ``cuda:0`` first, and what a person should know about the answer."""

    slots: tuple[Slot, ...]
    notes: tuple[str, ...] = ()


def visible(cards: Sequence[Card], devices: str | None, order: str | None) -> Visible:
    """Apply ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``.

    Args:
        cards: in PCI bus order.
        devices: value of ``CUDA_VISIBLE_DEVICES``, ``None`` when unset.
        order: value of ``CUDA_DEVICE_ORDER``, ``None`` when unset.
    """
    ordered, notes = _in_order(cards, order)
    slots, note = _listed(devices, enumerable(ordered), ordered)
    notes += [note] if note else []
    instances = [slot for slot in slots if slot.instance]
    if instances and len(slots) > 1:
        notes.append(f"CUDA sees one MIG instance only: {instances[0].uuid}. Hidden: {len(slots) - 1} more.")
        slots = instances[:1]
    return Visible(tuple(slots), tuple(notes))


def enumerable(cards: Sequence[Card]) -> list[Slot]:
    """What indices number: whole cards, then the first instance of each card in MIG mode."""
    whole = [Slot(card) for card in cards if not card.mig]
    return whole + [Slot(card, card.instances[0]) for card in cards if card.mig and card.instances]


def _in_order(cards: Sequence[Card], order: str | None) -> tuple[list[Card], list[str]]:
    if order == "PCI_BUS_ID":
        return list(cards), []
    ranked = sorted(cards, key=lambda card: -card.cores * card.clock)  # stable: ties stay in PCI order
    if len({(card.name, card.cores, card.clock) for card in cards}) <= 1:
        return ranked, []
    return ranked, [_GUESS]


def _listed(value: str | None, slots: list[Slot], cards: Sequence[Card]) -> tuple[list[Slot], str]:
    """The slots that the list names, and a note if it names fewer than it has entries."""
    if value is None:
        return slots, ""
    entries = value.split(",")
    valid, find = _form(entries, slots, cards)
    found: list[Slot] = []
    for entry in valid:
        slot = find(entry)
        if slot is None:
            break
        if slot in found:
            return [], f"{CUDA_VISIBLE_DEVICES}={value!r} names {slot.uuid} twice, which hides every device."
        found.append(slot)
    if not value.strip():
        return [], f"{CUDA_VISIBLE_DEVICES} is empty, which hides every device." if slots else ""
    if len(found) < len(entries):
        bad = entries[len(found)]
        return found, f"{CUDA_VISIBLE_DEVICES}={value!r}: {bad!r} names no device, and ends the list."
    return found, ""


def _form(
    entries: list[str], slots: list[Slot], cards: Sequence[Card]
) -> tuple[list[str], Callable[[str], Slot | None]]:
    """The leading entries that have the form of the first one, made comparable, and how to look one up."""
    if entries[0].startswith("GPU-"):
        valid = takewhile(lambda entry: entry.startswith("GPU-"), entries)
        return list(valid), lambda entry: _by_card_uuid(entry, cards)
    if entries[0].startswith("MIG-"):
        valid = takewhile(lambda entry: entry.startswith("MIG-"), entries)
        return list(valid), lambda entry: _by_instance(entry, cards)
    numbers = takewhile(lambda number: number >= 0, map(_leading_number, entries))
    return [str(number) for number in numbers], lambda entry: dict(enumerate(slots)).get(int(entry))


def _leading_number(entry: str) -> int:
    """The number that the entry starts with, as C's ``strtol`` reads it; -1 when there is none."""
    match = _NUMBER.match(entry.strip())
    return int(match[0]) if match else -1


def _by_card_uuid(prefix: str, cards: Sequence[Card]) -> Slot | None:
    matches = [card for card in cards if prefix != "GPU-" and card.uuid.startswith(prefix)]
    if len(matches) != 1:
        return None
    return next(iter(enumerable(matches)), None)


def _by_instance(name: str, cards: Sequence[Card]) -> Slot | None:
    slots = [Slot(card, instance) for card in cards for instance in card.instances]
    legacy = _LEGACY_MIG.fullmatch(name)
    if legacy:
        ids = (int(legacy[2]), int(legacy[3]))
        matches = [
            slot
            for slot in slots
            if slot.card.uuid == legacy[1]
            and slot.instance
            and (slot.instance.gpu_instance, slot.instance.compute_instance) == ids
        ]
    else:
        matches = [slot for slot in slots if name != "MIG-" and slot.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None
