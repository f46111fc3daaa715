# SPDX-License-Identifier: Apache-2.0
"""How fast linear is, beside cuBLAS as it comes and pinned, vLLM's batch-invariant kernel and a device copy.

    python benchmarks/linear.py [--quick] [--bits N] [--inductor]     # needs a GPU; nothing is written without one

Every contender that claims the order chain16 is first compared with the others bit by bit: over ``--bits`` random
shapes, a twentieth of them with ``portable`` on the CPU too. Then a CUDA graph of many calls is replayed, with
weights that rotate through more than the L2 cache, the contenders taking turns; the median over replays is kept.
bf16, no bias. Results, table and plot go to benchmarks/results/linear.*.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import common
import torch
from torch import Tensor

import ir_core
from ir_kernels_triton import cublas, cublas_lt, linear, linear_config
from ir_kernels_triton.kernel_spec import KernelSpec

COLD_BYTES: Final = 256 << 20
"""Weights of all rotations together: several times an L2 cache (H200: 60 MB)."""
REPLAYS: Final = 15
MODELS: Final = {
    "Qwen3-0.6B": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
    "Qwen3-8B": ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)),
    "lm_head": ((151936, 1024), (151936, 4096)),
}
"""Weights ``(N, K)`` of a layer: qkv, o, gate and up, down; and of the logits."""
ROWS: Final = (1, 8, 16, 64, 512, 1024, 4096)
SELECTED, MINE, LIBRARY, PINNED = "selected", "triton_batch_invariant", "cuBLAS", "cuBLAS pinned"
VLLM, INDUCTOR = "vLLM Triton", "Inductor max-autotune"

Call = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """One shape."""

    model: str
    rows: int
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.rows} x {self.n} x {self.k}"

    @property
    def bytes(self) -> int:
        """Bytes that must move in bfloat16."""
        return 2 * (self.rows * self.k + self.n * self.k + self.rows * self.n)


def points(quick: bool) -> list[Point]:
    found = [
        Point(model, rows, n, k)
        for rows in ((8, 512) if quick else ROWS)
        for model, shapes in MODELS.items()
        for n, k in shapes
    ]
    return [p for p in found if p.model != "lm_head" or p.rows in (1, 8, 64)]


def _pinned() -> Call:
    plans: dict[tuple[int, ...], Any] = {}

    def call(x: Tensor, w: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
        key = (*x.shape, w.shape[0])
        if key not in plans:
            plan = cublas_lt.Plan(x, w, y, bias=False)
            plans[key] = plan.runner(plan.offers[0])
        plans[key](x.data_ptr(), w.data_ptr(), 0, y.data_ptr())
        return y

    return call


def _vllm() -> Call:
    found: Call = importlib.import_module("vllm.model_executor.layers.batch_invariant").linear_batch_invariant
    return found


def _inductor() -> Call:
    torch._dynamo.config.recompile_limit = 200
    found: Call = torch.compile(torch.nn.functional.linear, mode="max-autotune-no-cudagraphs", dynamic=False)
    return found


def contenders(inductor: bool) -> tuple[dict[str, Call], dict[str, str]]:
    """What can be measured in this process, and why the others are missing."""
    torch.mm(*[torch.zeros(16, 16, device="cuda", dtype=torch.bfloat16)] * 2)  # loads cuBLASLt
    makers: dict[str, Callable[[], Call]] = {
        SELECTED: lambda: cublas.linear_chain16,
        MINE: lambda: linear.linear_batch_invariant,
        LIBRARY: lambda: torch.nn.functional.linear,
        PINNED: _pinned,
        VLLM: _vllm,
    }
    if inductor:
        makers[INDUCTOR] = _inductor
    return common.importable(makers)


def _compile(specs: list[KernelSpec]) -> None:
    from triton.backends.compiler import GPUTarget

    from ir_kernels_triton import compat

    for spec in specs:
        compat.compile_for(spec, GPUTarget("cuda", 90, 32))


def warm(shapes: list[tuple[int, int, int]], biases: tuple[bool, ...] = (False,)) -> int:
    """Compile what calls of these shapes launch, side by side, into Triton's cache; how many kernels that are."""
    specs = set()
    for m, n, k in shapes:
        choice = linear_config.choose(m, n, k) if k % 8 == 0 else None
        for bias in biases if choice is not None else ():
            if isinstance(choice, linear_config.Stream):
                specs.add(linear_config.stream_spec(choice, k, "bf16", bias=bias))
            else:
                specs.add(linear_config.bulk_spec(choice, "bf16", bias=bias))
    every = sorted(specs, key=repr)
    jobs = min(max((os.cpu_count() or 2) - 2, 1), 14)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, [every[i::jobs] for i in range(jobs)]))
    return len(every)


def random_shapes(count: int) -> list[tuple[int, int, int]]:
    """Rows, N and K: mostly a multiple of 8, and some that no aligned kernel takes."""
    rng = random.Random(16)
    found = []
    for _ in range(count):
        k = rng.choice((rng.randrange(8, 4097, 8), rng.randrange(256, 4097, 256), rng.randrange(8, 1025, 8)))
        n = rng.choice((rng.randrange(8, 4097, 8), rng.randrange(8, 513, 8), rng.randrange(1, 600)))
        rows = rng.choice((rng.randint(1, 16), rng.randint(1, 64), rng.randint(1, 700)))
        if rng.random() < 0.05:
            k -= rng.randint(1, 7)
        found.append((rows, n, k))
    return found


def compare_bits(count: int, seconds: float) -> dict[str, Any]:
    """All that claim chain16 over random shapes; every twentieth small one against ``portable`` on the CPU."""
    shapes = random_shapes(count)
    portable = ir_core.ops.linear.impls["portable"].impl_fn
    generator = torch.Generator("cuda").manual_seed(0)
    start, done, on_cpu, chosen = time.monotonic(), 0, 0, 0
    for rows, n, k in shapes:
        if time.monotonic() - start > seconds:
            break
        x = torch.randn(rows, k, device="cuda", generator=generator)
        if done % 3 == 0:
            x *= torch.exp2(torch.randint(-12, 13, x.shape, device="cuda", generator=generator))
        x = x.bfloat16()
        w = (torch.randn(n, k, device="cuda", generator=generator) / k**0.5).bfloat16()
        one = linear.linear_batch_invariant(x, w)
        two = cublas.linear_chain16(x, w)
        tile = torch.empty_like(one)
        linear.tile_run(x, w, False, False)(x, w, x, tile)
        for name, other in (("cublas", two), ("tiles by plain loads", tile)):
            if not torch.equal(one.view(torch.int16), other.view(torch.int16)):
                raise SystemExit(f"{rows} x {n} x {k}: the bits of {name} are others")
        if on_cpu < count // 20 and rows * n * k < 1 << 24:
            want = portable(x.cpu(), w.cpu(), None)
            if not torch.equal(one.cpu().view(torch.int16), want.view(torch.int16)):
                raise SystemExit(f"{rows} x {n} x {k}: bits are not portable's")
            on_cpu += 1
        done += 1
    chosen = sum(run is not None for run in cublas._CHOSEN.values())
    return {
        "random shapes": done,
        "of them with portable on the CPU": on_cpu,
        "kinds of calls for which cuBLAS was chosen": chosen,
        "looked at": len(cublas._CHOSEN),
        "differences": 0,
    }


def operands(point: Point, copies: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        (
            torch.randn(point.rows, point.k, device="cuda", generator=generator, dtype=torch.bfloat16),
            torch.randn(point.n, point.k, device="cuda", generator=generator, dtype=torch.bfloat16),
        )
        for _ in range(copies)
    ]


def measure(point: Point, calls: dict[str, Call]) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds of each contender at a point, and what went wrong."""
    copies = max(2, min(-(-COLD_BYTES // (2 * point.n * point.k)), 64))
    sets, turns = operands(point, copies), max(copies, 10)
    want = calls[MINE](*sets[0])
    graphs, wrong = {}, {}
    for name, call in calls.items():
        try:
            got = call(*sets[0])
            same = torch.equal(got.view(torch.int16), want.view(torch.int16))
            if not same and name in (SELECTED, MINE):
                raise SystemExit(f"{point.name}: the bits of {name} are others")
            error = ((got.double() - want.double()).norm() / want.double().norm()).item()
            if error > 2.0**-7:
                wrong[name] = f"relative error {error:.3g}"
                continue
            graphs[name] = common.graph_of(call, sets, turns)
        except Exception as error:  # a peer may refuse a shape in any way
            wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return common.replay(graphs, turns, REPLAYS), wrong


def copy_bandwidth() -> float:
    """Bytes a microsecond, read and written, of the better of a copy by the engine and one by a kernel."""
    a = torch.zeros(1 << 29, dtype=torch.bfloat16, device="cuda")
    b = torch.empty_like(a)
    graphs = {
        "engine": common.graph_of(lambda x, y: y.copy_(x), [(a, b)], 4),
        "kernel": common.graph_of(lambda x, y: torch.neg(x, out=y), [(a, b)], 4),
    }
    return 2 * a.numel() * 2 / min(common.replay(graphs, 4, REPLAYS).values())


def chain(calls: dict[str, Call], model: str, rows: int = 8) -> dict[str, float]:
    """Microseconds of a layer's four linears one after the other."""
    shapes = MODELS[model]
    total = sum(2 * n * k for n, k in shapes)
    copies = max(2, -(-COLD_BYTES // total))
    layers = [[operands(Point(model, rows, n, k), 1)[0] for n, k in shapes] for _ in range(copies)]
    graphs = {}
    for name, call in calls.items():

        def layer(x: Any, y: Any, call: Call = call) -> Tensor:
            for a, b in x:
                out = call(a, b)
            return out

        graphs[name] = common.graph_of(layer, [(made, None) for made in layers], copies)
    return common.replay(graphs, copies, REPLAYS)


def host_cost(calls: dict[str, Call]) -> dict[str, float]:
    """Microseconds of the host for a direct call of 8 x 1024 x 2048."""
    (x, w) = operands(Point("", 8, 1024, 2048), 1)[0]

    def cost(call: Call) -> float:
        runs = []
        for _ in range(30):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(200):  # fewer than the launch queue takes: the device never holds the host
                call(x, w)
            runs.append((time.perf_counter() - begin) / 200 * 1e6)
        return round(statistics.median(runs), 2)

    return {name: cost(call) for name, call in calls.items()}


def summary(results: dict[str, dict[str, float]], every: list[Point]) -> dict[str, float]:
    """Geometric means of the ratios that the project asks for; above 1 is in our favour."""
    ratios: dict[str, list[float]] = {}
    for point in every:
        times = results.get(point.name, {})
        few = "1 to 16 rows" if point.rows <= 16 else f"{point.rows} rows"
        for mine, theirs, where in (
            (MINE, PINNED, f"{point.model}, {few}"),
            (SELECTED, PINNED, f"{point.model}, {few}"),
            (SELECTED, LIBRARY, "all points"),
            (MINE, VLLM, point.model),
            (SELECTED, VLLM, point.model),
        ):
            if mine in times and theirs in times:
                ratios.setdefault(f"{theirs} / {mine}, {where}", []).append(times[theirs] / times[mine])
    found = {}
    for what, values in ratios.items():
        found[what] = round(statistics.geometric_mean(values), 3)
        found[f"{what}, least"] = round(min(values), 3)
    return found


def table(results: dict[str, dict[str, float]], every: list[Point], copy: float) -> Iterator[str]:
    """Lines of a Markdown table: microseconds, and for ours the share of a copy's bandwidth."""
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    yield "| rows x N x K | " + " | ".join(names) + " | copy's bandwidth |"
    yield "| --- " * (len(names) + 2) + "|"
    for point in every:
        if point.name in results:
            times = results[point.name]
            share = point.bytes / copy / times[SELECTED]
            cells = [f"{times[n]:.2f}" if n in times else "" for n in names]
            yield f"| {point.name} | " + " | ".join(cells) + f" | {share:.0%} |"


def plot(results: dict[str, dict[str, float]], every: list[Point]) -> None:
    """Time over pinned cuBLAS's against rows, a panel a model, geometric means over its shapes."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for axes, model in zip(panels, ("Qwen3-0.6B", "Qwen3-8B"), strict=True):
        for name in (SELECTED, MINE, LIBRARY, VLLM, INDUCTOR):
            x, y = [], []
            for rows in ROWS:
                there = [results.get(p.name, {}) for p in every if p.model == model and p.rows == rows]
                ratios = [times[PINNED] / times[name] for times in there if name in times and PINNED in times]
                if ratios:
                    x.append(rows)
                    y.append(statistics.geometric_mean(ratios))
            if x:
                axes.plot(x, y, marker="o", label=name, linewidth=3 if name == SELECTED else 1.5)
        axes.axhline(1.0, color="grey", linewidth=1)
        axes.set(xscale="log", title=f"the four linears of a layer of {model}", xlabel="rows")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("speed, pinned cuBLAS = 1")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(common.RESULTS / "linear.png", dpi=110)


def main() -> None:
    """Compare, measure and write, or say which numbers are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two numbers of rows")
    parser.add_argument("--bits", type=int, default=2000, help="random shapes to compare (default: 2000)")
    parser.add_argument("--bits-seconds", type=float, default=120, help="time for that at most")
    parser.add_argument("--inductor", action="store_true", help="also Inductor's max-autotune (minutes)")
    options = parser.parse_args()
    every = points(options.quick)
    if not torch.cuda.is_available():
        raise SystemExit(
            f"linear.py measures a GPU, and torch sees none here. Nothing was measured or written. "
            f"Missing: {len(every)} points."
        )
    shapes = [(p.rows, p.n, p.k) for p in every] + random_shapes(options.bits)
    kernels = warm(shapes)
    calls, missing = contenders(options.inductor)
    found: dict[str, Any] = {"kernels": kernels, "missing": missing, "us": {}, "left out": {}}
    found["bits"] = compare_bits(options.bits, options.bits_seconds)
    found["copy TB/s"] = copy = copy_bandwidth() / 1e6
    for point in every:
        found["us"][point.name], wrong = measure(point, calls)
        found["left out"] |= {f"{point.name}, {name}": why for name, why in wrong.items()}
        torch.cuda.empty_cache()
        common.save("linear", found)
    layer = {name: call for name, call in calls.items() if name != INDUCTOR}
    found["a layer's four, 8 rows, us"] = {m: chain(layer, m) for m in ("Qwen3-0.6B", "Qwen3-8B")}
    found["host us"] = host_cost(calls)
    found["ratios"] = summary(found["us"], every)
    lines = list(table(found["us"], every, copy * 1e6))
    notes = [
        f"- {what}: {found[what]}" for what in ("copy TB/s", "bits", "a layer's four, 8 rows, us", "host us")
    ]
    notes += [f"- {what}: {ratio}" for what, ratio in found["ratios"].items()]
    notes += [f"- missing: {name}: {why}" for name, why in missing.items()]
    notes += [f"- left out: {name}: {why}" for name, why in found["left out"].items()]
    path = common.save("linear", found)
    plot(found["us"], every)
    (common.RESULTS / "linear.md").write_text("\n".join([*lines, "", *notes]) + "\n")
    print("\n".join([*lines, "", *notes, f"written: {path}"]))


if __name__ == "__main__":
    main()
