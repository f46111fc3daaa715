# SPDX-License-Identifier: Apache-2.0
"""Tensor-parallel ranks must run the same implementations: a shard reduced in another order gives other bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ir_vllm_adapter.errors import AgreementError

Ballot: TypeAlias = "dict[str, list[str]]"
"""op -> what would run, in order, each as ``provider (distribution version) digest``."""


def ballot(index: int | None = None) -> Ballot:
    """What this rank would run for every op of ir-core, on its own device."""
    from ir_core import current, get_op
    from ir_core.catalog import op_names
    from ir_vllm_adapter.ir_seam import provider_uuid
    from ir_vllm_adapter.standing import order, target_here

    mine: Ballot = {}
    for name in op_names():
        op = get_op(name)
        mine[name] = []
        for provider in order(op, current(), target_here(index)):
            impl = op.impls[provider]
            mine[name].append(f"{provider} ({impl.distribution} {impl.version}) {provider_uuid(impl)[:12]}")
    return mine


def compare(ballots: Sequence[Ballot]) -> None:
    """Raise :class:`AgreementError` with both lists if any rank's differs from rank 0's."""
    first = ballots[0]
    for rank, other in enumerate(ballots[1:], start=1):
        differing = [name for name in sorted({*first, *other}) if first.get(name) != other.get(name)]
        if differing:
            lines = [
                f"{name}: rank 0: {', '.join(first.get(name, ['(no such op)']))}; "
                f"rank {rank}: {', '.join(other.get(name, ['(no such op)']))}"
                for name in differing
            ]
            raise AgreementError(
                f"Tensor-parallel ranks 0 and {rank} would run different implementations.",
                why="\n".join(lines),
                fix="Install the same packages and set the same IR_* variables on every rank, on devices of one kind.",
            )


def check(group: Any, mine: Callable[[], Ballot]) -> None:
    """Exchange ballots over vLLM's tensor-parallel group (its CPU group) and compare them. A collective call.

    Args:
        group: vLLM's GroupCoordinator; a lone rank has nothing to compare.
        mine: makes this rank's ballot.

    Raises:
        AgreementError: on every rank alike.
    """
    import torch.distributed as dist

    if group.world_size == 1:
        return
    gathered: list[Any] = [None] * group.world_size
    dist.all_gather_object(gathered, mine(), group=group.cpu_group)
    compare(gathered)
