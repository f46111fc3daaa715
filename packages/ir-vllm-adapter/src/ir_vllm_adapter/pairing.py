# SPDX-License-Identifier: Apache-2.0
"""Two independent calls of one implementation in a compiled graph become one launch, where it offers that (``pair``).

An attention layer with q and k norms has two small launches where Inductor would have fused one: the norms are opaque
to it, so that compiled bits are eager bits. The pair has the bits of two calls (the verification probes it), and what
is joined is decided once for a graph, never by the number of rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ir_vllm_adapter import graph_ops, log

if TYPE_CHECKING:
    from torch import fx


ARITHMETIC: Final = frozenset(
    (
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
        operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
        operator.and_, operator.or_,
    )
)  # fmt: skip
"""Functions of Python's that graphs have for results and sizes, and that write into nothing."""


def around_lowering(original: Callable[..., Any]) -> Callable[..., Any]:
    """VllmIRLoweringPass.__call__: after vLLM has put the selected implementations into the graph."""

    def lower(self: Any, graph: fx.Graph) -> Any:
        result = original(self, graph)
        log.guarded("join neighbouring norms", lambda: join(graph))
        return result

    return lower


def join(graph: fx.Graph) -> None:
    """Join calls two by two, in place."""
    waiting: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if _is_barrier(node):
            waiting.clear()
            continue
        if node.op != "call_function" or node.target not in graph_ops.PAIRS:
            continue
        first = waiting.pop(node.target, None)
        between = None if first is None or not _alike(first, node) else _needed(first, node)
        if first is None or between is None:
            waiting[node.target] = node
        else:
            _replace(graph, first, node, between)


def _is_barrier(node: fx.Node) -> bool:
    """Whether a node does more than compute its result, or may: nothing is moved across it."""
    import torch

    if node.op != "call_function":
        return node.op in ("call_module", "call_method")
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable) or torch.Tag.nondeterministic_seeded in target.tags
    symbolic = getattr(target, "__module__", "") == "torch" and target.__name__.startswith("sym_")
    return not symbolic and target not in ARITHMETIC


def _alike(first: fx.Node, second: fx.Node) -> bool:
    """Whether two calls have rows of one length and dtype, and the same static arguments."""
    from torch import fx

    if first.kwargs or second.kwargs or "val" not in first.meta or "val" not in second.meta:
        return False
    for mine, theirs in zip(_complete(first), _complete(second), strict=True):
        if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node):
            if (kind := _kind(mine)) is None or kind != _kind(theirs):
                return False
        elif mine is not theirs and (isinstance(mine, fx.Node) or mine != theirs):
            return False
    return True


def _complete(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a call with those that the graph leaves out because they have their default."""
    target: Any = node.target
    return (*node.args, *(argument.default_value for argument in target._schema.arguments[len(node.args) :]))


def _kind(node: fx.Node) -> tuple[Any, ...] | None:
    import torch

    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.dim() or type(value.shape[-1]) is not int:
        return None  # a symbolic length would be fixed by looking at it
    return value.dtype, value.device, value.shape[-1]


def _needed(first: fx.Node, second: fx.Node) -> list[fx.Node] | None:
    """The nodes between the two that the second needs, in order; None if the first is among them."""
    between: list[fx.Node] = []
    node = first.next
    while node is not second:
        between.append(node)
        node = node.next
    wanted, todo = set(), list(second.all_input_nodes)
    candidates = {first, *between}
    while todo:
        node = todo.pop()
        if node in candidates and node not in wanted:
            wanted.add(node)
            todo += node.all_input_nodes
    return None if first in wanted else [node for node in between if node in wanted]


def _replace(graph: fx.Graph, first: fx.Node, second: fx.Node, between: list[fx.Node]) -> None:
    """Put one node in the place of the two; the nodes that the second needs go before it."""
    for node in between:
        first.prepend(node)
    with graph.inserting_before(first):
        both = graph.call_function(graph_ops.PAIRS[first.target], (*_complete(first), *_complete(second)))
        both.meta["val"] = (first.meta["val"], second.meta["val"])
        for index, node in enumerate((first, second)):
            result = graph.call_function(operator.getitem, (both, index))
            result.meta.update(node.meta)
            node.replace_all_uses_with(result)
    graph.erase_node(second)
    graph.erase_node(first)
