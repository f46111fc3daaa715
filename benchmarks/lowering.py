# SPDX-License-Identifier: Apache-2.0
"""What lowering a graph costs: ir-core's pass beside vLLM's IR lowering pass, on the same graph, in one process.

    python benchmarks/lowering.py        # needs vLLM 0.32 beside torch 2.13; a GPU is not used

The graph is a chain of rms_norm nodes with a product between them, traced with fake tensors and a symbolic number
of rows. Both passes lower every node to the same native implementation; each is timed on a fresh copy.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import ir_core
from ir_core.lowering.lowering_pass import Lowering

NODES = (10, 50, 200)
ROUNDS = 5


def chain(op: Any, nodes: int) -> fx.GraphModule:
    """The graph, as it stands after grad."""

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        for _ in range(nodes):
            x = op(x, weight, 1e-6) * 2
        return x

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = mode.from_tensor(torch.empty(48, 1024, dtype=torch.bfloat16))
        weight = mode.from_tensor(torch.empty(1024, dtype=torch.bfloat16), static_shapes=True)
    return make_fx(run, tracing_mode="real")(x, weight)


def lower_ours(graph: fx.Graph) -> None:
    """ir-core's pass."""
    assert Lowering(ir_core.Policy()).run(graph).nodes


def lower_vllm() -> Callable[[fx.Graph], None]:
    """vLLM's pass, selecting native as well."""
    import vllm.ir.ops
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    vllm.ir.ops.rms_norm.set_default(["native"])
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    with set_current_vllm_config(config):
        lowering = VllmIRLoweringPass(config)

    def run(graph: fx.Graph) -> None:
        with set_current_vllm_config(config):
            lowering(graph)

    return run


def seconds(lower: Callable[[fx.Graph], None], module: fx.GraphModule) -> float:
    """Seconds of one lowering of a copy of ``module``."""
    fresh = copy.deepcopy(module)
    begin = time.perf_counter()
    lower(fresh.graph)
    elapsed = time.perf_counter() - begin
    left = [node for node in fresh.graph.nodes if "rms_norm" in str(node.target)]
    assert not left, f"not lowered: {left[:3]}"
    return elapsed


def main() -> None:
    """Measure, print a table, save JSON and plot."""
    import vllm.ir

    contenders = {
        "ir-core": (ir_core.ops.rms_norm, lower_ours),
        "vLLM IR": (vllm.ir.ops.rms_norm, lower_vllm()),
    }
    results: dict[str, dict[str, float]] = {}
    for nodes in NODES:
        graphs = {name: chain(op, nodes) for name, (op, _) in contenders.items()}
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(ROUNDS):
            for name, (_, lower) in contenders.items():
                best[name] = min(best[name], seconds(lower, graphs[name]))
        results[f"{nodes} nodes"] = {name: value / nodes * 1e3 for name, value in best.items()}
        ours, theirs = (results[f"{nodes} nodes"][name] for name in ("ir-core", "vLLM IR"))
        print(
            f"{nodes:4d} nodes: ir-core {ours:.3f} ms a node, vLLM {theirs:.3f} ms a node, {ours / theirs:.3f}x"
        )
    path = common.save("lowering", {"unit": "ms a node", "results": results})
    common.bars("lowering", "Lowering a chain of rms_norm nodes", "ms a node", results)
    print(json.dumps({"saved": path.name}))


if __name__ == "__main__":
    main()
