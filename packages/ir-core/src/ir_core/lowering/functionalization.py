# SPDX-License-Identifier: Apache-2.0
"""Before AOTAutograd: ``maybe_inplace`` becomes the functional overload ``donating``, and donations are checked.

``donating`` has the schema of ``default``. That it is another overload carries the donation through AOTAutograd
to the lowering, which may then let an in-place implementation reuse the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ir_core import torch_library
from ir_core.errors import LoweringError
from ir_core.lowering.nodes import ir_op_of, tensors
from ir_core.meaning import Meaning


def functionalize(graph: fx.Graph) -> int:
    """Replace ``maybe_inplace`` in a graph that Dynamo captured; the number of nodes replaced.

    Raises:
        LoweringError: an input is used after it was donated; the message names both nodes.
    """
    order: dict[fx.Node, int] = {}
    count = 0
    for node in graph.nodes:
        found = ir_op_of(node)
        if found is None or found[1] != "maybe_inplace":
            continue
        op, _ = found
        order = order or {n: i for i, n in enumerate(graph.nodes)}
        args = op.bind(node.args, dict(node.kwargs))
        _check_donations(op, node, args, order)
        node.target = torch_library.of(op).donating
        node.args, node.kwargs = args, {}
        count += 1
    return count


def _check_donations(op: Meaning, node: fx.Node, args: tuple[Any, ...], order: dict[fx.Node, int]) -> None:
    seen: list[fx.Node] = []
    for index in op.activation_indices:
        donated = args[index]
        if not isinstance(donated, fx.Node):
            raise LoweringError(f"{node} donates '{op.params[index]}', which is no tensor of the graph.")
        if twin := next((other for other in seen if _may_overlap(donated, other)), None):
            raise LoweringError(
                f"'{twin}' and '{donated}' are donated to {op.name}.maybe_inplace at node '{node}' and share memory.",
                why="Each result takes the memory of one of them." + _where(node),
                fix=f"Call {op.name} itself, or clone one of them before donating it.",
            )
        seen.append(donated)
        for other in order:
            if not _may_overlap(donated, other):
                continue
            later = next((user for user in other.users if order[user] > order[node]), None)
            if later is not None:
                raise LoweringError(
                    f"'{donated}' is donated to {op.name}.maybe_inplace at node '{node}' and used again "
                    f"{'' if other is donated else f'through {other!r} '}at node '{later}'.",
                    why="maybe_inplace may overwrite the activations it is given; their contents are undefined "
                    "after the call." + _where(later),
                    fix=f"Call {op.name} itself, or clone the input before donating it.",
                )


def _where(node: fx.Node) -> str:
    trace = (node.stack_trace or "").strip().splitlines()
    return f" The later use is at: {trace[-1].strip()}" if trace else ""


def _may_overlap(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes may share memory, judged by their fake tensors."""
    if one is other:
        return True
    return any(_tensors_overlap(a, b) for a in tensors(one) for b in tensors(other))


def _tensors_overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    # Column slices of one matrix, as q, k and v of a qkv projection, interleave without touching.
    if a.dim() == b.dim() >= 2 and a.dtype == b.dtype:
        rows = [(t.stride(-2), t.stride(-1), t.storage_offset(), t.shape[-1]) for t in (a, b)]
        if all(isinstance(number, int) for row in rows for number in row):
            (step, unit, start, width), (step_b, unit_b, start_b, width_b) = rows
            if step == step_b and unit == unit_b == 1:
                begin, begin_b = start % step if step else start, start_b % step if step else start_b
                fits = begin + width <= step and begin_b + width_b <= step
                return not (fits and (begin + width <= begin_b or begin_b + width_b <= begin))
    return True
