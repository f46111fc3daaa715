# SPDX-License-Identifier: Apache-2.0
"""How fast attention is, beside torch's flash and cuDNN kernels and vLLM's Triton kernel.

    python benchmarks/attention.py [--quick] [--tune] [--seconds N]     # needs a GPU; nothing is written without one

Prefill of 2048 tokens, causal, and decode of 8 and 64 sequences against 512 to 8192 keys, with the heads of Qwen3-0.6B
and Qwen3-8B, bf16. The bits of a decode step are first compared with those of the same query in a prefill. Then a CUDA
graph of many calls is replayed, with keys and values that rotate through more than the L2 cache, the contenders taking
turns; the median over replays is kept. ``--tune`` times further launches of ours: no launch changes a bit, so what it
finds may go straight into ``attention_config.py``. Results go to benchmarks/results/attention.*.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import common
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ir_kernels_triton import attention_config
from ir_kernels_triton.attention import attend
from ir_kernels_triton.attention_config import Choice, Shape
from ir_kernels_triton.kernel_spec import KernelSpec

COLD_BYTES: Final = 200 << 20
"""Keys and values of all rotations together: several times an L2 cache (H200: 60 MB)."""
REPLAYS: Final = 9
MODELS: Final = {"Qwen3-0.6B": (16, 8, 128), "Qwen3-8B": (32, 8, 128)}
"""Heads of queries, heads of keys, elements of a head."""
MINE, FLASH, CUDNN, VLLM = "ours", "SDPA flash", "SDPA cuDNN", "vLLM Triton"

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """One call: ``batch`` sequences of ``queries`` queries and ``keys`` keys."""

    model: str
    batch: int
    queries: int
    keys: int

    @property
    def name(self) -> str:
        kind = "prefill" if self.queries > 1 else "decode"
        return f"{self.model}, {kind}, {self.batch} x {self.keys}"

    @property
    def heads(self) -> tuple[int, int, int]:
        return MODELS[self.model]

    @property
    def causal(self) -> bool:
        return self.queries > 1

    @property
    def bytes(self) -> int:
        """Bytes of keys and values."""
        _, groups, d = self.heads
        return 2 * 2 * self.batch * groups * self.keys * d

    @property
    def flops(self) -> float:
        """Of the two products, half of them for a causal call."""
        heads, _, d = self.heads
        return 4.0 * self.batch * heads * self.queries * self.keys * d / (2 if self.causal else 1)


def points(quick: bool) -> list[Point]:
    found = [Point(model, 1, 2048, 2048) for model in MODELS]
    found += [Point("Qwen3-8B", 1, 512, 4096)]
    for model in MODELS:
        for batch in (8, 64):
            for keys in (512, 8192) if quick else (512, 1024, 2048, 4096, 8192):
                found.append(Point(model, batch, 1, keys))
    return found


def _torch(backend: Any) -> Callable[[Point], Call]:
    def of(point: Point) -> Call:
        last = torch.ones(point.queries, point.keys, dtype=torch.bool, device="cuda")
        seen = last.tril(point.keys - point.queries) if point.causal and point.queries != point.keys else None
        if seen is not None and backend is SDPBackend.FLASH_ATTENTION:
            from torch.nn.attention.bias import causal_lower_right

            bias: Any = causal_lower_right(point.queries, point.keys)
        else:
            bias = seen

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, is_causal=point.causal and bias is None, enable_gqa=True
                )

        return call

    return of


def _vllm() -> Callable[[Point], Call]:
    module = importlib.import_module("vllm.v1.attention.ops.triton_unified_attention")
    unified = module.unified_attention

    def of(point: Point) -> Call:
        heads, groups, d = point.heads
        batch, queries, keys, size = point.batch, point.queries, point.keys, 16
        ends = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * queries
        lengths = torch.full((batch,), keys, device="cuda", dtype=torch.int32)
        table = torch.arange(batch * keys // size, device="cuda", dtype=torch.int32).view(batch, -1)
        segments = 16
        scratch = [
            torch.empty((batch * queries, heads, segments, *rest), device="cuda") for rest in ((d,), (), ())
        ]

        def call(
            q: Tensor, k: Tensor, v: Tensor
        ) -> Tensor:  # paged: blocks of 16 keys, all heads of a key together
            flat = q.transpose(1, 2).reshape(batch * queries, heads, d)
            out = torch.empty_like(flat)
            paged = [t.view(batch * keys // size, size, groups, d) for t in (k, v)]
            extra: dict[str, Any] = {}
            if "seq_threshold_3D" in unified.__code__.co_varnames:
                extra = {
                    "seq_threshold_3D": 128 // groups,
                    "num_par_softmax_segments": segments,
                    "softmax_segm_output": scratch[0],
                    "softmax_segm_max": scratch[1],
                    "softmax_segm_expsum": scratch[2],
                }
            unified(
                q=flat, k=paged[0], v=paged[1], out=out, cu_seqlens_q=ends, max_seqlen_q=queries, seqused_k=lengths,
                max_seqlen_k=keys, softmax_scale=d**-0.5, causal=True, window_size=(-1, -1), block_table=table,
                softcap=0.0, q_descale=None, k_descale=None, v_descale=None, **extra,
            )  # fmt: skip
            return out.view(batch, queries, heads, d).transpose(1, 2)

        return call

    return of


def contenders() -> tuple[dict[str, Callable[[Point], Call]], dict[str, str]]:
    """What can be measured in this process, and why the others are missing."""
    makers: dict[str, Callable[[], Callable[[Point], Call]]] = {
        MINE: lambda: lambda point: lambda q, k, v: attend(q, k, v, None, point.causal),
        FLASH: lambda: _torch(SDPBackend.FLASH_ATTENTION),
        CUDNN: lambda: _torch(SDPBackend.CUDNN_ATTENTION),
        VLLM: _vllm,
    }
    return common.importable(makers)


def shape_of(point: Point) -> Shape:
    heads, groups, d = point.heads
    return Shape("bf16", d, d, heads // groups, point.causal, False, None, True, True)


def candidates(point: Point) -> list[Choice]:
    """Launches worth trying."""
    if point.queries == 1:
        sizes = [(16, w, s) for w in (1, 2, 4, 8) for s in (2, 3, 4)]
        ways = (True, False) if point.keys > attention_config.PART_KEYS else (False,)
    else:
        sizes = [
            (64, 4, 2),
            (64, 4, 3),
            (64, 4, 4),
            (128, 8, 2),
            (128, 8, 3),
            (128, 8, 4),
            (128, 4, 2),
            (64, 8, 3),
        ]
        ways = (False, True) if point.queries < point.keys else (False,)
    found = [attention_config.fitting(shape_of(point), Choice(*size, way)) for size in sizes for way in ways]
    return list(dict.fromkeys(found))


def _compile(specs: list[KernelSpec]) -> None:
    from triton.backends.compiler import GPUTarget

    from ir_kernels_triton import compat

    for spec in specs:
        try:
            compat.compile_for(spec, GPUTarget("cuda", 90, 32))
        except Exception as error:  # one that needs too much of anything shows again when it is timed
            print(f"{spec.kernel}: {type(error).__name__}: {error}".splitlines()[0][:200])


def warm(every: list[Point], tune: bool) -> int:
    """Compile what will be launched, side by side, into Triton's cache; how many kernels that are."""
    specs = set()
    for point in every:
        shape = shape_of(point)
        heads, groups, _ = point.heads
        rows = point.queries * heads // groups
        chosen = attention_config.choose(shape, rows, point.keys, point.batch * groups)
        for choice in [chosen, *(candidates(point) if tune else [])]:
            specs.add(attention_config.rows_spec(shape, choice))
        specs.add(attention_config.merge_spec(shape))
    ordered = sorted(specs, key=repr)
    jobs = min(max((os.cpu_count() or 2) - 2, 1), 14)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, [ordered[i::jobs] for i in range(jobs)]))
    return len(ordered)


def operands(point: Point, copies: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values as a cache has them: all heads of a token together."""
    heads, groups, d = point.heads
    generator = torch.Generator("cuda").manual_seed(0)

    def made(tokens: int, number: int) -> Tensor:
        t = torch.randn(
            point.batch, tokens, number, d, device="cuda", generator=generator, dtype=torch.bfloat16
        )
        return t.transpose(1, 2)

    return [
        (made(point.queries, heads), made(point.keys, groups), made(point.keys, groups))
        for _ in range(copies)
    ]


def sets_of(point: Point) -> tuple[list[tuple[Tensor, Tensor, Tensor]], int]:
    copies = max(1, min(-(-COLD_BYTES // point.bytes), 16))
    return operands(point, copies), max(copies, 4)


def measure(
    point: Point, makers: dict[str, Callable[[Point], Call]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds of each contender at a point, and what went wrong."""
    sets, turns = sets_of(point)
    graphs, wrong = {}, {}
    want: Tensor | None = None
    for name, make in makers.items():
        try:
            call = make(point)
            got = call(*sets[0]).float()
            want = got if want is None else want
            error = ((got - want).norm() / want.norm()).item()
            if error > 2.0**-6:
                wrong[name] = f"relative error {error:.3g}"
                continue
            graphs[name] = common.graph_of(call, sets, turns)
        except Exception as error:  # a peer may refuse a shape in any way
            wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            torch.cuda.synchronize()
    return common.replay(graphs, turns, REPLAYS, digits=2), wrong


def tune(point: Point) -> dict[str, float]:
    """Microseconds of each launch at a point, the quickest first."""
    sets, turns = sets_of(point)
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    want = attend(*sets[0], None, point.causal)
    for choice in candidates(point):
        try:

            def call(q: Tensor, k: Tensor, v: Tensor, choice: Choice = choice) -> Tensor:
                return attend(q, k, v, None, point.causal, choice=choice)

            got = call(*sets[0])
            if not torch.equal(got.view(torch.int16), want.view(torch.int16)):
                raise SystemExit(f"{point.name}: {choice} has other bits")
            graphs[str(choice)] = common.graph_of(call, sets, turns)
        except (RuntimeError, ValueError) as error:  # out of registers or shared memory
            print(f"{choice}: {type(error).__name__}: {error}".splitlines()[0][:160])
    return dict(sorted(common.replay(graphs, turns, REPLAYS, digits=2).items(), key=lambda item: item[1]))


def compare_bits() -> str:
    """A decode step against the same query of a prefill, for both models."""
    for model, (heads, groups, d) in MODELS.items():
        q, k, v = operands(Point(model, 2, 1300, 1300), 1)[0]
        whole = attend(q, k, v, None, True)
        for at in (0, 511, 512, 1299):
            one = attend(q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1])
            if not torch.equal(
                one.view(torch.int16), whole[:, :, at : at + 1].contiguous().view(torch.int16)
            ):
                raise SystemExit(f"{model} ({heads}, {groups}, {d}): query {at} has other bits alone")
    return "decode and prefill agree"


def table(results: dict[str, dict[str, float]], every: list[Point]) -> Iterator[str]:
    """Lines of a Markdown table: microseconds, ours over the fastest other (above 1: ours is faster), and the rate."""
    names = [MINE, FLASH, CUDNN, VLLM]
    yield "| call | " + " | ".join(names) + " | flash / ours | best other / ours | ours |"
    yield "| --- " * (len(names) + 4) + "|"
    for point in every:
        times = results.get(point.name, {})
        if MINE not in times:
            continue
        cells = [f"{times[n]:.1f}" if n in times else "" for n in names]
        others = [times[n] for n in names[1:] if n in times]
        flash = f"{times[FLASH] / times[MINE]:.2f}" if FLASH in times else ""
        best = f"{min(others) / times[MINE]:.2f}" if others else ""
        rate = (
            f"{point.flops / times[MINE] / 1e6:.0f} TFLOP/s"
            if point.causal
            else f"{point.bytes / times[MINE] / 1e6:.2f} TB/s"
        )
        yield f"| {point.name} | " + " | ".join(cells) + f" | {flash} | {best} | {rate} |"


def main() -> None:
    """Compare, measure and write, or say which numbers are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two numbers of keys")
    parser.add_argument("--tune", action="store_true", help="time further launches of ours")
    parser.add_argument("--seconds", type=float, default=110, help="time at most (default: 110)")
    options = parser.parse_args()
    every = points(options.quick)
    if not torch.cuda.is_available():
        raise SystemExit(
            f"attention.py measures a GPU, and torch sees none here. Nothing was measured or written. "
            f"Missing: {len(every)} points."
        )
    start = time.monotonic()
    found: dict[str, Any] = {"kernels": warm(every, options.tune), "us": {}, "left out": {}, "tuned": {}}
    found["bits"] = compare_bits()
    makers, found["missing"] = contenders()
    for point in every:
        if time.monotonic() - start > options.seconds:
            found["left out"][point.name] = "out of time"
            continue
        found["us"][point.name], wrong = measure(point, makers)
        found["left out"] |= {f"{point.name}, {name}": why for name, why in wrong.items()}
        if options.tune and time.monotonic() - start < options.seconds:
            found["tuned"][point.name] = tune(point)
        torch.cuda.empty_cache()
        path = common.save("attention", found)
    lines = list(table(found["us"], every))
    notes = [f"- {found['bits']}", *(f"- missing: {name}: {why}" for name, why in found["missing"].items())]
    notes += [f"- left out: {name}: {why}" for name, why in found["left out"].items()]
    for name, times in found["tuned"].items():
        notes += [f"- {name}:", *(f"  - {choice}: {us}" for choice, us in list(times.items())[:6])]
    (common.RESULTS / "attention.md").write_text("\n".join([*lines, "", *notes]) + "\n")
    print("\n".join([*lines, "", *notes, f"written: {path}"]))


if __name__ == "__main__":
    main()
