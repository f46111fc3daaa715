# SPDX-License-Identifier: Apache-2.0
"""What an eager op call adds to the implementation it runs: ir-core beside vLLM's IR, in one process.

    python benchmarks/eager_dispatch.py        # needs vLLM 0.26 to 0.33 beside torch; a GPU is not used

Both register the same native function and the same implementation, which returns its argument: what is left is
the dispatch. The cases differ in what the first candidate's predicate reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor

import ir_core

ROUNDS, NUMBER = 40, 5_000


def native(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """Meaning of the benchmark's op."""
    return x.clone()


def implementation(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """The least that an implementation can do."""
    return x


def takes_no_variance_size(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool:
    """A predicate on a scalar."""
    return variance_size is None


def takes_half_precision(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool:
    """A predicate on one tensor's dtype."""
    return x.dtype in (torch.bfloat16, torch.float16)


def takes_what_vllm_c_takes(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool:
    """The predicate that vLLM has for its C kernel."""
    return variance_size is None and (weight is None or weight.dtype == x.dtype)


CASES: dict[str, Callable[..., bool] | None] = {
    "no predicate": None,
    "a scalar": takes_no_variance_size,
    "one dtype": takes_half_precision,
    "a scalar, None, two dtypes": takes_what_vllm_c_takes,
}


def measure(ours: Any, theirs: Any) -> dict[str, dict[str, float]]:
    """Nanoseconds a call, by case and contender, in inference mode."""
    results: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        x, weight = torch.randn(4, 4096, dtype=torch.bfloat16), torch.randn(4096, dtype=torch.bfloat16)
        for number, (case, predicate) in enumerate(CASES.items()):
            calls: dict[str, Callable[[], object]] = {}
            for name, library in (("ir-core", ours), ("vLLM IR", theirs)):
                op = library.register_op(native, name=f"bench_{number}")
                op.register_impl("fast", supports_args=predicate)(implementation)
                op.set_default(["fast", "native"])
                calls[name] = lambda op=op: op(x, weight, 1e-6)
            calls["implementation"] = lambda: implementation(x, weight, 1e-6)
            for wrap in (False, True):
                for library in (ours, theirs):
                    library.set_default_torch_wrap(wrap)
                key = f"{case}, {'through the torch op' if wrap else 'direct'}"
                found = common.interleaved(calls, number=NUMBER, rounds=ROUNDS)
                results[key] = {name: seconds * 1e9 for name, seconds in found.items()}
    for library in (ours, theirs):
        library.set_default_torch_wrap(True)
    return results


def main() -> None:
    """Measure, print a table, save JSON and plot."""
    import vllm.ir

    results = measure(ir_core, vllm.ir)
    added = {}
    for case, times in results.items():
        base = times["implementation"]
        added[case] = {name: times[name] - base for name in ("ir-core", "vLLM IR")}
        ratio = added[case]["ir-core"] / added[case]["vLLM IR"]
        ours, theirs = added[case]["ir-core"], added[case]["vLLM IR"]
        print(f"{case:48s} ir-core +{ours:6.0f} ns   vLLM +{theirs:6.0f} ns   {ratio:.2f}x")
    path = common.save("eager_dispatch", {"unit": "ns a call", "calls": results, "added": added})
    common.bars(
        "eager_dispatch", "What dispatch adds to a call", "ns added to the implementation's own call", added
    )
    print(json.dumps({"saved": path.name}))


if __name__ == "__main__":
    main()
