# SPDX-License-Identifier: Apache-2.0
"""Tiles of linear for 64 to 4096 rows: each against cuBLAS, with the order's bits, in a bounded time.

    python benchmarks/tune_linear.py [--seconds 150] [--out FILE]     # needs a GPU; nothing is written without one

Kernels are compiled side by side first. At each point, a number of rows and a shape of Qwen3-0.6B's or 8B's layers, the
tiles that a rough estimate puts near the front are compared with plain tiles bit by bit and timed: CUDA graphs, weights
rotating through more than the L2 cache, the contenders taking turns, medians. The file is written after each point, so
that a run which ends early leaves what it has. ``packaged`` is what ``linear_config`` chooses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import common
import torch
from linear import COLD_BYTES, MODELS, Point, _compile, _pinned, operands
from torch import Tensor

from ir_kernels_triton import linear, linear_config
from ir_kernels_triton.linear_config import Bulk, Stream

ROWS: Final = (512, 64, 4096, 1024, 256, 128, 2048)
"""In the order of interest."""
REPLAYS: Final = 7
SLOWEST: Final = 1.7
"""Tiles whose estimate is so many times the best are not tried."""
MOST: Final = 14
"""Tiles of a point."""
ENOUGH: Final = 20_000
"""Microseconds of a graph: fewer turns where a call is long."""
T, F = True, False

BULKS: Final = (
    # BM, BN, BK, stages, warps, FLATTEN, HALVES, GROUP, MORE, SWAP, each
    *(Bulk(128, 256, 64, 3, 8, T, T, group) for group in (4, 8, 16)),
    *(Bulk(256, 128, 64, 3, 8, T, T, group) for group in (4, 8)),
    *(Bulk(128, 256, 64, 4, 8, F, T), Bulk(256, 128, 64, 4, 8, F, T)),
    *(Bulk(128, 128, 64, 5, 4, T, T), Bulk(128, 128, 64, 6, 4, F, T), Bulk(128, 128, 64, 5, 8, T, T)),
    *(Bulk(128, 128, 64, 5, 4, T, T, 8, 0, T), Bulk(128, 128, 128, 3, 8, F, T)),
    Bulk(128, 128, 32, 6, 4, F, T, 8, 0, F, 2),
    *(Bulk(128, 128, 64, 4, 8, F, T, 8, 64, swap) for swap in (F, T)),
    *(Bulk(128, 128, 64, 4, 4, F, T, 8, 64, T), Bulk(128, 128, 64, 4, 8, F, T, 16, 64, F)),
    *(Bulk(256, 128, 64, 3, 8, F, T, group, 64, T) for group in (4, 8)),
    Bulk(256, 64, 64, 4, 8, F, F, 8, 32, F),
    *(Bulk(128, 64, 128, 3, 4, F, F, 8, 32, F), Bulk(128, 64, 64, 6, 4, F, F, 8, 32, F)),
    *(Bulk(64, 128, 64, 6, 4, F, T, 8, 64, swap) for swap in (F, T)),
    *(Bulk(64, 128, 128, 3, 4, F, T, 8, 64, F), Bulk(64, 64, 128, 4, 4, F, F, 8, 32, F)),
    *(Bulk(64, 256, 64, 4, 4, T, T), Bulk(64, 256, 64, 5, 8, F, T)),
    *(
        Bulk(64, 128, 128, 4, 4, T, F),
        Bulk(64, 128, 64, 8, 4, T, F),
        Bulk(64, 128, 64, 4, 4, F, T, 8, 0, F, 2),
    ),
    *(Bulk(64, 64, 128, 5, 4, T, F), Bulk(64, 64, 128, 6, 4, F, T), Bulk(64, 64, 256, 3, 4, F, T)),
    *(
        Bulk(128, 64, 128, 4, 4, T, F),
        Bulk(128, 64, 64, 8, 4, T, F),
        Bulk(128, 64, 64, 4, 4, F, F, 8, 0, F, 2),
    ),
    *(Bulk(128, 32, 128, 5, 4, T, F), Bulk(128, 32, 128, 5, 4, F, F)),
    *(Bulk(64, 32, 128, 8, 4, T, F), Bulk(64, 32, 256, 4, 4, T, F), Bulk(64, 32, 128, 8, 4, F, F)),
)
STREAMS: Final = (
    *((32, 64, 128, 8), (32, 64, 128, 6), (32, 64, 64, 12), (64, 64, 128, 6), (64, 64, 64, 12)),
    *((64, 32, 128, 6), (64, 32, 128, 8), (32, 32, 256, 6), (32, 32, 128, 10), (16, 32, 256, 6)),
    *((16, 32, 128, 12), (16, 64, 128, 10), (32, 64, 256, 4)),
)
"""Weight rows, rows, K step and stages of ``linear_stream``, for 64 rows and 128."""


def streams(point: Point) -> list[Stream]:
    """The launches of ``linear_stream`` that fit a point."""
    found = []
    for r, bt, bk, stages in STREAMS if point.rows <= 128 else ():
        for warps in (4, 8) if r >= 64 and bt >= 64 else (4,):
            choice = Stream(r, bt, bk, stages, False, point.n * point.k <= 1 << 24, 1, warps)
            programs = choice.programs(point.rows, point.n)
            fits = (stages - 2) * bk <= point.k and choice.shared <= linear_config.SHARED_BYTES
            if fits and programs >= 32 and (programs <= 400 or point.n > 20000):
                found.append(choice)
    return found


def estimate(choice: Bulk, point: Point) -> float:
    """What a launch takes, in outputs of a 128 by 256 tile: turns of all processors, with a start each."""
    area = choice.BM * (choice.BN + choice.MORE)
    turns = -(-choice.tiles(point.rows, point.n) // (choice.each * linear_config.PROCESSORS))
    rate = min(1.0, 0.75 + 0.25 * area / 16384)
    return turns * choice.each * (linear_config.BULK_START / choice.each + area / rate)


def candidates(point: Point) -> dict[str, Bulk | Stream]:
    """The tiles to try, by name; the likeliest first."""
    fitting = [
        c for c in BULKS if c.shared * c.each <= linear_config.SHARED_BYTES and max(point.rows, 64) >= c.BM
    ]
    costs = {c: estimate(c, point) for c in fitting}
    near = sorted((c for c in fitting if costs[c] <= SLOWEST * min(costs.values())), key=costs.__getitem__)
    some: list[Bulk | Stream] = [*streams(point), *near[:MOST]]
    return {str(choice): choice for choice in some}


def run_of(choice: Bulk | Stream, x: Tensor, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    make: Any = linear.bulk_run if isinstance(choice, Bulk) else linear.stream_run
    run = make(choice, x, w, False)

    def call(x: Tensor, w: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
        run(x, w, x, y)
        return y

    return call


def warm(every: list[Point]) -> int:
    """Compile all that is going to run, side by side, into Triton's cache; how many kernels that are."""
    specs = set()
    for point in every:
        for choice in candidates(point).values():
            if isinstance(choice, Bulk):
                specs.add(linear_config.bulk_spec(choice, "bf16", bias=False))
            else:
                specs.add(linear_config.stream_spec(choice, point.k, "bf16", bias=False))
    sorted_specs = sorted(specs, key=repr)
    jobs = min(max((os.cpu_count() or 2) - 2, 1), 14)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_compile, sorted_specs[i::jobs]) for i in range(jobs)]:
            with contextlib.suppress(Exception):  # it fails again, and is noted, where it is to run
                done.result()
    return len(sorted_specs)


def measure(point: Point, pinned: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """Microseconds of all contenders at a point, and which of them have other bits or do not run."""
    copies = max(2, min(-(-COLD_BYTES // (2 * point.n * point.k)), 64))
    sets = operands(point, copies)
    x, w = sets[0]
    want = torch.empty(point.rows, point.n, dtype=x.dtype, device=x.device)
    linear.tile_run(x, w, False, True)(x, w, x, want)
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "packaged": linear.linear_batch_invariant,
        "cublas": torch.nn.functional.linear,
        "pinned": pinned,
    }
    wrong: dict[str, str] = {}
    for name, choice in candidates(point).items():
        try:
            calls[name] = run_of(choice, x, w)
        except Exception as error:  # a tile that the compiler or the device refuses
            wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    turns = min(max(copies, 10), max(round(ENOUGH * 1e6 * 400 / (2 * point.rows * point.n * point.k)), 3))
    graphs = {}
    for name, call in calls.items():
        try:
            differing = int((call(x, w).view(torch.int16) != want.view(torch.int16)).sum())
            if differing:
                wrong[name] = f"{differing} outputs differ from plain tiles"
            if not differing or name in ("cublas", "pinned"):
                graphs[name] = common.graph_of(call, sets, turns)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    us = common.replay(graphs, turns, REPLAYS)
    own = {name: took for name, took in us.items() if name not in ("cublas", "pinned", "packaged")}
    best = min(own, key=own.__getitem__, default="packaged")
    return {
        "rows": point.rows,
        "N": point.n,
        "K": point.k,
        "pinned / packaged": round(us["pinned"] / us["packaged"], 3),
        "pinned / best": round(us["pinned"] / us[best], 3),
        "best": best,
        "us": dict(sorted(us.items(), key=lambda item: item[1])),
        "wrong": wrong,
    }


def main() -> None:
    """Tune and write, or say that there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150, help="end after so long (default: 150)")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "tune_linear_tiles.json")
    options = parser.parse_args()
    every = [Point(m, r, n, k) for r in ROWS for m in ("Qwen3-0.6B", "Qwen3-8B") for n, k in MODELS[m]]
    if not torch.cuda.is_available():
        raise SystemExit(
            "tune_linear.py measures a GPU, and torch sees none here. Nothing was measured or written."
        )
    start = time.monotonic()
    found: dict[str, Any] = {"machine": common.machine(), "dtype": "bfloat16", "unit": "us", "points": []}
    found["kernels"] = warm(every)
    found["seconds to compile"] = round(time.monotonic() - start, 1)
    torch.mm(*[torch.zeros(16, 16, device="cuda", dtype=torch.bfloat16)] * 2)  # loads cuBLASLt
    pinned = _pinned()
    for point in every:
        if time.monotonic() - start > options.seconds - 5:
            found["not reached"] = [p.name for p in every[len(found["points"]) :]]
            break
        try:
            made = measure(point, pinned)
        except torch.cuda.OutOfMemoryError as error:
            made = {"rows": point.rows, "N": point.n, "K": point.k, "failed": str(error)[:200]}
        found["points"].append(made)
        found["seconds"] = round(time.monotonic() - start, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(
            json.dumps({k: v for k, v in made.items() if k not in ("us", "wrong")}),
            file=sys.stderr,
            flush=True,
        )
        torch.cuda.empty_cache()
    print(
        f"{len(found['points'])} of {len(every)} points in {time.monotonic() - start:.0f} s; written: {options.out}"
    )


if __name__ == "__main__":
    main()
