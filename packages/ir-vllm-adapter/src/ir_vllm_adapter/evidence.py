# SPDX-License-Identifier: Apache-2.0
"""What is known of each part on this device: from certificates, or by construction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ir_vllm_adapter import kinds
from ir_vllm_adapter.errors import RefusedError
from ir_vllm_adapter.parts import Part


def look_up(part: Part, target: Any) -> Part:
    """The part with its evidence on ``target``. Reads certificates; runs nothing."""
    found = certificate(part, target)
    reason = by_construction(part, target)
    if reason and (
        found is None or found.verdict != "refuted"
    ):  # a counterexample is worth more than an argument
        return replace(part, verdict="by construction", detail=reason)
    return part if found is None else with_certificate(part, found)


def with_certificate(part: Part, found: Any) -> Part:
    """The part with what a certificate says of it."""
    if found.verdict == "inconclusive":
        return replace(part, date=found.created, detail=f"inconclusive: {found.summary()}")
    return replace(part, verdict=found.verdict, date=found.created, detail=found.summary())


def certificate(part: Part, target: Any) -> Any:
    """The certificate that counts for the part on this device, or ``None``."""
    from ir_core.verification import evidence

    return evidence.certificate_of(part.name, part.runs, part.uuid, target)


def by_construction(part: Part, target: Any) -> str:
    """Why the part needs no certificate, or "".

    Element-wise kernels of a GPU run the same instructions for every element. On a CPU they do not: a loop's vectors
    and its tail may call different exponentials, and where the tail begins depends on the number of elements.
    """
    if part.by == "ir-core":
        return "element-wise steps in a fixed order" if part.runs == "portable" else ""
    if part.kind == "embedding":
        return "copies rows"
    if part.kind == "all-reduce" and part.configuration["tensor_parallel"] == 2:
        return "two ranks: an addition of two numbers has one order"
    if part.kind in kinds.ELEMENT_WISE and target.kind != "cpu":
        reducing = any(part.runs.startswith(f"{name}.") for name in kinds.REDUCING_ACTIVATIONS)
        return "" if reducing else "element-wise: no sum to regroup"
    return ""


def require(parts: Iterable[Part]) -> None:
    """With IR_STRICT=1: every part must be answered for.

    Raises:
        RefusedError: a part is refuted or was not checked on this device; all of them are named.
    """
    missing = [part for part in parts if not part.answered_for]
    if not missing:
        return
    lines = [f"{part.kind}: {part.runs} ({part.home}) is {part.verdict}{_because(part)}" for part in missing]
    raise RefusedError(
        "IR_STRICT=1: parts of this model's forward pass are not known to be batch-invariant on this device.",
        why="\n".join(lines),
        fix="Make the evidence with `python -m ir_vllm_adapter verify MODEL_FOLDER`, with the options of this engine; "
        "choose another backend for what is refuted; or start without IR_STRICT=1.",
    )


def _because(part: Part) -> str:
    return f": {part.detail}" if part.detail else ""
