# SPDX-License-Identifier: Apache-2.0
"""Remove the copies that protect nothing, so that an in-place implementation works in place.

A copy ``c = clone(o)`` that an in-place op writes into can go, and the op write into ``o``, if nothing can see that
``o`` changes. With "alias" meaning: shares a storage, judged by the fake tensors, which overestimates:

1. nothing that aliases ``o`` is used after the first write into the copy (but for the copy and its aliases);
2. nothing else writes into an alias of ``o`` or of ``c`` while both live;
3. ``o`` is not the memory of a graph input, unless the user donated it, nor of a parameter or constant;
4. removing it makes no graph output share memory with a graph input or with another output.

Whatever cannot be proved keeps its copy.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import replace

import torch
from torch import fx

from ir_core.lowering.lowering_pass import DONATION, FUNCTIONAL
from ir_core.lowering.nodes import ir_op_of, storages, tensors, written_args
from ir_core.lowering.report import LoweringReport


class _Aliases:
    """Who may share memory with whom, who uses it and who writes into it, in program order."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.output = next(node for node in reversed(graph.nodes) if node.op == "output")
        self.storages = {node: storages(node) for node in self.order}
        self.by_storage: dict[int, list[fx.Node]] = defaultdict(list)
        for node, found in self.storages.items():
            for storage in found:
                self.by_storage[storage].append(node)
        self.writes = {node: written_args(node) for node in self.order}

    def of(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that may share memory with ``node``, itself included."""
        return {node}.union(*(self.by_storage[storage] for storage in self.storages[node]))

    def merge(self, copy: fx.Node, original: fx.Node) -> None:
        """The aliases of ``copy`` are aliases of ``original`` from now on, and ``copy`` is gone."""
        group = self.of(copy) - {copy}
        for storage in self.storages[original]:
            self.by_storage[storage] += [node for node in group if node not in self.by_storage[storage]]
        for node in group:
            self.storages[node] = self.storages[node] | self.storages[original]
        for storage in self.storages.pop(copy):
            self.by_storage[storage] = [node for node in self.by_storage[storage] if node is not copy]
        del self.order[copy], self.writes[copy]
        for user in group | set(original.users):
            if user in self.order:
                self.writes[user] = written_args(user)


def eliminate_clones(graph: fx.Graph) -> tuple[int, int]:
    """Remove the copies that lowering made and nothing needs; (removed, kept)."""
    copies = [node for node in graph.nodes if DONATION in node.meta]
    if not copies:
        return 0, 0
    aliases = _Aliases(graph)
    removed = 0
    for copy in copies:
        if _removable(copy, aliases):
            original = copy.args[0]
            assert isinstance(original, fx.Node)
            copy.replace_all_uses_with(original)
            graph.erase_node(copy)
            aliases.merge(copy, original)
            removed += 1
    return removed, len(copies) - removed


def prefer_functional(graph: fx.Graph, report: LoweringReport) -> int:
    """Where every copy of an in-place call had to stay, call its functional form on the originals; copies dropped."""
    dropped = 0
    for call in [node for node in graph.nodes if FUNCTIONAL in node.meta]:
        overload, number = call.meta[FUNCTIONAL]
        found = ir_op_of(call)
        assert found is not None
        copies = [call.args[index] for index in found[0].activation_indices]
        if not all(isinstance(copy, fx.Node) and DONATION in copy.meta for copy in copies):
            continue  # one of them can be worked in place, which saves as much
        with graph.inserting_before(call):
            args = tuple(arg.args[0] if arg in copies else arg for arg in call.args)
            whole = graph.call_function(overload, args)
            fakes = tuple(copy.meta["val"] for copy in copies)
            several = len(copies) > 1
            whole.meta = {**call.meta, "val": fakes if several else fakes[0]}
            results = [whole]
            if several:
                results = [graph.call_function(operator.getitem, (whole, i)) for i in range(len(copies))]
        graph.erase_node(call)
        for copy, result in zip(copies, results, strict=True):
            result.meta = {key: held for key, held in copy.meta.items() if key != DONATION}
            copy.replace_all_uses_with(result)
            graph.erase_node(copy)
        report.nodes[number] = replace(report.nodes[number], form="whole")
        dropped += len(copies)
    return dropped


def _removable(copy: fx.Node, aliases: _Aliases) -> bool:
    original = copy.args[0]
    if not isinstance(original, fx.Node) or not _same_layout(copy, original):
        return False
    ours, theirs = aliases.of(copy), aliases.of(original)
    order = aliases.order
    if any(node.op == "get_attr" for node in theirs):
        return False
    if any(node.op == "placeholder" for node in theirs) and not copy.meta[DONATION]:
        return False
    if ours & theirs - {copy, original}:  # already entangled: two arguments of one op, say
        return False
    first_write = None
    for node, written in aliases.writes.items():
        if written is None:  # may write into any argument
            written = list(node.all_input_nodes) if not _reads_only(node) else []
        hits_ours = any(arg in ours for arg in written)
        hits_theirs = any(arg in theirs for arg in written)
        if hits_theirs and order[node] > order[copy]:
            return False
        if hits_ours and (first_write is None or order[node] < first_write):
            first_write = order[node]
    if first_write is None:
        return False  # nothing writes into it: not a copy of ours
    for alias in theirs:
        if any(user is not copy and order[user] >= first_write for user in alias.users):
            return False
    returned = set(aliases.output.all_input_nodes)
    return not (returned & ours and (returned & theirs or any(node.op == "placeholder" for node in theirs)))


def _reads_only(node: fx.Node) -> bool:
    name = getattr(node.target, "_name", "")
    return name in ("triton_kernel_wrapper_functional", "auto_functionalized", "auto_functionalized_v2")


def _same_layout(copy: fx.Node, original: fx.Node) -> bool:
    one, other = tensors(copy), tensors(original)
    if len(one) != 1 or len(other) != 1:
        return False
    a, b = one[0], other[0]
    same = a.dtype == b.dtype and a.device == b.device and _equal(a.shape, b.shape)
    # Where rows overlap (an expanded tensor), writing one element writes several.
    return same and _equal(a.stride(), b.stride())


def _equal(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

    return len(a) == len(b) and all(
        x is y or statically_known_true(sym_eq(x, y))
        if isinstance(x, torch.SymInt) or isinstance(y, torch.SymInt)
        else x == y
        for x, y in zip(a, b, strict=True)
    )
