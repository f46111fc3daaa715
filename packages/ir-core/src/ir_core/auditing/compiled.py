# SPDX-License-Identifier: Apache-2.0
"""Eager against compiled: the first kernel that Inductor generated whose results differ from its eager source.

Inductor lowers a graph of torch operations to kernels and remembers which node each buffer holds. While the generated
code runs, line by line, every buffer that a kernel has filled is compared with what the node gives eagerly, and then
overwritten with that: so each kernel works on eager inputs, and is judged by itself.
"""

from __future__ import annotations

import linecache
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ir_core.auditing.differences import Difference, difference, same_bits
from ir_core.auditing.inputs import Inputs
from ir_core.auditing.part import Part
from ir_core.auditing.place import Place
from ir_core.auditing.report import Finding, Note, Report
from ir_core.auditing.running import Progress, isolated, result_tensors

_BUFFER: Final = re.compile(r"\bbuf\d+\b")
_KERNEL: Final = re.compile(r"^\s*(?:buf\d+ = )?([\w.]+)\(")
_NO_KERNEL: Final = (
    "assert_size_stride",
    "empty_strided",
    "reinterpret_tensor",
    "del ",
    "return",
    "assert_alignment",
)
_LIMIT: Final = 64
"""Graphs of one wrapper in a process before Dynamo would fall back to eager without a word."""


class _Lowered:
    """A graph as Inductor lowered it: its source, and which node each buffer holds."""

    def __init__(self, lowering: Any) -> None:
        self.source: GraphModule = lowering.orig_gm
        self.nodes: dict[str, Node] = {}
        for buffer in lowering.buffers:
            node = buffer.get_origin_node()
            if node is not None:
                self.nodes[buffer.get_name()] = node

    def eager(self, inputs: list[Any]) -> dict[str, Tensor]:
        """What the node of each buffer gives, by buffer."""
        wanted = {node.name for node in self.nodes.values()}
        found: dict[str, Tensor] = {}

        class Values(Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted and isinstance(value, Tensor):
                    found[n.name] = value.clone()  # a later node may overwrite it
                return value

        copies = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
        Values(self.source).run(*copies)
        return {buffer: found[node.name] for buffer, node in self.nodes.items() if node.name in found}


class _Follower:
    """Follows generated code, line by line."""

    def __init__(self, graphs: dict[str, _Lowered]) -> None:
        self.graphs = graphs
        self.judged: list[str] = []
        self.events: list[tuple[str, Place, Tensor, Difference]] = []
        self._lines: list[tuple[str, int]] = []

    def begin(self, frame: Any, event: str, arg: Any) -> Any:
        """Called for each new frame: follow those of generated code."""
        graph = self.graphs.get(frame.f_code.co_filename)
        if graph is None or event != "call" or frame.f_code.co_name != "call":
            return None
        expected = graph.eager(list(frame.f_locals["args"]))
        line = frame.f_lineno

        def follow(frame: Any, event: str, arg: Any) -> Any:
            nonlocal line
            if event in ("line", "return"):
                self._after(frame, linecache.getline(frame.f_code.co_filename, line), graph, expected)
                line = frame.f_lineno
            return follow

        return follow

    def _after(self, frame: Any, text: str, graph: _Lowered, expected: dict[str, Tensor]) -> None:
        """Compare what the kernel of this line has filled."""
        kernel = _KERNEL.match(text)
        if kernel is None or kernel[1].startswith(_NO_KERNEL):
            return
        name = kernel[1].removesuffix(".run")
        total = None
        for buffer in _BUFFER.findall(text):
            value, eager = frame.f_locals.get(buffer), expected.pop(buffer, None)
            if eager is None or not isinstance(value, Tensor) or value.shape != eager.shape:
                continue
            by = Difference(0, eager.numel(), 0.0, 0)
            if value.dtype == eager.dtype and not same_bits(eager, value):
                by = difference(eager, value)
                value.copy_(eager)
            if total is None or by.elements:
                total = (_place(graph.nodes[buffer]), eager, by)
        if total is not None:
            self.judged.append(name)
            if total[2].elements:
                self.events.append((name, *total))


def _place(node: Node) -> Place:
    """Where the source of a node is in the model."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    # L['source'].layers['0'] and L['self']._modules['up'] are both paths.
    path = re.sub(r"^L\['\w+'\]", "", stack[-1][0]).replace("._modules", "") if stack else ""
    module = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path)
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [line for line in lines if "/torch/" not in line[0]] or lines
    file, line = lines[-1] if lines else ("", 0)
    return Place(module.strip("."), file, int(line))


@contextmanager
def _noting(graphs: dict[str, _Lowered]) -> Iterator[None]:
    """Remember the graphs that Inductor lowers in the block, by the file of the code it generates."""
    from torch._inductor.graph import GraphLowering

    original = GraphLowering.compile_to_module

    def compile_to_module(self: Any) -> Any:
        module = original(self)
        if module.__file__:
            graphs[module.__file__] = _Lowered(self)
        return module

    GraphLowering.compile_to_module = compile_to_module  # type: ignore[method-assign]
    try:
        yield
    finally:
        GraphLowering.compile_to_module = original  # type: ignore[method-assign]


def audit_compiled(model: Callable[..., Any], given: Inputs, progress: Progress) -> Report:
    """The report of the whole batch, compiled against eager."""
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    begun = time.perf_counter()
    source = getattr(model, "_torchdynamo_orig_callable", getattr(model, "_orig_mod", model))
    whole = Part(0, given.batch)
    graphs: dict[str, _Lowered] = {}
    follower = _Follower(graphs)
    # What comes out of a cache was not lowered here, and nothing is known of its buffers.
    fresh = ExitStack()
    fresh.enter_context(dynamo.patch(recompile_limit=_LIMIT))
    fresh.enter_context(inductor.patch(fx_graph_cache=False, fx_graph_remote_cache=False))
    fresh.enter_context(functorch.patch(enable_autograd_cache=False))
    with isolated(given.tensors), fresh:
        _, args, kwargs = given.of(whole)
        eager = result_tensors(source(*args, **kwargs))
        own = time.perf_counter() - begun
        progress(0.1, "compiling")
        compiled = torch.compile(lambda *args, **kwargs: source(*args, **kwargs), dynamic=False)
        with _noting(graphs):
            _, args, kwargs = given.of(whole)
            outputs = result_tensors(compiled(*args, **kwargs))
        progress(0.8, "comparing")
        before = sys.gettrace()
        _, args, kwargs = given.of(whole)
        sys.settrace(follower.begin)
        try:
            compiled(*args, **kwargs)
        finally:
            sys.settrace(before)
    return _report(follower, given, eager, outputs, (time.perf_counter() - begun, own))


def _report(
    follower: _Follower,
    given: Inputs,
    eager: list[Tensor],
    outputs: list[Tensor],
    seconds: tuple[float, float],
) -> Report:
    findings = [_finding(i, event, given.batch) for i, event in enumerate(follower.events)]
    total = Difference(0, 0, 0.0, 0)
    for one, other in zip(eager, outputs, strict=False):
        if one.shape == other.shape and one.dtype == other.dtype:
            total += difference(one, other)
    notes = []
    if total.elements and not findings:
        notes.append(
            Note(
                "unseen",
                "",
                None,
                "the outputs differ, and no generated kernel differs from its graph: the compiler replaced an "
                "operation by others before it generated code (a decomposition), or draws random numbers in another "
                "order",
                True,
            )
        )
    if not follower.judged:
        notes.append(Note("untold", "", None, "no generated kernel was found: nothing was compiled", False))
    return Report(
        mode="compiled",
        batch=given.batch,
        rows=(),
        operations=len(follower.judged),
        judged=len(follower.judged),
        findings=tuple(findings),
        notes=tuple(notes),
        outputs={given.batch: total},
        device=str(given.tensors[0].device),
        seconds=seconds,
    )


def _finding(step: int, event: tuple[str, Place, Tensor, Difference], batch: int) -> Finding:
    name, place, value, by = event
    short = value.dtype in (torch.bfloat16, torch.float16)
    cause = (
        "the fused kernel keeps float32 between operations where eager rounds after each"
        if short
        else "the fused kernel sums in another order, contracts a product and a sum, or approximates a function "
        "otherwise"
    )
    cure = (
        "torch._inductor.config.emulate_precision_casts rounds where eager does"
        if short
        else "nothing here covers it"
    )
    return Finding(
        op=name,
        kind="compiled kernel",
        calls=1,
        varied=1,
        place=place,
        places={place: 1},
        shapes=(tuple(value.shape),),
        by_rows={batch: by},
        alone=batch,
        begins=None,
        cause=cause,
        cure=cure,
        steps=(step,),
    )
