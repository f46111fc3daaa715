# SPDX-License-Identifier: Apache-2.0
"""After grad: every ir-core op of the graph becomes the implementation that is selected for its fake arguments.

Nothing here looks at the number of rows, so symbolic batch sizes stay symbolic. Selections and traces are kept by
argument metadata for the time of one graph: equal nodes cost a lookup and a copy.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ir_core import fast_path, resolve, torch_library
from ir_core.errors import LoweringError
from ir_core.impl import IrOpImpl
from ir_core.lowering.nodes import ir_op_of, value
from ir_core.lowering.replacement import Replacement, metadata, trace
from ir_core.lowering.report import LoweredNode, LoweringReport
from ir_core.meaning import Meaning
from ir_core.policy import Policy
from ir_core.selection import Selection

_HERE = str(Path(__file__).parents[1])

DONATION = "ir_core_donation"
"""Mark of a copy made for an in-place implementation: whether the user donated what it copies."""

FUNCTIONAL = "ir_core_functional"
"""Mark of an in-place call: the functional op to take if none of its copies can go, and its place in the report."""


class Lowering:
    """The lowering of one graph under one policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.report = LoweringReport()
        self._selected: dict[Hashable, tuple[Selection, IrOpImpl]] = {}
        self._traces: dict[Hashable, Replacement] = {}

    def run(self, graph: fx.Graph) -> LoweringReport:
        """Lower ``graph`` in place."""
        for node in list(graph.nodes):
            found = ir_op_of(node)
            if found is not None and found[1] in ("default", "donating", "maybe_inplace"):
                self._lower(graph, node, *found)
        return self.report

    def _lower(self, graph: fx.Graph, node: fx.Node, op: Meaning, overload: str) -> None:
        args = op.bind(node.args, dict(node.kwargs))
        fakes = tuple(value(arg) for arg in args)
        if any(isinstance(arg, fx.Node) and fake is None for arg, fake in zip(args, fakes, strict=True)):
            self.report.unlowered.append(f"{node} ({op.name}): an argument has no metadata")
            return
        key = (op.name, *map(metadata, fakes))
        if key not in self._selected:
            self._selected[key] = resolve.resolve(op, self.policy, fakes)
        selection, impl = self._selected[key]
        if not fast_path.keeps_whole(impl, self.policy):
            results, form = self._inline(graph, node, key, impl, args, fakes), "inlined"
        elif impl.inplace:
            results, form = self._whole_inplace(graph, node, impl, args, overload), "inplace"
        else:
            node.target = torch_library.of(op).provider(impl.provider)
            node.args, node.kwargs = _short(op, args), {}
            results, form = None, "whole"
        if results is not None:
            _replace(graph, node, results)
        self.report.nodes.append(LoweredNode(node.name, selection, form, _where(node)))

    def _inline(
        self,
        graph: fx.Graph,
        node: fx.Node,
        key: Hashable,
        impl: IrOpImpl,
        args: Sequence[Any],
        fakes: Sequence[Any],
    ) -> list[fx.Node]:
        if key not in self._traces:
            try:
                self._traces[key] = trace(impl.func_impl_fn, fakes)
            except LoweringError as error:
                raise LoweringError(f"{impl.label}: {error.what}", why=error.why, fix=error.fix) from error
        inputs = [arg for arg in args if isinstance(arg, fx.Node)]
        return self._traces[key].insert(graph, inputs, node)

    def _whole_inplace(
        self, graph: fx.Graph, node: fx.Node, impl: IrOpImpl, args: Sequence[Any], overload: str
    ) -> list[fx.Node]:
        """Copies of the activations, and the op that writes into them; whether copies are needed is decided later."""
        complete = list(args)
        copies = []
        layout: dict[str, Any] = {"memory_format": torch.contiguous_format}  # as the results of the op are
        with graph.inserting_before(node):
            for index in impl.op.activation_indices:
                copy = graph.call_function(torch.ops.aten.clone.default, (args[index],), layout)
                fake = value(args[index]).clone(**layout)
                copy.meta = {**node.meta, "val": fake, DONATION: overload != "default"}
                complete[index] = copy
                copies.append(copy)
            target = torch_library.of(impl.op).provider(impl.provider, inplace=True)
            call = graph.call_function(target, _short(impl.op, complete))
            call.meta = {**node.meta, "val": None}
            if impl.functional_fn is not None:
                call.meta[FUNCTIONAL] = (
                    torch_library.of(impl.op).provider(impl.provider),
                    len(self.report.nodes),
                )
        return copies


def _short(op: Meaning, args: Sequence[Any]) -> tuple[Any, ...]:
    """``args`` without trailing defaults, as torch writes the arguments of its nodes and Inductor expects them."""
    parameters = list(op.signature.parameters.values())
    end = len(args)
    while end and not isinstance(args[end - 1], fx.Node) and args[end - 1] == parameters[end - 1].default:
        end -= 1
    return tuple(args[:end])


def _replace(graph: fx.Graph, node: fx.Node, results: Sequence[fx.Node]) -> None:
    """Put ``results`` in the place of what ``node`` yields, and drop it."""
    if not isinstance(value(node), (tuple, list)):
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
                graph.erase_node(user)
    if node.users:  # the tuple itself is used, as a graph output may be
        with graph.inserting_before(node):
            whole = graph.call_function(_tuple, tuple(results))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
    graph.erase_node(node)


def _tuple(*items: Any) -> tuple[Any, ...]:
    return items


def _where(node: fx.Node) -> str:
    lines = [
        line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")
    ]
    outside = [line for line in lines if "<ir_core " not in line and _HERE not in line]
    return outside[-1] if outside else ""
