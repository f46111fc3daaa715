# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism on the GPUs of one machine: bits on 1 and more ranks, and what the ordered sum costs.

    python benchmarks/ranks.py [--ranks 2] [--seconds 90] [--output FILE]     # needs as many GPUs; JSON on stdout

One process a GPU, over NCCL. First bits: row-parallel layers and a small block on 1 rank and on all of them, forward
and backward, twice. Then the median time of the ordered sum, both ways, and of NCCL's all-reduce, at 1 to 4096 rows
of 4096. ``--device cpu`` runs the first part over gloo, to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import parallelize_module

import ir_core
from ir_core import ops, parallel
from ir_core.parallel import summing

ROWS: Final = (1, 8, 64, 4096)
WIDTH: Final = 4096
CALLS: Final = 20
REPEATS: Final = 7


class Block(nn.Module):
    """An MLP between two norms, and a head over a vocabulary."""

    def __init__(self, width: int, inner: int, vocabulary: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down, self.head = nn.Linear(inner, width), nn.Linear(width, vocabulary, bias=False)
        self.norm = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = ops.rms_norm(x, self.norm, 1e-6)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        found: Tensor = self.head(ops.rms_norm(x, self.norm, 1e-6))
        return found


def block(mesh: DeviceMesh, device: str, sizes: tuple[int, int, int], rows: int) -> dict[str, Tensor]:
    """The output of the block and every gradient, whole."""
    torch.manual_seed(1)
    model = Block(*sizes).to(device=device, dtype=torch.bfloat16)
    x = torch.randn(rows, sizes[0]).to(device=device, dtype=torch.bfloat16).requires_grad_()
    grad = torch.randn(rows, sizes[2]).to(device=device, dtype=torch.bfloat16)
    plan = {name: parallel.ColwiseParallel() for name in ("gate", "up")}
    plan |= {"down": parallel.RowwiseParallel(), "head": parallel.ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(model, mesh, plan)
    out = model(x)
    out.backward(grad)
    found = {"out": out.detach(), "gradient of x": x.grad}
    for name, p in model.named_parameters():
        found[f"gradient of {name}"] = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    return {name: t.cpu() for name, t in found.items() if t is not None}


def layers(mesh: DeviceMesh, device: str, shapes: tuple[tuple[int, int, int], ...]) -> dict[str, Tensor]:
    """Row-parallel layers of such shapes (rows, N, K)."""
    group, rank, ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    found = {}
    for rows, n, k in shapes:
        generator = torch.Generator().manual_seed(rows + n + k)
        x, w = torch.randn(rows, k, generator=generator), torch.randn(n, k, generator=generator) / k**0.5
        mine = slice(rank * k // ranks, (rank + 1) * k // ranks)
        x, w = (t[:, mine].to(device=device, dtype=torch.bfloat16).contiguous() for t in (x, w))
        found[f"{rows} x {n} x {k}"] = parallel.row_parallel_linear(x, w, group=group).cpu()
    return found


def bits(meshes: dict[int, DeviceMesh], device: str) -> dict[str, Any]:
    """Which tensors differ, between one rank and all and between two runs; every rank calls this."""
    gpu = device != "cpu"
    shapes = (
        ((1, 1024, 2048), (8, 4096, 12288), (64, 4096, 4096), (520, 1024, 3072)) if gpu else ((3, 16, 256),)
    )
    sizes, rows = ((1024, 3072, 2048), 96) if gpu else ((128, 256, 128), 3)
    every = max(meshes)
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    for run in ("first", "second"):
        for ranks, mesh in meshes.items():
            if mesh.get_coordinate() is not None:
                with ir_core.scope(batch_invariant=True):
                    found[run, ranks] = layers(mesh, device, shapes) | block(mesh, device, sizes, rows)
            dist.barrier()

    def different(a: tuple[str, int], b: tuple[str, int]) -> list[str]:
        return [
            name
            for name, t in found[a].items()
            if not torch.equal(
                t.contiguous().view(torch.int16), found[b][name].contiguous().view(torch.int16)
            )
        ]

    result = {"two runs differ": different(("first", every), ("second", every))}
    if ("first", 1) in found:
        result |= {
            "tensors": list(found["first", 1]),
            "1 rank and all differ": different(("first", 1), ("first", every)),
        }
    return result


def microseconds(call: Callable[[], object]) -> float:
    """A call, of ``CALLS`` in a row; the slowest rank's median counts."""
    times = []
    for repeat in range(REPEATS + 1):
        dist.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        if repeat:  # the first warms up
            times.append(begin.elapsed_time(end) * 1000 / CALLS)
    found = torch.tensor(statistics.median(times), device="cuda")
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return round(found.item(), 2)


def latency(rows: int, ranks: int) -> dict[str, Any]:
    part = torch.randn(rows, WIDTH, device="cuda")
    half, wide = part.bfloat16(), part.clone()
    kind = torch.bfloat16
    return {
        "rows": rows,
        "ordered, gathered whole": microseconds(lambda: summing.whole(part, ranks, None, kind, None)),
        "ordered, by slices": microseconds(lambda: summing.by_slices(part, ranks, None, kind, None)),
        "ordered, as it chooses": microseconds(lambda: parallel.ordered_sum(part, dtype=kind)),
        "NCCL all-reduce of bfloat16": microseconds(lambda: dist.all_reduce(half)),
        "NCCL all-reduce of float32": microseconds(lambda: dist.all_reduce(wide)),
    }


def latencies(ranks: int, until: float) -> list[dict[str, Any]]:
    found = []
    for rows in ROWS:
        late = torch.tensor(float(time.monotonic() > until), device="cuda")
        dist.all_reduce(late, op=dist.ReduceOp.MAX)  # all ranks stop together
        found.append({"rows": rows, "left out": "for lack of time"} if late.item() else latency(rows, ranks))
    return found


def work(rank: int, ranks: int, device: str, seconds: float, folder: str) -> None:
    until = time.monotonic() + seconds
    gpu = device == "cuda"
    if gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=ranks)
    meshes = {}
    for count in (1, ranks):
        group = dist.new_group(list(range(count)))
        if rank < count:
            meshes[count] = DeviceMesh.from_group(group, device)
    if 1 not in meshes:
        meshes = {ranks: meshes[ranks]}
    result: dict[str, Any] = {"ranks": ranks, "torch": torch.__version__}
    result |= bits_on(meshes, device, ranks)
    if gpu:
        with ir_core.scope(batch_invariant=True):
            x = torch.zeros(8, 256, dtype=torch.bfloat16, device="cuda")
            result["provider"] = ops.linear_partial.dispatch(x, x).provider
        result["microseconds"] = latencies(ranks, until)
        result["device"] = torch.cuda.get_device_name()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result, indent=1))
    dist.destroy_process_group()


def bits_on(meshes: dict[int, DeviceMesh], device: str, ranks: int) -> dict[str, Any]:
    """:func:`bits`, where ranks that have no mesh of one rank take part in the barriers."""
    if 1 in meshes:
        return bits(meshes, device)
    return bits({1: _Absent(), ranks: meshes[ranks]}, device)  # type: ignore[dict-item]


class _Absent:
    """The mesh of ranks that this one does not belong to."""

    def get_coordinate(self) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, choices=(2, 4, 8))
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and torch.cuda.device_count() < args.ranks:
        raise SystemExit(f"This needs {args.ranks} GPUs, and there are {torch.cuda.device_count()}.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (args.ranks, args.device, args.seconds, folder), nprocs=args.ranks)
        text = Path(folder, "result.json").read_text()
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
