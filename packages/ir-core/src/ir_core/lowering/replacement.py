# SPDX-License-Identifier: Apache-2.0
"""The graph of an implementation for given argument metadata, traced once and copied in as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from ir_core.errors import LoweringError

MAKES_TENSOR = (torch.Tensor,)


def metadata(arg: Any) -> Hashable:
    """What a trace depends on: of a tensor all but its data and identity, of anything else the value.

    Symbolic sizes count by their expression, so that a trace is reused for the same symbols only.
    """
    if isinstance(arg, torch.Tensor):
        return (
            arg.dtype,
            arg.device,
            tuple(map(_size, arg.shape)),
            tuple(map(_size, arg.stride())),
            _size(arg.storage_offset()),
        )
    if isinstance(arg, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return ("symbol", arg.node.expr)
    if isinstance(arg, (list, tuple)):
        return tuple(map(metadata, arg))
    return (type(arg), arg)


def _size(size: Any) -> Hashable:
    return size if isinstance(size, int) else size.node.expr


@dataclass(frozen=True)
class Replacement:
    """A traced implementation: its nodes in order; its inputs are the tensor and symbol arguments."""

    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    steps: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]

    def insert(self, graph: fx.Graph, args: Sequence[fx.Node], before: fx.Node) -> list[fx.Node]:
        """Copy the steps into ``graph`` in front of ``before``; the nodes that stand for the results."""
        nodes: dict[fx.Node, fx.Node] = dict(zip(self.inputs, args, strict=True))
        with graph.inserting_before(before):
            for step in self.steps:
                copy = graph.node_copy(step, nodes.__getitem__)
                copy.meta = {**step.meta, **_provenance(before)}
                nodes[step] = copy
        return [nodes[result] for result in self.results]


def _provenance(node: fx.Node) -> dict[str, Any]:
    """The metadata that says where a node comes from."""
    keys = ("stack_trace", "nn_module_stack", "source_fn_stack", "original_aten", "from_node")
    return {key: node.meta[key] for key in keys if key in node.meta}


def trace(fn: Callable[..., Any], args: Sequence[Any]) -> Replacement:
    """Trace ``fn`` with fake arguments into the ops that Inductor works with.

    Raises:
        LoweringError: the function cannot be traced; its author should register it with ``opaque=True``.
    """
    taken = [i for i, arg in enumerate(args) if isinstance(arg, (torch.Tensor, torch.SymInt, torch.SymFloat))]

    def call(*inputs: Any) -> Any:
        complete = list(args)
        for index, value in zip(taken, inputs, strict=True):
            complete[index] = value
        return fn(*complete)

    try:
        mode = next(args[i].fake_mode for i in taken if isinstance(args[i], torch.Tensor))
        with torch.no_grad(), mode:
            # The process-wide decompositions of Inductor: what it would have made of these ops itself.
            traced = make_fx(call, decomposition_table=select_decomp_table(), tracing_mode="real")(
                *(args[i] for i in taken)
            )
    except Exception as error:
        raise LoweringError(
            f"{getattr(fn, '__qualname__', fn)} cannot be traced into the graph: {type(error).__name__}: {error}",
            why="An implementation that is not opaque is traced with fake tensors, and must consist of torch ops.",
            fix="Register it with opaque=True; the graph then calls it as one op.",
        ) from error
    graph = traced.graph
    graph.eliminate_dead_code()
    nodes = list(graph.nodes)
    inputs = tuple(n for n in nodes if n.op == "placeholder")
    steps = tuple(n for n in nodes if n.op not in ("placeholder", "output"))
    if any(step.op == "get_attr" for step in steps):
        raise LoweringError(
            f"{getattr(fn, '__qualname__', fn)} holds tensors of its own, which a graph cannot take over.",
            fix="Make them from arguments, or register the implementation with opaque=True.",
        )
    returned = nodes[-1].args[0]
    results = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    return Replacement(graph, inputs, steps, results)
