# SPDX-License-Identifier: Apache-2.0
"""How ir-core's candidates for an op stand before any call: the order for a priority list, with reasons.

vLLM wants a list at start-up, when there are no arguments yet. The judgement is ir-core's own, candidate by
candidate, with one question left out: whether a predicate accepts the arguments. vLLM asks that at the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ir_core import Candidate, IrOp, Policy, Target


def standing(op: IrOp, policy: Policy, target: Target) -> tuple[Candidate, ...]:
    """Every candidate in the order of ``ir_core.selection.ladder``, accepted or rejected with the reason.

    The first accepted one is marked as chosen: it runs unless its predicate refuses the arguments.
    """
    from ir_core import select

    return select(op, policy, target, None).candidates


def order(op: IrOp, policy: Policy, target: Target) -> list[str]:
    """Accepted providers in order, up to and including the first that takes every argument."""
    from ir_core import resolve

    return resolve.priority(op, policy, [target])


def target_here(index: int | None = None) -> Target:
    """The target of this process: vLLM's device of that index; else the first accelerator, else the CPU."""
    import sys

    import torch

    from ir_core import platforms

    module = sys.modules.get("vllm.platforms")
    platform = None if module is None else module.current_platform
    kind = getattr(platform, "device_type", None)
    if kind == "cpu":
        return platforms.target_of(torch.device("cpu"))
    if kind in ("cuda", "xpu"):
        return platforms.target_of(torch.device(kind, index or 0))
    accelerators = [target for target in platforms.targets() if target.kind != "cpu"]
    return accelerators[0] if accelerators else platforms.target_of(torch.device("cpu"))
