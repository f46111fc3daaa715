# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, how they are parsed and how they complete; imports no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    import torch

CORE_OPS: Final = (
    *(
        "attention",
        "bmm",
        "fused_add_rms_norm",
        "gelu_and_mul_sparse",
        "layer_norm",
        "linear",
        "linear_partial",
    ),
    *("log_softmax", "logsumexp", "mean", "pointwise", "rms_norm", "softmax", "sum"),
)
"""The core's own ops, for completion without importing them; a test compares it with the registry."""

DTYPES: Final = ("bfloat16", "float16", "float32")
_SHORT: Final = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
}


def _offered() -> dict[str, set[str]]:
    """Providers by op, those of installed packs included; read from the packs' data, without their code."""
    from importlib_metadata import entry_points

    found = {name: {"native", "portable"} for name in CORE_OPS}
    for point in entry_points(group="ir_core.kernels"):
        try:
            pack = point.load()
            for name in pack.get("ops", {}):
                found.setdefault(name, {"native"})
            for spec in pack.get("implementations", ()):
                found.setdefault(spec["op"], {"native"}).add(spec["provider"])
        except Exception:  # a broken pack completes nothing
            continue
    return found


def complete_op(incomplete: str) -> list[str]:
    """Names of ops, those of installed packs included, that begin so."""
    return sorted(name for name in _offered() if name.startswith(incomplete))


def complete_implementation(incomplete: str) -> list[str]:
    """Ops that begin so, and once an op is written out, its implementations: ``rms_norm/portable``."""
    offered = _offered()
    if "/" not in incomplete:
        return sorted(name for name in offered if name.startswith(incomplete))
    op = incomplete.partition("/")[0]
    labels = (f"{op}/{provider}" for provider in offered.get(op, ()))
    return sorted(label for label in labels if label.startswith(incomplete))


def complete_priority(incomplete: str) -> list[str]:
    """A list of providers, continued by those that begin as its last part does and are not in it yet."""
    before, comma, last = incomplete.rpartition(",")
    providers = set().union(*_offered().values()) - set(before.split(","))
    return sorted(before + comma + name for name in providers if name.startswith(last))


def complete_dtype(incomplete: str) -> list[str]:
    """Names of dtypes that begin so."""
    return [name for name in DTYPES if name.startswith(incomplete)]


def parse_shape(text: str) -> tuple[int, ...]:
    """``"4x4096"`` as (4, 4096)."""
    if not re.fullmatch(r"\d+([x,]\d+)*", text):
        raise typer.BadParameter(f"{text!r} is no shape; write it as 4x4096")
    return tuple(int(part) for part in re.split("[x,]", text))


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name; ``bf16``, ``fp16`` and ``fp32`` are understood."""
    import torch

    found = getattr(torch, _SHORT.get(name, name.removeprefix("torch.")), None)
    if not isinstance(found, torch.dtype):
        raise typer.BadParameter(f"{name!r} is no dtype; for example {', '.join(DTYPES)}")
    return found


def parse_device(name: str | None) -> str:
    """The device of that name, with its index; by default the first one that ``doctor`` lists."""
    import torch

    from ir_core import platforms

    if name is None:
        return platforms.targets()[0].device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"{name!r} is no device; for example cpu or cuda:0") from None
    return name if device.type == "cpu" or ":" in name else f"{name}:0"


def parse_assignments(texts: list[str] | None) -> dict[str, Any]:
    """``["epsilon=1e-5", "weight=none"]`` as a mapping of names to Python values."""
    import ast

    values: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} assigns nothing; write NAME=VALUE")
        try:
            values[name] = None if value.lower() == "none" else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


Json = Annotated[bool, typer.Option("--json", help="Print the data as JSON.")]
OpName = Annotated[str, typer.Argument(help="Name of the op.", autocompletion=complete_op, metavar="OP")]
Shape = Annotated[str, typer.Option("--shape", help="Shape of the activations.", metavar="4x4096")]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="Dtype of the activations.", autocompletion=complete_dtype, metavar="DTYPE"),
]
WeightDtype = Annotated[
    str | None,
    typer.Option(
        "--weight-dtype",
        help="Dtype of the other tensors, if it is another.",
        autocompletion=complete_dtype,
        metavar="DTYPE",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device of the call; by default the first one found.", metavar="DEVICE"),
]
Assign = Annotated[
    list[str] | None,
    typer.Option("--arg", help="Give a parameter this value; may be repeated.", metavar="NAME=VALUE"),
]
BatchInvariant = Annotated[
    bool | None,
    typer.Option(
        "--batch-invariant/--any",
        help="Ask for batch-invariant implementations, or not; by default VLLM_BATCH_INVARIANT decides.",
    ),
]
