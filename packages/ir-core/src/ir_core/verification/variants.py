# SPDX-License-Identifier: Apache-2.0
"""Variants of the arguments that are not rows: a weight that is absent or of another dtype, other options.

They are made from the op's signature. What a signature does not say, an op's author can:
``register_cases("my_op", hidden=(64, 4096), variants={"wide window": {"window": 256}})``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from ir_core.errors import CertificateError

if TYPE_CHECKING:
    from ir_core.op import IrOp
    from ir_core.verification.calls import Setting


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
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")


_registered: dict[str, OpCases] = {}

# Options of the project's own ops, by parameter: half a row counts; the tanh approximation of gelu.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "variance_size": {"variance_size=half": lambda hidden: max(hidden // 2, 1)},
    "approximate": {"approximate=tanh": "tanh"},
}


def register_cases(
    op: str,
    *,
    hidden: Sequence[int] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
) -> None:
    """Say what an op's verification should cover (:class:`OpCases`); a second call replaces the first."""
    _registered[op] = OpCases(tuple(hidden), dict(variants or {}), tuple(dtypes))


def cases_of(op: IrOp) -> OpCases:
    """What the op's author said, or the defaults."""
    return _registered.get(op.name, OpCases())


def _weights(op: IrOp, sample: Sequence[Any]) -> list[str]:
    return [
        name
        for name, arg in zip(op.params, sample, strict=True)
        if isinstance(arg, torch.Tensor) and arg.dtype.is_floating_point and name not in op.activations
    ]


def variants_of(op: IrOp, sample: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Variants by name, each with the arguments it replaces; ``sample`` is a complete argument tuple."""
    found: dict[str, dict[str, Any]] = {}
    for name in _weights(op, sample):
        if op.tensor_params.get(name) != "Tensor":
            found[f"{name}=None"] = {name: None}
        found[f"{name}=other dtype"] = {name: _other_dtype}
    for name in op.params:
        for label, value in _OPTIONS.get(name, {}).items():
            found[label] = {name: value}
    found.update({label: dict(values) for label, values in cases_of(op).variants.items()})
    return found


def _other_dtype(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16 if tensor.dtype == torch.float32 else torch.float32)


def apply(op: IrOp, setting: Setting, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` with the arguments of the setting's variant.

    Raises:
        CertificateError: the op has no such variant.
    """
    if not setting.variant:
        return args
    variants = variants_of(op, args)
    if setting.variant not in variants:
        raise CertificateError(
            f"Op '{op.name}' has no variant '{setting.variant}'.",
            why=f"It has {', '.join(variants) or 'none'}.",
        )
    values = list(args)
    for name, value in variants[setting.variant].items():
        position = op.params.index(name)
        if value is _other_dtype:
            value = _other_dtype(values[position])
        elif isinstance(value, Callable):  # type: ignore[arg-type]
            value = value(setting.hidden)
        values[position] = value
    return tuple(values)
