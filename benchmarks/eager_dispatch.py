# SPDX-License-Identifier: Apache-2.0
"""What an eager op call adds to the implementation it runs: ir-core beside vLLM's IR, in one process.

    python benchmarks/eager_dispatch.py        # needs vLLM 0.26 to 0.33 beside torch; a GPU is not used
    python benchmarks/eager_dispatch.py --alone     # ir-core only; prints, and saves nothing

Both register the same native function and the same implementation, which returns its argument: what is left is
the dispatch. The cases differ in what the first candidate's predicate reads, and in where the call stands: outside of
all scopes in a process that has entered none, inside of one (``op.set_priority``), and outside again after that.
"""

from __future__ import annotations

import contextlib
import json
import sys
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


def measure(libraries: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Nanoseconds a call, by case and contender, in inference mode."""
    results: dict[str, dict[str, float]] = {}
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    ops: dict[str, list[Any]] = {}
    x, weight = torch.randn(4, 4096, dtype=torch.bfloat16), torch.randn(4096, dtype=torch.bfloat16)
    for number, (case, predicate) in enumerate(CASES.items()):
        calls[case], ops[case] = {}, []
        for name, library in libraries.items():
            op = library.register_op(native, name=f"bench_{number}")
            op.register_impl("fast", supports_args=predicate)(implementation)
            op.set_default(["fast", "native"])
            ops[case].append(op)
            calls[case][name] = lambda op=op: op(x, weight, 1e-6)
        calls[case]["implementation"] = lambda: implementation(x, weight, 1e-6)

    def note(case: str, where: str) -> None:
        found = common.interleaved(calls[case], number=NUMBER, rounds=ROUNDS)
        results[f"{case}, {where}"] = {name: seconds * 1e9 for name, seconds in found.items()}

    with torch.inference_mode():
        for wrap in (False, True):
            for library in libraries.values():
                library.set_default_torch_wrap(wrap)
            for case in CASES:
                note(case, "through the torch op" if wrap else "direct")
        for library in libraries.values():
            library.set_default_torch_wrap(False)
        for case in CASES:  # last: what follows the first scope of a process is another measurement
            with contextlib.ExitStack() as scopes:
                for op in ops[case]:
                    scopes.enter_context(op.set_priority(["fast", "native"]))
                note(case, "direct, inside a scope")
            note(case, "direct, after a scope")
    for library in libraries.values():
        library.set_default_torch_wrap(True)
    return results


def alone() -> None:
    """Print what ir-core adds to a call."""
    for case, times in measure({"ir-core": ir_core}).items():
        print(f"{case:48s} ir-core +{times['ir-core'] - times['implementation']:6.0f} ns")


def main() -> None:
    """Measure, print a table, save JSON and plot."""
    if "--alone" in sys.argv:
        alone()
        return
    import vllm.ir

    results = measure({"ir-core": ir_core, "vLLM IR": vllm.ir})
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
