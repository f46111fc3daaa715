# SPDX-License-Identifier: Apache-2.0
"""Neighbouring calls in a graph become one launch only where nothing can change by it. Graphs of torch alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import ir_core
from ir_core import IrOp
from ir_vllm_adapter import counters, graph_ops, pairing

W, W2 = torch.randn(8), torch.randn(8)
CALLED: list[str] = []


@pytest.fixture(scope="module")
def norm() -> Iterator[Callable[..., Tensor]]:
    """The graph op of an implementation that does two calls in one launch."""

    def adapter_pairing_op(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        return (x * (1 if weight is None else weight) + epsilon).contiguous()

    op: IrOp = ir_core.register_op(adapter_pairing_op, has_reduction=True)
    native = op.impls["native"].impl_fn

    def both(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
        CALLED.append("both")
        return native(*first), native(*second)

    impl = op.register_impl("paired", batch_invariant=True, pair=both)(adapter_pairing_op)
    yield graph_ops.functional(op, impl)
    op.unregister()


def joined(function: Callable[..., Any], x: Tensor) -> tuple[fx.GraphModule, int]:
    """The graph of ``function(x, w, w2)`` after joining, run and compared; and how many launches of two it has."""
    args = x, W, W2
    traced = make_fx(function, tracing_mode="fake")(*args)
    pairing.join(traced.graph)
    traced.graph.lint()
    traced.recompile()
    CALLED.clear()
    got, want = traced(*(a.clone() for a in args)), function(*(a.clone() for a in args))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    return traced, CALLED.count("both")


def qkv(norm: Callable[..., Tensor], x: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
    """As a layer has it: views, a norm and what uses it for q, then the same for k."""
    q, k, v = x.split([16, 8, 8], -1)
    q = norm(q.unflatten(-1, (2, 8)), w, 1e-6, None).flatten(-2)
    k = norm(k.unflatten(-1, (1, 8)), w2, 1e-6, None).flatten(-2)
    return q + 1, k * 2, v


def test_q_and_k_norms_are_one_launch(norm: Any) -> None:
    x = torch.randn(5, 32)
    key = "graph:adapter_pairing_op/paired"
    before = counters.CALLS[key], counters.CALLS[f"{key} in pairs"]
    traced, launches = joined(lambda *args: qkv(norm, *args), x)
    assert launches == 1
    assert counters.CALLS[f"{key} in pairs"] == before[1] + 1
    assert counters.CALLS[key] == before[0] + 2 + 2  # the pair, and the two calls it is compared with
    shapes = {
        tuple(node.meta["val"].shape)
        for node in traced.graph.nodes
        if node.op == "call_function"
        and "getitem" in str(node.target)
        and node.all_input_nodes[0].target in graph_ops.PAIRS.values()
    }
    assert shapes == {(5, 2, 8), (5, 1, 8)}


def test_two_layers_are_two_launches(norm: Any) -> None:
    def layers(x: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
        q, k, v = qkv(norm, x, w, w2)
        return qkv(norm, torch.cat((q, k, v), -1), w, w2)

    assert joined(layers, torch.randn(5, 32))[1] == 2


def test_arguments_left_out_have_their_default(norm: Any) -> None:
    assert joined(lambda x, w, w2: (norm(x, w, 1e-6), norm(x + 1, w2, 1e-6, None)), torch.randn(5, 8))[1] == 1


APART: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "one depends on the other": lambda norm, x, w, w2: (y := norm(x, w, 1e-6), norm(y + 1, w2, 1e-6)),
    "another epsilon": lambda norm, x, w, w2: (norm(x, w, 1e-6), norm(x, w2, 1e-5)),
    "another length": lambda norm, x, w, w2: (norm(x, w, 1e-6), norm(x[:, :4], w2[:4], 1e-6)),
    "another dtype": lambda norm, x, w, w2: (norm(x, w, 1e-6), norm(x.double(), w2, 1e-6)),
    "one without a weight": lambda norm, x, w, w2: (norm(x, w, 1e-6), norm(x, None, 1e-6)),
    "variance_size": lambda norm, x, w, w2: (norm(x, w, 1e-6), norm(x, w2, 1e-6, 4)),
    "alone": lambda norm, x, w, w2: (norm(x, w, 1e-6),),
}


@pytest.mark.parametrize("why", APART)
def test_what_stays_apart(norm: Any, why: str) -> None:
    assert joined(lambda *args: APART[why](norm, *args), torch.randn(5, 8))[1] == 0


def test_nothing_moves_across_a_write(norm: Any) -> None:
    """The second call reads what is written between the two, or would read it too early."""

    def written(x: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
        first = norm(x, w, 1e-6)
        x.mul_(2)
        return first, norm(x, w2, 1e-6)

    assert joined(written, torch.randn(5, 8))[1] == 0


def test_random_numbers_keep_their_order(norm: Any) -> None:
    def drawn(x: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
        first = norm(x, w, 1e-6, None)
        a, b = torch.ops.aten.rand.default([5, 8]), torch.ops.aten.rand.default([5, 8])
        return first, a, norm(b, w2, 1e-6, None)

    traced = make_fx(drawn, tracing_mode="fake")(torch.randn(5, 8), W, W2)
    before = [str(node.target) for node in traced.graph.nodes]
    pairing.join(traced.graph)
    assert [str(node.target) for node in traced.graph.nodes] == before


def by_hand(norm: Any, between: Any, *, described: bool = True) -> fx.Graph:
    """Two norms of one input with ``between(graph, x)`` between them."""
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"], w.meta["val"] = torch.empty(5, 8), torch.empty(8)
    nodes = [graph.call_function(norm, (x, w, 1e-6))]
    between(graph, x)
    nodes.append(graph.call_function(norm, (x, w, 1e-6)))
    for node in nodes if described else ():
        node.meta["val"] = torch.empty(5, 8)
    graph.output(tuple(nodes))
    return graph


@pytest.mark.parametrize("what", ["python write", "method", "packet", "not described"])
def test_what_is_not_known_to_be_pure_is_a_barrier(norm: Any, what: str) -> None:
    between = {
        "python write": lambda graph, x: graph.call_function(operator.setitem, (x, 0, 3.0)),
        "method": lambda graph, x: graph.call_method("mul_", (x, 2)),
        "packet": lambda graph, x: graph.call_function(torch.ops.aten.mul_, (x, 2)),
        "not described": lambda graph, x: None,
    }[what]
    graph = by_hand(norm, between, described=what != "not described")
    before = [str(node.target) for node in graph.nodes]
    pairing.join(graph)
    assert [str(node.target) for node in graph.nodes] == before


def test_arithmetic_on_sizes_is_none(norm: Any) -> None:
    graph = by_hand(norm, lambda graph, x: graph.call_function(operator.floordiv, (8, 2)))
    pairing.join(graph)
    assert sum(str(node.target).endswith("__pair.default") for node in graph.nodes) == 1


def test_a_symbolic_length_is_not_fixed(norm: Any) -> None:
    def two(x: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
        return norm(x, w, 1e-6), norm(x + 1, w2, 1e-6)

    traced = make_fx(two, tracing_mode="symbolic")(torch.randn(5, 8), W, W2)
    (shapes,) = {
        node.meta["val"].fake_mode.shape_env for node in traced.graph.nodes if node.op == "placeholder"
    }
    guards = len(shapes.guards)
    pairing.join(traced.graph)
    assert len(shapes.guards) == guards


def test_an_implementation_without_the_offer_is_left_alone(norm: Any) -> None:
    op = ir_core.IrOp.registry["adapter_pairing_op"]
    plain = op.register_impl("alone", batch_invariant=True)(op.impls["native"].impl_fn)
    node = graph_ops.functional(op, plain)
    assert node not in graph_ops.PAIRS
    assert joined(lambda x, w, w2: (node(x, w, 1e-6), node(x, w2, 1e-6)), torch.randn(5, 8))[1] == 0
