# SPDX-License-Identifier: Apache-2.0
"""What a device is, as values: ``Capability``, ``Target``, and the verdicts ``Accepted`` and ``Rejected``.

Nothing here detects anything. A platform package describes the devices as plain mappings, and
``Target.from_mapping`` makes values of them; what a kernel asks of a target is in ``ir_core.requirement``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from ir_core.errors import TargetError

DeviceKind: TypeAlias = Literal["cpu", "cuda", "rocm", "xpu", "mps"]
KINDS: Final[tuple[str, ...]] = get_args(DeviceKind)
"""The kinds of device. ROCm is its own kind, although torch calls its devices ``cuda:N``."""

FEATURES: Final[dict[str, str]] = {
    "bf16": "bfloat16 arithmetic in hardware",
    "clusters": "thread block clusters and distributed shared memory",
    "fp8": "conversions and matrix products of 8-bit floats",
    "pdl": "programmatic dependent launch",
    "tma": "tensor memory accelerator",
    "triton_interpreter": "Triton's kernels run in its interpreter",
}
"""The names of features, each with what it stands for. Besides these, an AMD architecture (``gfx942``) is a feature."""

CapabilityLike: TypeAlias = "Capability | str | int | tuple[int, int]"

_DOTTED: Final = re.compile(r"(\d+)\.(\d)")
_SM: Final = re.compile(r"(?:sm_?|compute_?)?(\d+)(\d)[af]?")  # 90, sm90, sm_90a, compute_100f


@dataclass(frozen=True, order=True, slots=True)
class Capability:
    """An NVIDIA SM capability; ordered as (major, minor), so that 10.0 > 9.0.

    >>> Capability.parse("sm_90a") == Capability(9, 0)
    True
    >>> str(Capability(12, 0)), Capability(12, 0).sm
    ('12.0', 'sm120')
    """

    major: int
    minor: int

    def __post_init__(self) -> None:
        for part in (self.major, self.minor):
            if type(part) is not int or part < 0:  # bool is an int
                raise _bad_capability((self.major, self.minor))
        # SM names give the minor version one digit; 90.0 is a slip for 9.0, not a device to come.
        if not 0 < self.major < 50 or self.minor > 9:
            raise _bad_capability((self.major, self.minor))

    @classmethod
    def parse(cls, value: CapabilityLike) -> Capability:
        """Make a capability of ``"9.0"``, ``"sm90"``, ``"sm_90a"``, ``90``, ``(9, 0)`` or a capability.

        The suffixes ``a`` and ``f`` name instruction sets, not devices, and are dropped.

        Raises:
            TargetError: anything else. A float is refused, since 12.1 and 12.10 are the same float.
        """
        if isinstance(value, Capability):
            return value
        if isinstance(value, tuple) and len(value) == 2:
            return cls(*value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str):
            text = value.strip().lower()
            match = _DOTTED.fullmatch(text) or _SM.fullmatch(text)
            if match:
                return cls(int(match[1]), int(match[2]))
        raise _bad_capability(value)

    @property
    def sm(self) -> str:
        """The name compilers use: ``"sm90"``."""
        return f"sm{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def _bad_capability(value: object) -> TargetError:
    return TargetError(
        f"{value!r} is not an SM capability.",
        why="It takes the form 9.0, sm90, sm_90a, 90 or (9, 0).",
        fix="Write it as major.minor in a string, for example '9.0'.",
    )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The verdict yes; true in a condition."""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Rejected:
    """The verdict no, with the reason; false in a condition.

    Args:
        reason: a clause without a full stop that quotes what was needed and what was found.
    """

    reason: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason


Verdict: TypeAlias = Accepted | Rejected


@dataclass(frozen=True)
class Target:
    """One device that the program will see. Hashable; equal targets get equal selections.

    Args:
        device: torch's name for it, ``"cuda:0"`` or ``"cpu"``.
        kind: one of ``KINDS``.
        vendor: ``"nvidia"``, ``"amd"``, ...; empty when unknown.
        name: marketing name, ``"NVIDIA H100 80GB HBM3"``; empty when unknown.
        capability: SM of a CUDA device, else ``None``.
        arch: architecture name where that is not an SM: ``"gfx942"``.
        features: what kernels ask about: ``"tma"``, ``"fp8"``, ``"triton_interpreter"``, ...
        properties: sorted (name, number) pairs; sizes in bytes, counts as they are.
        batch_invariant: whether batch-invariant kernels are supported on it.
        batch_invariant_reason: the sentence behind ``batch_invariant``.
        override: ``"IR_TARGET=sm90"`` when the user said what the device is, else ``None``.
        source: who described it, with its version.
        uuid: the driver's identifier of the card or MIG instance. Not compared: two H100s are equal.
        notes: what a person should know about this answer. Not compared.

    Raises:
        TargetError: an empty device, an unknown kind, or a capability on a kind that has none.
    """

    device: str
    kind: str
    vendor: str = ""
    name: str = ""
    capability: Capability | None = None
    arch: str | None = None
    features: frozenset[str] = frozenset()
    properties: tuple[tuple[str, int], ...] = ()
    batch_invariant: bool = False
    batch_invariant_reason: str = ""
    override: str | None = None
    source: str = ""
    uuid: str | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.device:
            raise TargetError(
                f"{self.device!r} is not a device.", fix="Name it as torch does: 'cuda:0', 'cpu'."
            )
        if self.kind not in KINDS:
            raise TargetError(
                f"{self.device} has the unknown kind {self.kind!r}.", why=f"The kinds are {', '.join(KINDS)}."
            )
        if self.capability is not None and self.kind != "cuda":
            raise TargetError(
                f"{self.device} is of kind {self.kind} and cannot have SM {self.capability}.",
                why="Only a CUDA device has an SM capability.",
                fix="Give the architecture of other devices in 'arch'.",
            )

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Target:
        """Make a target of plain data: the inverse of ``to_dict``. Only ``device`` and ``kind`` are required.

        Raises:
            TargetError: a key is missing or unknown, or a value has the wrong type.
        """
        _check_keys(data)
        values: dict[str, Any] = {key: data[key] for key in _FIELDS if key in data}
        device = str(data["device"])
        for key in ("vendor", "name", "batch_invariant_reason", "source"):
            if not isinstance(values.get(key, ""), str):
                raise _bad_value(device, key, values[key], "text")
        for key in ("arch", "override", "uuid"):
            if not isinstance(values.get(key), str | None):
                raise _bad_value(device, key, values[key], "text or None")
        if not isinstance(values.get("batch_invariant", False), bool):
            raise _bad_value(device, "batch_invariant", values["batch_invariant"], "True or False")
        if values.get("capability") is not None:
            values["capability"] = Capability.parse(_pair(values["capability"]))
        for key in ("features", "notes"):
            if key in values:
                values[key] = _strings(device, key, values[key])
        values["features"] = frozenset(values.get("features", ()))
        values["properties"] = _numbers(device, values.get("properties", ()))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The target as JSON-compatible data; ``from_mapping`` reads it back."""
        data = {key: getattr(self, key) for key in _FIELDS}
        data["capability"] = None if self.capability is None else str(self.capability)
        data["features"] = sorted(self.features)
        data["properties"] = dict(self.properties)
        data["notes"] = list(self.notes)
        return data

    def describe(self) -> str:
        """One line for a person: ``"cuda:0 (NVIDIA A100), SM 8.0"``; an override is always shown."""
        what = (
            f"SM {self.capability}"
            if self.capability
            else self.arch or ("" if self.kind == "cpu" else self.kind)
        )
        parts = [self.label, *([what] if what else [])]
        return ", ".join(parts) + (f" [{self.override}]" if self.override else "")

    @property
    def label(self) -> str:
        """The device with its name, for the middle of a sentence: ``"cuda:0 (NVIDIA A100)"``."""
        return f"{self.device} ({self.name})" if self.name else self.device

    def __str__(self) -> str:
        return self.describe()


_FIELDS: Final[tuple[str, ...]] = tuple(Target.__dataclass_fields__)


def _check_keys(data: Mapping[str, Any]) -> None:
    missing = [key for key in ("device", "kind") if key not in data]
    unknown = sorted(set(data) - set(_FIELDS))
    if missing or unknown:
        raise TargetError(
            f"A target description has {'no ' + ' and no '.join(missing) if missing else 'unknown keys'}.",
            why=f"Unknown keys: {', '.join(map(str, unknown))}." if unknown else "",
            fix=f"The keys are {', '.join(_FIELDS)}; a newer platform package may need a newer ir-core.",
        )


def _pair(value: Any) -> Any:
    """JSON has no tuples: read ``[9, 0]`` as ``(9, 0)``."""
    return tuple(value) if isinstance(value, list) else value


def _strings(device: str, key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _bad_value(device, key, value, "a list of strings")
    items = tuple(value)
    if not all(isinstance(item, str) for item in items):
        raise _bad_value(device, key, items, "a list of strings")
    return items


def _numbers(device: str, value: Any) -> tuple[tuple[str, int], ...]:
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise _bad_value(device, "properties", value, "a mapping of names to whole numbers") from None
    for name, number in pairs.items():
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int):
            raise _bad_value(device, "properties", {name: number}, "a mapping of names to whole numbers")
    return tuple(sorted(pairs.items()))


def _bad_value(device: str, key: str, value: object, wanted: str) -> TargetError:
    return TargetError(f"The description of {device} has {key} = {value!r}.", why=f"It must be {wanted}.")
