# SPDX-License-Identifier: Apache-2.0
"""Variants of the arguments that are not rows: a weight that is absent or of another dtype, other options.

They are read off the op: its signature, its parameters' defaults and documented values (``op.register_values``).
What these do not say, an op's author can: ``register_cases("my_op", hidden=(64, 4096))``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ir_core.errors import CertificateError

if TYPE_CHECKING:
    from ir_core.meaning import Meaning
    from ir_core.verification.calls import Setting

DTYPES: Final = ("float32", "bfloat16", "float16")
"""Dtypes that tensors are tried in, alone and in pairs."""


@dataclass(frozen=True)
class OpCases:
    """What an op's author adds to what its signature says.

    Args:
        hidden: values of ``hidden_size`` that the op takes; empty: any.
        variants: name -> arguments to replace; a value may be a function of the hidden size.
        dtypes: names of the activation dtypes that the op takes.
    """

    hidden: tuple[int, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES


_registered: dict[str, OpCases] = {}


def register_cases(
    op: str,
    *,
    hidden: Sequence[int] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> None:
    """Say what an op's verification should cover (:class:`OpCases`); a second call replaces the first."""
    _registered[op] = OpCases(tuple(hidden), dict(variants or {}), tuple(dtypes))


def cases_of(op: Meaning) -> OpCases:
    """What the op's author said, or the defaults."""
    return _registered.get(op.name, OpCases())


def values_of(op: Meaning, name: str, given: Any) -> dict[str, Any]:
    """Other values of a parameter that is no tensor, by label: documented ones, its default, and both of a bool.

    A value may be a function of the hidden size. What equals ``given`` is left out.
    """
    found = dict(op.parameter_values.get(name, {}))
    default = op.signature.parameters[name].default
    if default is not inspect.Parameter.empty:
        found.setdefault(str(default), default)
    if isinstance(given, bool):
        found.setdefault(str(not given), not given)
    return {label: value for label, value in found.items() if callable(value) or value != given}


def variants_of(op: Meaning, sample: Sequence[Any], *, every: bool = False) -> dict[str, dict[str, Any]]:
    """Variants by name, each with the arguments it replaces; ``sample`` is a complete argument tuple.

    With ``every`` also those that only random cases try: numbers, and each tensor in each dtype.
    """
    found: dict[str, dict[str, Any]] = {}
    for position, (name, given) in enumerate(zip(op.params, sample, strict=True)):
        if isinstance(given, Tensor):
            if not given.dtype.is_floating_point or position in op.activation_indices[:1]:
                continue
            if position not in op.activation_indices:
                if op.tensor_params.get(name) != "Tensor":
                    found[f"{name}=None"] = {name: None}
                found[f"{name}=other dtype"] = {name: _other_dtype}
            if every:
                for dtype in DTYPES:
                    found[f"{name}={dtype}"] = {name: _Cast(dtype)}
            continue
        for label, value in values_of(op, name, given).items():
            if every or not isinstance(value, float):
                found[f"{name}={label}"] = {name: value}
    found.update({label: dict(values) for label, values in cases_of(op).variants.items()})
    return found


@dataclass(frozen=True)
class _Cast:
    """Casts an argument to a dtype."""

    dtype: str

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.to(getattr(torch, self.dtype))


def _other_dtype(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16 if tensor.dtype == torch.float32 else torch.float32)


def apply(op: Meaning, setting: Setting, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` with the arguments of the setting's variant.

    Raises:
        CertificateError: the op has no such variant.
    """
    if not setting.variant:
        return args
    variants = variants_of(op, args, every=True)
    if setting.variant not in variants:
        raise CertificateError(
            f"Op '{op.name}' has no variant '{setting.variant}'.",
            why=f"It has {', '.join(variants) or 'none'}.",
        )
    values = list(args)
    for name, value in variants[setting.variant].items():
        position = op.params.index(name)
        if value is _other_dtype or isinstance(value, _Cast):
            value = value(values[position])
        elif callable(value):
            value = value(setting.hidden)
        values[position] = value
    return tuple(values)


def statics_of(op: Meaning, args: Sequence[Any]) -> list[str]:
    """The arguments that are no activation and can have other values: tensors, and scalars whose values are known."""
    return [
        name
        for position, (name, given) in enumerate(zip(op.params, args, strict=True))
        if position not in op.activation_indices
        and (isinstance(given, Tensor) or bool(scalars(op, name, given)))
    ]


def scalars(op: Meaning, name: str, given: Any) -> list[Any]:
    """Other values of a scalar, documented ones first; a float without any may also be twice or half as large."""
    found = list(values_of(op, name, given).values())
    if not found and isinstance(given, float):
        found = [given * 2.0, given / 2.0]
    return found


def redraw(
    op: Meaning, statics: str, setting: Setting, args: Sequence[Any], other: Sequence[Any]
) -> list[Any]:
    """``args`` with other values of the arguments that ``statics`` names: ``"weight#1"``, or ``"#2"`` for all.

    The number says which values; tensors are taken from ``other``, which another seed made, in the dtype and on the
    condition (present or ``None``) of ``args``.
    """
    wanted, _, number = statics.partition("#")
    draw = int(number or 1)
    made = list(args)
    for position, name in enumerate(op.params):
        given = args[position]
        if position in op.activation_indices or (wanted and wanted != name):
            continue
        if isinstance(given, Tensor):
            made[position] = other[position].to(given.dtype)
        elif values := scalars(op, name, given):
            value = values[(draw - 1) % len(values)]
            made[position] = value(setting.hidden) if callable(value) else value
    return made
