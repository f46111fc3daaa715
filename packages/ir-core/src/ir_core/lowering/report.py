# SPDX-License-Identifier: Apache-2.0
"""What a lowering did, as a value: one record a node, printed, logged and traced from here."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

from ir_core.selection import Selection


@dataclass(frozen=True)
class LoweredNode:
    """One op of a graph and what it became.

    Args:
        node: the node's name.
        selection: why.
        form: ``whole`` (one opaque op), ``inplace`` (one op that writes into its inputs) or ``inlined``.
        where: the line of the user's code, if known.
    """

    node: str
    selection: Selection
    form: str
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "node": self.node,
            "form": self.form,
            "where": self.where,
            **self.selection.to_dict(),
        }


@dataclass
class LoweringReport:
    """What was selected for each op of one graph."""

    nodes: list[LoweredNode] = field(default_factory=list)
    unlowered: list[str] = field(default_factory=list)
    clones_removed: int = 0
    clones_kept: int = 0

    def summary(self) -> str:
        """``rms_norm: portable*4; fused_add_rms_norm: portable*2``."""
        counts: dict[str, collections.Counter[str]] = {}
        for node in self.nodes:
            counts.setdefault(node.selection.op, collections.Counter())[node.selection.provider] += 1
        return "; ".join(
            f"{op}: " + ", ".join(f"{provider}*{n}" for provider, n in sorted(by.items()))
            for op, by in sorted(counts.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "nodes": [node.to_dict() for node in self.nodes],
            "unlowered": self.unlowered,
            "clones_removed": self.clones_removed,
            "clones_kept": self.clones_kept,
        }
