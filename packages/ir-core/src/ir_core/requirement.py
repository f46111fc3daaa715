# SPDX-License-Identifier: Apache-2.0
"""What a kernel asks of a device, as values that say why they refuse.

A pack writes a requirement as text, so that its data needs no import::

    "sm>=8.0"                                     a CUDA device of SM 8.0 or newer
    "sm>=8.0, sm<10.0, tma | cpu, triton_interpreter"      ',' is all-of, '|' is any-of and binds weaker
    "rocm, gfx942"                                a kind, and a feature that every gfx942 has

A bare word is a kind if it is one of ``ir_core.target.KINDS``, else a feature: one of ``ir_core.target.FEATURES``, an
AMD architecture, or, from a platform package of one's own, a name with a dot (``acme.matrix_engine``).
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ir_core.errors import TargetError
from ir_core.target import FEATURES, KINDS, Accepted, Capability, CapabilityLike, Rejected, Target, Verdict


class Requirement(ABC):
    """Something asked of a target. Combine with ``&`` and ``|``; ``str()`` gives text that parses back."""

    __slots__ = ()

    @abstractmethod
    def check(self, target: Target) -> Verdict:
        """``Accepted()``, or ``Rejected(reason)`` quoting what is needed and what the target is."""

    def __and__(self, other: Requirement) -> AllOf:
        return AllOf(self, other)

    def __or__(self, other: Requirement) -> AnyOf:
        return AnyOf(self, other)


@dataclass(frozen=True, slots=True, init=False)
class SM(Requirement):
    """A CUDA device whose capability is in a range.

    Args:
        min: lowest capability accepted.
        max: highest capability accepted.
        below: lowest capability no longer accepted.

    Raises:
        TargetError: no bound, or bounds that no capability meets.

    >>> SM(min="8.0", below="10.0")
    SM(min='8.0', below='10.0')
    """

    min: Capability | None
    max: Capability | None
    below: Capability | None

    def __init__(
        self,
        min: CapabilityLike | None = None,
        max: CapabilityLike | None = None,
        *,
        below: CapabilityLike | None = None,
    ) -> None:
        for name, value in (("min", min), ("max", max), ("below", below)):
            object.__setattr__(self, name, None if value is None else Capability.parse(value))
        if self.min is None and self.max is None and self.below is None:
            raise TargetError(
                "SM() has no bound.", fix="Write SM(min='8.0'), or Kind('cuda') for any CUDA device."
            )
        if self.min and ((self.max and self.min > self.max) or (self.below and self.min >= self.below)):
            raise TargetError(f"No device can meet {self!r}.", fix="Swap or widen the bounds.")

    def check(self, target: Target) -> Verdict:
        wanted = self._sentence()
        if target.kind != "cuda":
            return Rejected(f"needs {wanted}, {target.label} is {_of_kind(target)}{_override(target)}")
        found = target.capability
        if found is None:
            return Rejected(f"needs {wanted}, the SM of {target.label} is unknown{_override(target)}")
        low = self.min is None or found >= self.min
        high = (self.max is None or found <= self.max) and (self.below is None or found < self.below)
        if low and high:
            return Accepted()
        return Rejected(f"needs {wanted}, {target.label} is SM {found}{_override(target)}")

    def _bounds(self) -> list[tuple[str, Capability]]:
        if self.min and self.min == self.max and not self.below:
            return [("==", self.min)]
        pairs = ((">=", self.min), ("<=", self.max), ("<", self.below))
        return [(sign, value) for sign, value in pairs if value]

    def _sentence(self) -> str:
        return "SM " + " and ".join(f"{sign} {value}" for sign, value in self._bounds())

    def __str__(self) -> str:
        return ",".join(f"sm{sign}{value}" for sign, value in self._bounds())

    def __repr__(self) -> str:
        bounds = (("min", self.min), ("max", self.max), ("below", self.below))
        return f"SM({', '.join(f'{name}={str(value)!r}' for name, value in bounds if value)})"


@dataclass(frozen=True, slots=True)
class Kind(Requirement):
    """A device of one kind: ``Kind("cpu")``.

    Raises:
        TargetError: the kind is not one of ``ir_core.target.KINDS``.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise TargetError(
                f"{self.name!r} is not a kind of device.", fix=f"Use one of {', '.join(KINDS)}."
            )

    def check(self, target: Target) -> Verdict:
        if target.kind == self.name:
            return Accepted()
        return Rejected(f"needs kind {self.name}, {target.label} is {_of_kind(target)}{_override(target)}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Feature(Requirement):
    """A device that has a feature: ``Feature("tma")``.

    Raises:
        TargetError: the name is not one word, or is that of a kind or of a capability, or is known nowhere.
    """

    name: str

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(str(self.name)):
            raise TargetError(f"{self.name!r} is not the name of a feature.", fix="Write one word: 'tma'.")
        if self.name in KINDS:
            raise TargetError(f"{self.name!r} is a kind, not a feature.", fix=f"Write Kind({self.name!r}).")
        if _SM_WORD.fullmatch(self.name):  # else 'sm90' would be a feature that no device ever has
            raise TargetError(
                f"{self.name!r} is not a feature.", fix="Compare the capability: 'sm>=9.0' or 'sm==9.0'."
            )
        if not (self.name in FEATURES or "." in self.name or _GFX_WORD.fullmatch(self.name)):
            close = difflib.get_close_matches(self.name, FEATURES, n=1)
            raise TargetError(
                f"{self.name!r} is not a feature that ir-core knows.",
                why=f"No device would ever have it. Known are {', '.join(FEATURES)}, and AMD's architectures (gfx942).",
                fix=f"Did you mean {close[0]!r}?"
                if close
                else f"A feature of a platform package of your own has a dot in its name: 'acme.{self.name}'.",
            )

    def check(self, target: Target) -> Verdict:
        if self.name in target.features:
            return Accepted()
        have = ", ".join(sorted(target.features)) or "none"
        hint = (
            "; set TRITON_INTERPRET=1" if self.name == "triton_interpreter" and target.kind == "cpu" else ""
        )
        return Rejected(f"needs feature {self.name}, {target.label} has {have}{hint}{_override(target)}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, init=False)
class AllOf(Requirement):
    """Everything listed; refuses with the first reason. ``AllOf()`` asks nothing and accepts every target."""

    parts: tuple[Requirement, ...]

    def __init__(self, *parts: RequirementLike) -> None:
        made = [parse_requirement(part) for part in parts]
        flat = [leaf for part in made for leaf in (part.parts if isinstance(part, AllOf) else (part,))]
        object.__setattr__(self, "parts", tuple(flat))

    def check(self, target: Target) -> Verdict:
        for part in self.parts:
            verdict = part.check(target)
            if not verdict:
                return verdict
        return Accepted()

    def __str__(self) -> str:
        if any(isinstance(part, AnyOf) for part in self.parts):  # the text has no brackets: multiply out
            return str(_distribute(self))
        return ",".join(map(str, self.parts))

    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.parts))})"


@dataclass(frozen=True, slots=True, init=False)
class AnyOf(Requirement):
    """One of the alternatives; refuses with the reason of each.

    Raises:
        TargetError: no alternative is given.
    """

    parts: tuple[Requirement, ...]

    def __init__(self, *parts: RequirementLike) -> None:
        made = [parse_requirement(part) for part in parts]
        flat = [leaf for part in made for leaf in (part.parts if isinstance(part, AnyOf) else (part,))]
        if not flat:
            raise TargetError("AnyOf() has no alternative.", fix="Name one, or use None to ask nothing.")
        object.__setattr__(self, "parts", tuple(flat))

    def check(self, target: Target) -> Verdict:
        reasons = []
        for part in self.parts:
            verdict = part.check(target)
            if isinstance(verdict, Accepted):
                return verdict
            reasons.append(verdict.reason)
        return Rejected("; or ".join(dict.fromkeys(reasons)))

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.parts))})"


RequirementLike: TypeAlias = Requirement | str | Mapping[str, Any] | None

_WORD: Final = re.compile(r"[a-z][a-z0-9_.]*")
_GFX_WORD: Final = re.compile(r"gfx[0-9a-f]{3,}")
_SM_WORD: Final = re.compile(r"sm_?\d*[af]?")
_COMPARISON: Final = re.compile(r"sm\s*(>=|<=|==|<|>|!=|=)\s*([^<>=!\s]+)")
_BOUND: Final = {">=": "min", "<=": "max", "<": "below"}


def parse_requirement(value: RequirementLike) -> Requirement:
    """Make a requirement of text, of a mapping, of a requirement, or of ``None`` (asks nothing).

    A mapping has the keys ``sm`` (``">=8.0,<10.0"`` or ``{"min": "8.0", "below": "10.0"}``), ``kind``,
    ``features`` (a list), ``all_of`` and ``any_of`` (lists of requirements); several keys are all-of.

    Raises:
        TargetError: it is none of these, or is malformed.

    >>> str(parse_requirement("sm >= sm80 , tma|cpu"))
    'sm>=8.0,tma | cpu'
    """
    if value is None:
        return AllOf()
    if isinstance(value, Requirement):
        return value
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, Mapping):
        return _parse_mapping(value)
    raise TargetError(
        f"{value!r} is not a requirement.", fix="Write text such as 'sm>=9.0,tma', a mapping, or None."
    )


def _parse_text(text: str) -> Requirement:
    alternatives = []
    for alternative in text.split("|"):
        terms = [_parse_term(term.strip(), text) for term in alternative.split(",")]
        alternatives.append(terms[0] if len(terms) == 1 else AllOf(*terms))
    return alternatives[0] if len(alternatives) == 1 else AnyOf(*alternatives)


def _parse_term(term: str, text: str) -> Requirement:
    term = term.lower()
    comparison = _COMPARISON.fullmatch(term)
    if comparison:
        return _parse_comparison(comparison[1], comparison[2], text)
    if _WORD.fullmatch(term):
        return Kind(term) if term in KINDS else Feature(term)
    raise TargetError(
        f"The requirement {text!r} has {f'the term {term!r}' if term else 'an empty term'}.",
        why="A term is a comparison (sm>=9.0), a kind (cpu) or a feature (tma).",
        fix="Separate terms that must all hold by ',' and alternatives by '|'.",
    )


def _parse_comparison(sign: str, number: str, text: str) -> SM:
    if sign != "==" and sign not in _BOUND:
        raise TargetError(
            f"The requirement {text!r} compares with {sign!r}.",
            why="SM is compared with >=, <=, < or ==.",
            fix="Name the first SM that qualifies, for example sm>=9.0.",
        )
    try:
        bound = Capability.parse(number)
    except TargetError as error:
        raise TargetError(
            f"In the requirement {text!r}, {error.what}", why=error.why, fix=error.fix
        ) from None
    return SM(min=bound, max=bound) if sign == "==" else SM(**{_BOUND[sign]: bound})


def _parse_mapping(data: Mapping[str, Any]) -> Requirement:
    parts: list[Requirement] = []
    for key, value in data.items():
        if key == "sm":
            parts.append(_parse_sm(value))
        elif key == "kind":
            parts.append(Kind(value))
        elif key in ("features", "all_of", "any_of") and isinstance(value, list | tuple):
            if key == "features":
                parts.extend(Feature(name) for name in value)
            else:
                parts.append(AllOf(*value) if key == "all_of" else AnyOf(*value))
        else:
            raise TargetError(
                f"The requirement {dict(data)!r} has {key!r}: {value!r}.",
                why="The keys are sm, kind, and the lists features, all_of and any_of.",
            )
    return parts[0] if len(parts) == 1 else AllOf(*parts)


def _parse_sm(value: Any) -> Requirement:
    if isinstance(value, str) and value.lstrip()[:1] in {"<", ">", "="}:
        return _parse_text(",".join(f"sm{bound.strip()}" for bound in value.split(",")))
    if isinstance(value, Mapping) and set(value) <= {"min", "max", "below"}:
        return SM(**value)
    raise TargetError(
        f"{value!r} is not a range of SM.", fix="Write '>=8.0,<10.0', or {'min': '8.0', 'below': '10.0'}."
    )


def _distribute(requirement: AllOf) -> AnyOf:
    """The same requirement as alternatives of plain terms."""
    rows: list[tuple[Requirement, ...]] = [()]
    for part in requirement.parts:
        choices = part.parts if isinstance(part, AnyOf) else (part,)
        rows = [(*row, choice) for row in rows for choice in choices]
    return AnyOf(*(AllOf(*row) for row in rows))


def _of_kind(target: Target) -> str:
    return "a CPU" if target.kind == "cpu" else f"of kind {target.kind}"


def _override(target: Target) -> str:
    """Said in every reason, so that a pretended device is not taken for a real one."""
    return f" [{target.override}]" if target.override else ""
