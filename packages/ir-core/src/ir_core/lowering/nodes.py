# SPDX-License-Identifier: Apache-2.0
"""What the passes ask of graph nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from ir_core.meaning import Meaning
from ir_core.torch_library import NAMESPACE, op_of


def overload_of(node: fx.Node) -> OpOverload[..., Any] | None:
    """The torch op that the node calls, if it calls one."""
    if node.op != "call_function":
        return None
    if isinstance(node.target, OpOverload):
        return node.target
    if isinstance(node.target, OpOverloadPacket):
        found: OpOverload[..., Any] = node.target.default
        return found
    return None


def ir_op_of(node: fx.Node) -> tuple[Meaning, str] | None:
    """The ir-core op that the node calls, and by which overload; ``None`` for everything else."""
    overload = overload_of(node)
    if overload is None or overload.namespace != NAMESPACE:
        return None
    op = op_of(overload)
    return None if op is None else (op, overload._overloadname)


def value(node: object) -> Any:
    """The fake value of a node, after or before AOTAutograd; ``None`` if it has none."""
    if not isinstance(node, fx.Node):
        return node
    found = node.meta.get("val")
    return node.meta.get("example_value") if found is None else found


def tensors(node: fx.Node) -> list[torch.Tensor]:
    """The fake tensors that a node yields."""
    found = value(node)
    items = found if isinstance(found, (tuple, list)) else (found,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def storages(node: fx.Node) -> set[int]:
    """Identities of the storages behind a node's fake tensors: nodes that share one may alias."""
    return {tensor.untyped_storage()._cdata for tensor in tensors(node)}


def written_args(node: fx.Node) -> list[fx.Node] | None:
    """The argument nodes that a node writes into; ``None`` if that is unknown and it may write into any."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    if node.op != "call_function":
        return None
    overload = overload_of(node)
    if overload is None:
        if isinstance(node.target, HigherOrderOperator):
            return None
        return []  # Python functions on sizes, getitem
    written: list[fx.Node] = []
    for index, argument in enumerate(overload._schema.arguments):
        if argument.is_write:
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            items = given if isinstance(given, (tuple, list)) else (given,)
            written += [item for item in items if isinstance(item, fx.Node)]
    return written
