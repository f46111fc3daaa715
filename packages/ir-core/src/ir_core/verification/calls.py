# SPDX-License-Identifier: Apache-2.0
"""What is compared: a call as a value, and a case as a pair of calls that must agree on the rows they share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from ir_core.errors import CertificateError


@dataclass(frozen=True)
class Setting:
    """The static arguments: what stays the same while rows come and go.

    Args:
        dtype: name of the activations' dtype, ``"float32"``.
        hidden: columns; the ``hidden_size`` of the op's input generator.
        variant: which variant of the other arguments (``ir_core.verification.variants``); empty: as generated.
    """

    dtype: str
    hidden: int
    variant: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise CertificateError(f"{self.dtype!r} is no dtype of torch.")
        return dtype

    def __str__(self) -> str:
        return f"{self.dtype}, {self.hidden} columns" + (f", {self.variant}" if self.variant else "")


@dataclass(frozen=True)
class Call:
    """One call, reproducible: its rows come from a pool that the setting and the seed determine.

    Args:
        dtype, hidden, variant: the setting.
        rows: rows of the batch.
        start: row of the pool that stands first.
        shift: the batch is rolled by so many rows.
        others: what the rows at odd positions hold instead of their own content; empty: their own.
        values: what the pool's rows hold (``pool.VALUES``); empty: what the op's generator makes.
        statics: which arguments that are no activation have other values: ``"weight#1"``, ``"#2"`` for all of them
            (``variants.redraw``); empty: none.
        layout: how the arguments lie in memory (``layouts.py``): a name, or a ``free:`` text.
        which: the one argument that is laid out so; empty: every activation.
        mode: how it runs: ``eager``, ``traced``, ``op``, ... (``modes.py``).
        before: what ran before it: ``first`` (nothing), ``again`` (the same call), ``interleaved`` (other shapes).
        threads: of torch on the CPU; 0: as they are.
        seed: of the pool.
    """

    dtype: str
    hidden: int
    variant: str = ""
    rows: int = 1
    start: int = 0
    shift: int = 0
    others: str = ""
    values: str = ""
    statics: str = ""
    layout: str = "contiguous"
    which: str = ""
    mode: str = "eager"
    before: str = ""
    threads: int = 0
    seed: int = 0

    @property
    def setting(self) -> Setting:
        return Setting(self.dtype, self.hidden, self.variant)

    @property
    def elements(self) -> int:
        return self.rows * self.hidden

    def indices(self, pool: int) -> torch.Tensor:
        """The row of the pool at each position of the batch."""
        window = min(self.rows, pool)
        return (self.start + (torch.arange(self.rows) + self.shift) % window) % pool

    def but(self, **changes: Any) -> Call:
        """The same call with other fields."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; fields with their default value are left out."""
        return {
            f.name: value
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != f.default or f.name == "rows"
        }

    @classmethod
    def from_dict(cls, data: Any) -> Call:
        """Read :meth:`to_dict`.

        Raises:
            CertificateError: a field is missing, unknown or of another type.
        """
        types = {f.name: int if f.type == "int" else str for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or not {"dtype", "hidden"} <= set(data) <= set(types):
            raise CertificateError(
                f"{data!r} is not a call.", why=f"It has dtype and hidden, and may have {', '.join(types)}."
            )
        for name, value in data.items():
            if type(value) is not types[name]:
                raise CertificateError(
                    f"{name} = {value!r} in a call must be of type {types[name].__name__}."
                )
        call = cls(**data)
        if call.rows < 1 or call.hidden < 1:
            raise CertificateError(f"{data!r} has no element.")
        call.setting.torch_dtype  # noqa: B018  raises when there is no such dtype
        return call

    def __str__(self) -> str:
        said = [f"{self.rows} row{'s' if self.rows != 1 else ''}", str(self.setting)]
        if self.start:
            said.append(f"from row {self.start} of the pool")
        if self.shift:
            said.append(f"rolled by {self.shift}")
        if self.others:
            said.append(f"other rows {self.others}")
        if self.values:
            said.append(f"values {self.values}")
        if self.statics:
            name, _, number = self.statics.partition("#")
            said.append(f"other {name or 'static arguments'} ({number})")
        if self.layout != "contiguous":
            said.append(f"{self.which or 'activations'} {self.layout}")
        said += [text for text in (self.mode if self.mode != "eager" else "", self.before) if text]
        return ", ".join(said)


@dataclass(frozen=True)
class Case:
    """A probe's question: do ``call`` and ``base`` give the same bits for the rows they share?

    Contract probes ask about ``call`` alone.
    """

    probe: str
    call: Call
    base: Call | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; of the base only what differs from the call."""
        data: dict[str, Any] = {"probe": self.probe, "call": self.call.to_dict()}
        if self.base is not None:
            mine, theirs = vars(self.call), vars(self.base)
            data["base"] = {name: value for name, value in theirs.items() if value != mine[name]}
        return data

    def key(self) -> str:
        """The case as compact JSON: what ``ir-core verify --case`` takes."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def parse(cls, data: Any) -> Case:
        """Read :meth:`key` or :meth:`to_dict`.

        Raises:
            CertificateError: it is no case.
        """
        try:
            data = json.loads(data) if isinstance(data, str) else data
            call = Call.from_dict(data["call"])
            base = None if "base" not in data else Call.from_dict({**vars(call), **data["base"]})
            return cls(str(data["probe"]), call, base)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CertificateError):
                raise
            raise CertificateError(
                f"{data!r} is not a case.", why=str(error), fix="Copy it from a report of ir-core verify."
            ) from error
