# SPDX-License-Identifier: Apache-2.0
"""What ir-core takes over of vLLM beyond the norms, and what it leaves: decided once a process, by dtype, as data.

An op is taken over in batch-invariant mode (or where a provider of it is named), and only where that is no loss: on an
accelerator for which ir-core has nothing but ``portable``, vLLM's own kernel runs, unless ``portable`` was named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import torch

    from ir_core import IrOp, Policy, Target

PORTABLE: Final = "portable"
Function = TypeVar("Function", bound="Callable[..., Any]")


@dataclass(frozen=True)
class Runs:
    """What runs for one dtype.

    Args:
        provider: ir-core's provider.
        distribution: the distribution that brings it.
        order: the order that it computes, or ``None``.
    """

    provider: str
    distribution: str
    order: str | None


@dataclass(frozen=True)
class Takeover:
    """One op of ir-core behind one kind of vLLM's kernels.

    Args:
        op: ir-core's op.
        seams: the points of vLLM, as dotted names, at which it is called.
        runs: what runs, by dtype ("bfloat16").
        left: why vLLM's own kernel stays, by dtype.
    """

    op: str
    seams: tuple[str, ...]
    runs: dict[str, Runs] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def at(self, *seams: str) -> Takeover:
        """The same with more seams."""
        return Takeover(self.op, tuple(dict.fromkeys((*self.seams, *seams))), self.runs, self.left)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "op": self.op,
            "seams": list(self.seams),
            "runs": {
                dtype: {"provider": r.provider, "distribution": r.distribution, "order": r.order}
                for dtype, r in self.runs.items()
            },
            "left": dict(self.left),
        }


def wanted(name: str) -> bool:
    """Whether vLLM should run what ir-core selects for the op: in batch-invariant mode, or where it is named."""
    from ir_core import current

    policy = current()
    return not policy.disabled and (policy.invariant(name) or bool(policy.for_op(name).named))


def decide(
    op: IrOp, samples: Iterable[tuple[Any, ...]], policy: Policy | None = None, target: Target | None = None
) -> Takeover:
    """Which dtypes of an op are taken over on this device.

    Args:
        op: the op.
        samples: complete arguments of a call for each dtype, on any device: only their facts are read.
        policy: the requirement; by default the current one.
        target: the device; by default this process's.

    Returns:
        the decision, with no seam yet.
    """
    from ir_core import current
    from ir_core import resolve as resolving
    from ir_vllm_adapter import state
    from ir_vllm_adapter.standing import target_here

    policy = current() if policy is None else policy
    target = target_here(state.STATE.index) if target is None else target
    found = Takeover(op.name, ())
    for sample in samples:
        dtype = str(sample[0].dtype).removeprefix("torch.")
        chosen = resolving.select(op, policy, target, sample, full=False)
        if chosen.chosen is None:
            found.left[dtype] = "no implementation of ir-core qualifies"
            continue
        impl = op.impls[chosen.provider]
        slow = impl.provider == PORTABLE and target.kind != "cpu"
        if slow and PORTABLE not in policy.for_op(op.name).named and PORTABLE not in policy.prefer:
            reasons = "; ".join(
                f"{c.provider}: {c.reason}" for c in chosen.candidates if not c.chosen and not c.verdict
            )
            found.left[dtype] = (
                f"ir-core has only portable here{f' ({reasons})' if reasons else ''}, which is slow"
            )
        else:
            found.runs[dtype] = Runs(impl.provider, impl.distribution, impl.order)
    return found


def dtypes_of(takeover: Takeover) -> frozenset[torch.dtype]:
    """The dtypes that are taken over, as torch has them."""
    import torch

    return frozenset(getattr(torch, name) for name in takeover.runs)


_inside = threading.local()


def once(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """``ours``, and ``theirs`` while a call of one of ours is running in this thread.

    What stands behind an ATen op must not come back to itself: a native implementation may call that very op.
    """

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "running", False):
            return theirs(*args, **kwargs)
        _inside.running = True
        try:
            return ours(*args, **kwargs)
        finally:
            _inside.running = False

    return guarded
