# SPDX-License-Identifier: Apache-2.0
"""How fast the norms are, beside every peer that can be imported and a device copy of the same bytes.

    python benchmarks/norms.py [--quick]       # needs a GPU; nothing is written without one

Each contender first proves itself: ours must have portable's bits, a peer must be within the op's tolerance of float64.
Then a CUDA graph of many calls over rotating tensors is replayed, the contenders taking turns, each with a cache that
holds none of them; the median over replays is kept. Results, table and plot go to benchmarks/results/norms.*.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import common
import torch
from torch import Tensor

import ir_core

EPSILON: Final = 1e-6
COLD_BYTES: Final = 256 << 20
"""Tensors of all rotations together: several times an L2 cache (H200: 50 MB)."""
CALLS: Final = 20
"""Calls in a graph at least, so that a replay's own cost (about 5 us) disappears."""
REPLAYS: Final = 60
BY_KERNEL: Final = "copy by an element-wise kernel"
"""The copy engine is faster on most sizes, and half as fast on 2 GiB: the better of the two is the measure."""


@dataclass(frozen=True)
class Point:
    """One shape. ``goal`` is what the project asks of it: microseconds, or a share of the copy's bandwidth."""

    op: str
    rows: int
    n: int
    goal: str = ""

    @property
    def name(self) -> str:
        return f"{self.op} {self.rows}x{self.n}"

    @property
    def bytes(self) -> int:
        """Bytes that must move in bfloat16: each activation read or written once, and the weight."""
        return (4 if self.op == "fused_add_rms_norm" else 2) * self.rows * self.n * 2 + self.n * 2


POINTS: Final = (
    Point("rms_norm", 16384, 4096, ">= 0.95 copy"),
    Point("rms_norm", 4096, 16384, ">= 0.95 copy"),
    Point("rms_norm", 648720, 128, "<= 82 us"),
    Point("rms_norm", 2048, 4096, "<= 11 us"),
    *(Point("rms_norm", m, 4096, "<= 1.9 us") for m in (1, 8, 64)),
    Point("rms_norm", 16, 2048),
    Point("rms_norm", 512, 8192),
    Point("rms_norm", 8192, 1024),
    Point("rms_norm", 1024, 65536),
    Point("fused_add_rms_norm", 16384, 7168, ">= 0.95 copy"),
    Point("fused_add_rms_norm", 65536, 8192, ">= 0.98 copy"),
    Point("fused_add_rms_norm", 4096, 7168, ">= 0.92 copy"),
    *(Point("fused_add_rms_norm", m, 7168, "<= 2.3 us") for m in (1, 8, 64)),
    Point("fused_add_rms_norm", 512, 4096),
)
QUICK: Final = ("rms_norm 2048x4096", "rms_norm 8x4096", "fused_add_rms_norm 4096x7168")

Call = Callable[[Tensor, Tensor, Tensor], Any]
"""``call(x, residual, weight)``; rms_norm ignores the residual, fused add may write in place."""


@dataclass(frozen=True)
class Contender:
    """A peer: its calls by op, and whether its result is one of ours (bits) or another's (tolerance)."""

    calls: dict[str, Call]
    ours: bool = False


def _ours() -> Contender:
    from ir_kernels_triton import rms_norm as norms

    return Contender({
        "rms_norm": lambda x, r, w: norms.rms_norm_batch_invariant(x, w, EPSILON),
        "fused_add_rms_norm": lambda x, r, w: norms.fused_add_rms_norm_batch_invariant(x, r, w, EPSILON),
    }, ours=True)  # fmt: skip


def _plain() -> Contender:
    from ir_kernels_triton import rms_norm as norms

    return Contender({
        "rms_norm": lambda x, r, w: norms.rms_norm(x, w, EPSILON),
        "fused_add_rms_norm": lambda x, r, w: norms.fused_add_rms_norm(x, r, w, EPSILON),
    })  # fmt: skip


def launched(spec_of: Callable[[int, bool], Any]) -> Contender:
    """A norm of ours as ``spec_of(columns, whether a residual is added)`` says, launched over contiguous matrices."""
    from ir_kernels_triton.launcher import Kernel
    from ir_kernels_triton.prepared_norm import matrix_launch

    @functools.cache
    def prepared(n: int, residual: bool) -> tuple[Kernel, Any]:
        kernel = Kernel(spec_of(n, residual), torch.device("cuda", torch.cuda.current_device()))
        return kernel, matrix_launch(kernel, n, residual)

    def single(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        y = torch.empty_like(x)
        kernel, launch = prepared(x.shape[-1], False)
        launch(kernel.spec.programs(len(x)), *map(kernel.pointer, (x, w, y)), len(x), EPSILON)
        return y

    def fused(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        kernel, launch = prepared(x.shape[-1], True)
        launch(kernel.spec.programs(len(x)), *map(kernel.pointer, (x, r, w)), len(x), EPSILON)
        return x, r

    return Contender({"rms_norm": single, "fused_add_rms_norm": fused}, ours=True)


def _ours_alone() -> Contender:
    """Ours without programmatic dependent launch."""
    from ir_kernels_triton.launch_config import rms_spec

    return launched(
        lambda n, residual: rms_spec(
            n, n, "bf16", "bf16", aligned=True, inner=False, residual=residual, canonical=True
        )
    )


def _vllm_c() -> Contender:
    importlib.import_module("vllm._custom_ops")
    ops = torch.ops._C
    _ = ops.rms_norm, ops.fused_add_rms_norm

    def single(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        y = torch.empty_like(x)
        ops.rms_norm(y, x, w, EPSILON)
        return y

    def fused(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ops.fused_add_rms_norm(x, r, w, EPSILON)
        return x, r

    return Contender({"rms_norm": single, "fused_add_rms_norm": fused})


def _vllm_c_pinned() -> Contender:
    if os.environ.get("VLLM_BATCH_INVARIANT") != "1":
        raise ImportError(
            "the C kernels read VLLM_BATCH_INVARIANT once a process: measured in a process of its own"
        )
    return _vllm_c()


def _vllm_triton() -> Contender:
    function = importlib.import_module("vllm.model_executor.layers.batch_invariant").rms_norm_batch_invariant
    return Contender({"rms_norm": lambda x, r, w: function(x, w, EPSILON)})


def _quack() -> Contender:
    module = importlib.import_module("quack.rmsnorm")

    def fused(x: Tensor, r: Tensor, w: Tensor) -> Any:
        return module.rmsnorm_fwd(x, w, residual=r, eps=EPSILON)[:2]

    return Contender({
        "rms_norm": lambda x, r, w: module.rmsnorm_fwd(x, w, eps=EPSILON)[0], "fused_add_rms_norm": fused,
    })  # fmt: skip


def _liger() -> Contender:
    module = importlib.import_module("liger_kernel.ops.rms_norm")
    fused_module = importlib.import_module("liger_kernel.ops.fused_add_rms_norm")
    return Contender({
        "rms_norm": lambda x, r, w: module.rms_norm_forward(x, w, EPSILON, 0.0, "llama", None)[0],
        "fused_add_rms_norm": lambda x, r, w: fused_module.fused_add_rms_norm_forward(
            x, r, w, EPSILON, 0.0, "llama")[:2],
    })  # fmt: skip


def _flashinfer() -> Contender:
    module = importlib.import_module("flashinfer.norm")

    def fused(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        module.fused_add_rmsnorm(x, r, w, EPSILON)
        return x, r

    return Contender({"rms_norm": lambda x, r, w: module.rmsnorm(x, w, EPSILON), "fused_add_rms_norm": fused})


def _aten() -> Contender:
    return Contender(
        {"rms_norm": lambda x, r, w: torch.nn.functional.rms_norm(x, (x.shape[-1],), w, EPSILON)}
    )


def _inductor() -> Contender:
    single = torch.compile(ir_core.ops.rms_norm.impls["native"].impl_fn, dynamic=False)
    fused = torch.compile(ir_core.ops.fused_add_rms_norm.impls["native"].impl_fn, dynamic=False)
    torch._dynamo.config.recompile_limit = 64
    return Contender({
        "rms_norm": lambda x, r, w: single(x, w, EPSILON),
        "fused_add_rms_norm": lambda x, r, w: fused(x, r, w, EPSILON),
    })  # fmt: skip


PINNED: Final = "vLLM C, pinned"
CONTENDERS: Final[dict[str, Callable[[], Contender]]] = {
    "triton_batch_invariant": _ours,
    "triton_batch_invariant, no dependent launch": _ours_alone,
    "triton": _plain,
    "vLLM C": _vllm_c,
    PINNED: _vllm_c_pinned,
    "vLLM Triton batch-invariant": _vllm_triton,
    "quack": _quack,
    "Liger": _liger,
    "FlashInfer": _flashinfer,
    "ATen": _aten,
    "Inductor": _inductor,
}


def importable() -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders of this process, and why the others are missing."""
    return common.importable(CONTENDERS)


def inputs(
    point: Point, copies: int, dtype: torch.dtype = torch.bfloat16
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``copies`` sets of x, residual and weight."""
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(point.n, device="cuda", generator=generator).to(dtype)
    made = []
    for _ in range(copies):
        x = torch.randn(point.rows, point.n, device="cuda", generator=generator, dtype=dtype)
        residual = x if point.op == "rms_norm" else torch.randn_like(x)
        made.append((x, residual, weight))
    return made


def correct(name: str, contender: Contender, point: Point) -> str | None:
    """Why a contender's result for ``point`` is wrong, or None. At most 256 rows are compared."""
    rows = min(point.rows, 256)
    ((x, r, w),) = inputs(Point(point.op, rows, point.n), 1)
    x0, r0 = x.clone(), r.clone()
    got = contender.calls[point.op](x.clone(), r.clone(), w)
    got = got if isinstance(got, tuple) else (got,)
    op = ir_core.IrOp.registry[point.op]
    args = (x0, w, EPSILON) if point.op == "rms_norm" else (x0, r0, w, EPSILON)
    if contender.ours:
        want = op.impls["portable"].impl_fn(*args)
        for a, b in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
            if not torch.equal(a.view(torch.int16), b.view(torch.int16)):
                return f"{name}: bits are not portable's"
        return None
    s = x0.double() + (r0.double() if point.op != "rms_norm" else 0)
    exact = s / (s.square().mean(-1, keepdim=True) + EPSILON).sqrt() * w.double()
    # Peers round in other places (some the sum, some before the weight): four more roundings of bfloat16.
    error = ((got[0].double() - exact).abs() / exact.abs().clamp(min=1e-3)).max().item()
    return None if error <= 8 * 2.0**-8 else f"{name}: relative error {error:.3g} against float64"


def graph_of(
    call: Callable[[tuple[Tensor, Tensor, Tensor]], object], sets: list[Any]
) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph that calls over all sets, and the number of calls in it."""
    turns = max(len(sets), CALLS)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for item in sets[:2]:
            call(item)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept: deque[object] = deque(maxlen=len(sets))  # or every result would land in the same, warm memory
    with torch.cuda.graph(graph):
        for turn in range(turns):
            kept.append(call(sets[turn % len(sets)]))
    return graph, turns


def measure(point: Point, contenders: dict[str, Contender]) -> dict[str, float]:
    """Median microseconds a call of each contender, and of a copy of the same bytes."""
    activations = point.bytes - 2 * point.n
    copies = max(2, min(-(-COLD_BYTES // activations), 400))
    sets = inputs(point, copies)
    half = [torch.zeros(activations // 4, dtype=torch.bfloat16, device="cuda") for _ in range(2 * copies)]
    pairs = list(zip(half[::2], half[1::2], strict=True))
    graphs = {
        "copy": graph_of(lambda pair: pair[0].copy_(pair[1]), pairs),
        BY_KERNEL: graph_of(lambda pair: torch.neg(pair[1], out=pair[0]), pairs),
    }
    for name, contender in contenders.items():
        if point.op in contender.calls:
            call = contender.calls[point.op]
            graphs[name] = graph_of(lambda item, call=call: call(*item), sets)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    # Few rows fit the L2 cache all together, and what it holds would depend on whose turn was before.
    others = torch.zeros(COLD_BYTES // 4, dtype=torch.int32, device="cuda")
    highest = others.new_empty(())
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for replay in range(REPLAYS + 5):
        for name, (graph, turns) in graphs.items():
            torch.amax(others, 0, out=highest)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if replay >= 5:
                times[name].append(start.elapsed_time(end) * 1000 / turns)
    found = {name: statistics.median(values) for name, values in times.items()}
    found["copy"] = min(found["copy"], found.pop(BY_KERNEL))
    return found


def host_cost() -> dict[str, float]:
    """Microseconds of the host for an eager call of 1x4096, beside what torch's own calls take."""
    from ir_kernels_triton import rms_norm as norms

    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    r, y, w = x.clone(), x.clone(), torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    op = ir_core.ops.rms_norm
    op.set_default(["triton_batch_invariant"])  # for the process, as VLLM_BATCH_INVARIANT=1 would
    torch_op = op.torch_op
    calls: dict[str, Callable[[], object]] = {
        "direct": lambda: norms.rms_norm_batch_invariant(x, w, EPSILON),
        "direct, fused add in place": lambda: norms.fused_add_rms_norm_batch_invariant(x, r, w, EPSILON),
        "torch op": lambda: torch_op(x, w, EPSILON, None),
        "torch.empty_like": lambda: torch.empty_like(x),
        "torch.add(out=)": lambda: torch.add(x, r, out=y),
        "F.rms_norm": lambda: torch.nn.functional.rms_norm(x, (4096,), w, EPSILON),
    }

    def cost(call: Callable[[], object]) -> float:
        runs = []
        for _ in range(30):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(200):  # fewer than the launch queue takes: the device never holds the host
                call()
            runs.append((time.perf_counter() - begin) / 200 * 1e6)
        return statistics.median(runs)

    found = {name: cost(call) for name, call in calls.items()}
    ir_core.set_default_torch_wrap(False)
    return found | {"op, without the torch op": cost(lambda: op(x, w, EPSILON))}


def table(results: dict[str, dict[str, float]], points: list[Point]) -> Iterator[str]:
    """Lines of a Markdown table: microseconds, and the share of the copy's bandwidth."""
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    yield "| point | goal | " + " | ".join(names) + " |"
    yield "| --- " * (len(names) + 2) + "|"
    for point in points:
        times = results[point.name]
        cells = [f"{times[n]:.2f} us ({times['copy'] / times[n]:.0%})" if n in times else "" for n in names]
        yield f"| {point.name} | {point.goal} | " + " | ".join(cells) + " |"


def summary(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Geometric means over the points of the ratios that the project asks for; above 1 is in our favour."""
    mine = "triton_batch_invariant"
    vllm = (PINNED, "vLLM Triton batch-invariant")
    peers = [n for n in CONTENDERS if not n.startswith("triton")]
    ratios: dict[str, list[float]] = {}
    for times in results.values():
        if mine not in times:
            continue
        for what, names in (("best peer", peers), ("vLLM batch-invariant", vllm), ("triton", ("triton",))):
            if there := [times[name] for name in names if name in times]:
                ratios.setdefault(f"{what} / {mine}", []).append(min(there) / times[mine])
    return {what: statistics.geometric_mean(values) for what, values in ratios.items()}


def plot(results: dict[str, dict[str, float]], points: list[Point]) -> None:
    """Bandwidth against size, one panel an op, one line a contender; other row lengths are single marks."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [n for n in ("copy", *CONTENDERS) if any(n in times for times in results.values())]
    colours = dict(zip(names, pyplot.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    figure, panels = pyplot.subplots(1, 2, figsize=(14, 6.5), sharey=True)
    for axes, (op, n) in zip(panels, (("rms_norm", 4096), ("fused_add_rms_norm", 7168)), strict=True):
        mine = sorted((p for p in points if p.op == op), key=lambda p: p.bytes)
        for name in names:
            for line in (True, False):
                there = [p for p in mine if name in results[p.name] and (p.n == n) == line]
                speed = [p.bytes / results[p.name][name] / 1e6 for p in there]
                width = 3 if name == "triton_batch_invariant" else 1
                style = (
                    {"marker": "o", "label": name, "linewidth": width} if line else {"marker": "x", "ls": ""}
                )
                axes.plot([p.bytes for p in there], speed, color=colours[name], **style)
        axes.set(
            xscale="log", title=f"{op}, rows of {n} (x: of other lengths)", xlabel="bytes that must move"
        )
    panels[0].set_ylabel("TB/s")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(common.RESULTS / "norms.png", dpi=100)


def pinned_elsewhere(arguments: list[str]) -> dict[str, Any]:
    """vLLM's C kernels with their block size pinned, from a process that starts with VLLM_BATCH_INVARIANT=1."""
    environment = {**os.environ, "VLLM_BATCH_INVARIANT": "1"}
    command = [sys.executable, __file__, "--only", PINNED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    with contextlib.suppress(IndexError, json.JSONDecodeError):
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    return {"missing": {PINNED: (done.stderr.splitlines() or ["no output"])[-1][:200]}, "us": {}}


def run(points: list[Point], only: str | None) -> dict[str, Any]:
    """Check, then measure, every point; wrong contenders are named and left out."""
    found, missing = importable()
    if only:
        found = {name: contender for name, contender in found.items() if name == only}
    wrong: list[str] = []
    results: dict[str, dict[str, float]] = {}
    for point in points:
        fit = {}
        for name, contender in found.items():
            if point.op not in contender.calls:
                continue
            try:
                why = correct(name, contender, point)
            except Exception as error:  # a peer may refuse a shape in any way
                why = f"{name}: {type(error).__name__}: {error}".splitlines()[0][:200]
            if why is None:
                fit[name] = contender
            elif contender.ours:
                raise SystemExit(f"{point.name}: {why}")
            else:
                wrong.append(f"{point.name}: {why}")
        results[point.name] = measure(point, fit)
        torch.cuda.empty_cache()
    return {"us": results, "missing": missing, "left out": wrong}


def main() -> None:
    """Measure and write, or say which numbers are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three points")
    parser.add_argument("--only", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    points = [point for point in POINTS if not options.quick or point.name in QUICK]
    if not torch.cuda.is_available():
        lines = "\n".join(f"  {point.name:36} goal {point.goal or '-'}" for point in points)
        raise SystemExit(
            "norms.py measures a GPU, and torch sees none here. Nothing was measured or written. Missing numbers, for "
            f"{', '.join(CONTENDERS)} and a copy:\n{lines}\n  host cost of an eager call             "
            "goal <= 5 us direct, <= 7 us through the torch op"
        )
    found = run(points, options.only)
    if options.only:
        print(json.dumps(found))
        return
    other = pinned_elsewhere(["--quick"] if options.quick else [])
    for name, times in other["us"].items():
        if PINNED in times:  # by the copy beside it, so that the two processes compare
            found["us"][name][PINNED] = times[PINNED] * found["us"][name]["copy"] / times["copy"]
            found["missing"].pop(PINNED, None)
    if PINNED in other["missing"]:
        found["missing"][PINNED] = other["missing"][PINNED]
    lines = list(table(found["us"], points))
    ratios = summary(found["us"])
    found |= {
        "host us": host_cost(),
        "geometric means": ratios,
        "goals": {p.name: p.goal for p in points if p.goal},
    }
    path = common.save("norms", found)
    plot(found["us"], points)
    notes = [f"- missing: {name}: {why}" for name, why in found["missing"].items()]
    notes += [f"- left out: {text}" for text in found["left out"]]
    notes += [f"- {what}: {ratio:.3f}" for what, ratio in ratios.items()]
    notes += [f"- host, {what}: {us:.2f} us" for what, us in found["host us"].items()]
    (common.RESULTS / "norms.md").write_text("\n".join([*lines, "", *notes]) + "\n")
    print("\n".join([*lines, "", *notes, f"written: {path}"]))


if __name__ == "__main__":
    main()
