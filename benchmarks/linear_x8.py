# SPDX-License-Identifier: Apache-2.0
"""linear in the order chain16x8 beside chain16 and cuBLAS, over the shapes of linear.py.

    python benchmarks/linear_x8.py [--seconds 240] [--output FILE]     # needs a GPU; nothing is written without one

Bits are compared first: every tile that is timed against the first one, and a few columns against ``portable``. Then a
CUDA graph of some calls is replayed, with weights that rotate through more than the L2 cache; the median over replays
is kept, in microseconds a call. bf16, no bias. What does not fit into ``--seconds`` is left out and counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

import ir_core
from ir_kernels_triton import linear, linear_split
from ir_kernels_triton import linear_split_config as config

COLD_BYTES: Final = 256 << 20
REPLAYS: Final = 9
SHAPES: Final = (
    *((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
    *((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)),
)
"""Weights ``(N, K)`` of Qwen3-0.6B and 8B."""
ROWS: Final = (1, 8, 16, 64, 512, 1024, 4096)
Call = Callable[[Tensor, Tensor], Tensor]


def with_run(prepared: Any, n: int) -> Call:
    def call(x: Tensor, w: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], n, dtype=x.dtype, device=x.device)
        prepared(x, w, x, y)
        return y

    return call


def contenders(x: Tensor, w: Tensor) -> dict[str, Call]:
    """What can be timed at this shape; those of chain16x8 are named so."""
    (rows, k), n = x.shape, w.shape[0]
    found: dict[str, Call] = {
        "chain16x8": linear_split.linear_x8,
        "chain16": linear.linear_batch_invariant,
        "cuBLAS": torch.nn.functional.linear,
    }
    if rows <= 64:
        for tile in config.SPLITS:
            run = linear_split.tile_run(x, w, False, 8, x.dtype, True, True, tile)
            found[f"chain16x8 by chunks {tile}"] = with_run(run, n)
    if rows > 16 and k % (8 * 64) == 0:
        for tile in config.BULKS:
            found[f"chain16x8 by tiles {tile}"] = with_run(
                linear_split.bulk_run(tile, x, w, False, 8, x.dtype), n
            )
    return found


def microseconds(call: Call, sets: list[tuple[Tensor, Tensor]]) -> float:
    calls = max(len(sets), 8)
    for x, w in sets[:2]:
        call(x, w)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(*sets[i % len(sets)])
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / calls)
    return statistics.median(times)


def shape(rows: int, n: int, k: int) -> dict[str, Any]:
    torch.manual_seed(rows + n + k)
    copies = max(1, min(COLD_BYTES // (2 * n * k), 24))
    sets = [
        (
            torch.randn(rows, k, device="cuda").bfloat16(),
            (torch.randn(n, k, device="cuda") / k**0.5).bfloat16(),
        )
        for _ in range(copies)
    ]
    x, w = sets[0]
    calls = contenders(x, w)
    want = calls["chain16x8"](x, w)
    reference = ir_core.ops.linear.impls["portable_x8"].impl_fn(x[:2].cpu(), w[:4].cpu())
    wrong = (
        [] if torch.equal(want[:2, :4].cpu().view(torch.int16), reference.view(torch.int16)) else ["portable"]
    )
    found: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            if name.startswith("chain16x8") and not torch.equal(
                call(x, w).view(torch.int16), want.view(torch.int16)
            ):
                wrong.append(name)
            found[name] = round(microseconds(call, sets), 2)
        except Exception as error:  # a tile that does not compile here is said, the others are timed
            found[name] = f"{type(error).__name__}: {error}"[:200]
    timed = {name: t for name, t in found.items() if isinstance(t, float)}
    best = min((t for name, t in timed.items() if name.startswith("chain16x8")), default=None)
    return {
        "rows": rows,
        "n": n,
        "k": k,
        "other bits": wrong,
        "microseconds": found,
        "chain16 over chain16x8": round(timed["chain16"] / timed["chain16x8"], 3)
        if {"chain16", "chain16x8"} <= timed.keys()
        else None,
        "chain16 over the best chain16x8": round(timed["chain16"] / best, 3)
        if best and "chain16" in timed
        else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--output")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This measures a GPU, and there is none.")
    start, done, left = time.monotonic(), [], []
    for rows in (8, 4096, 1, 512, 64, 1024, 16):
        for n, k in SHAPES:
            if time.monotonic() - start > args.seconds:
                left.append([rows, n, k])
                continue
            done.append(shape(rows, n, k))
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shapes with other bits": [
            [d["rows"], d["n"], d["k"], d["other bits"]] for d in done if d["other bits"]
        ],
        "not measured for lack of time": left,
        "shapes": done,
    }
    text = json.dumps(result, indent=1)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
