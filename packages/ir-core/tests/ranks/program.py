# SPDX-License-Identifier: Apache-2.0
"""What runs on the ranks: 8 processes over gloo, and in them every case on groups of 1, 2, 4 and 8 ranks.

``python program.py FILE`` writes what rank 0 of each group got: ``{(case, ranks): tensors by name}``. The processes are
forked after the imports, so that 8 of them start as quickly as one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import parallel as torch_parallel

import ir_core
from ir_core import ops, parallel
from ir_core.parallel import linears, summing
from ir_core.policy import OpPolicy

WORLD, ROWS, HIDDEN, HEADS, INNER, VOCAB = 8, 6, 256, 8, 512, 384
Found = dict[str, Tensor]


class Block(nn.Module):
    """Attention by heads, an MLP, a head over the vocabulary: every way in which tensor parallelism splits a layer."""

    def __init__(self, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        for name, (into, out) in SIZES.items():
            setattr(self, name, nn.Linear(into, out, bias=name in BIASED, dtype=dtype))
        for number in (1, 2):
            self.register_parameter(f"norm{number}", nn.Parameter(torch.ones(HIDDEN, dtype=dtype)))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(ROWS, self.heads, HIDDEN // HEADS).transpose(0, 1)
            for layer in (self.q, self.k, self.v)
        )
        probabilities = torch.softmax(ops.bmm(q, k).float() * (HIDDEN // HEADS) ** -0.5, -1).to(x.dtype)
        mixed = ops.bmm(probabilities, v.transpose(1, 2).contiguous())
        out: Tensor = self.o(mixed.transpose(0, 1).reshape(ROWS, -1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(ops.rms_norm(x, self.norm1, 1e-6))
        y = ops.rms_norm(x, self.norm2, 1e-6)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        out: Tensor = self.lm_head(x)
        return out


SIZES = {
    **dict.fromkeys("qkvo", (HIDDEN, HIDDEN)),
    "gate": (HIDDEN, INNER),
    "up": (HIDDEN, INNER),
    "down": (INNER, HIDDEN),
    "lm_head": (HIDDEN, VOCAB),
}
ROWWISE, BIASED = ("o", "down"), ("q", "o", "down", "lm_head")


def made(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """The same model, input and gradient on every rank."""
    torch.manual_seed(4)
    return Block(HEADS, dtype), torch.randn(ROWS, HIDDEN).to(dtype), torch.randn(ROWS, VOCAB).to(dtype)


def parallelized(model: nn.Module, mesh: DeviceMesh, styles: object) -> nn.Module:
    """The model under a plan: ``styles`` has torch's names."""
    rowwise, colwise = styles.RowwiseParallel, styles.ColwiseParallel  # type: ignore[attr-defined]
    plan = {name: rowwise() if name in ROWWISE else colwise() for name in SIZES}
    plan["lm_head"] = colwise(output_layouts=Replicate())
    model.heads = HEADS // mesh.size()  # type: ignore[assignment]
    return torch_parallel.parallelize_module(model, mesh, plan)


def trained(model: nn.Module, x: Tensor, grad: Tensor) -> Found:
    """The output and every gradient, whole."""
    x.requires_grad_()
    out = model(x)
    out.backward(grad)
    found = {"out": out.detach(), "x": x.grad}
    for name, parameter in model.named_parameters():
        g = parameter.grad
        found[name] = g.full_tensor() if isinstance(g, DTensor) else g
    return found  # type: ignore[return-value]


def styles(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """Our styles."""
    model, x, grad = made(dtype)
    return trained(parallelized(model, mesh, parallel), x, grad)


def plans(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """torch's own plans, where F.linear of DTensors is ours."""
    model, x, grad = made(dtype)
    with parallel.OrderedPlans():
        return trained(parallelized(model, mesh, torch_parallel), x, grad)


def mode(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """torch's own plans in the mode, which covers F.linear and more."""
    model, x, grad = made(dtype)
    with ir_core.batch_invariant_mode():
        return trained(parallelized(model, mesh, torch_parallel), x, grad)


def torchs(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """torch's own plans as they are."""
    model, x, grad = made(dtype)
    model.heads = HEADS // mesh.size()  # type: ignore[assignment]
    return trained(parallelized(model, mesh, torch_parallel), x, grad)


def functions(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """The functions on plain tensors, with and without a bias, and ``linear`` in the order that was asked for."""
    torch.manual_seed(5)
    group, rank, ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    found = {}
    for k in (128, 384):
        x, w, b = torch.randn(2, 3, k).to(dtype), torch.randn(16, k).to(dtype), torch.randn(16).to(dtype)
        mine = slice(rank * k // ranks, (rank + 1) * k // ranks)
        for name, bias in (("plain", None), ("biased", b)):
            found[f"{name}{k}"] = parallel.row_parallel_linear(x[..., mine], w[:, mine], bias, group=group)
            with ir_core.scope(ops={"linear": OpPolicy(order="chain16x8")}):
                found[f"{name}{k} by linear"] = ops.linear(x, w, bias)
    return found


# What makes ranks differ: each stands in for `summing.ordered_sum` where a row-parallel layer ends.


def all_reduced(part: Tensor, *, bias=None, dtype=None, group=None) -> Tensor:  # type: ignore[no-untyped-def]
    part = part.clone()
    dist.all_reduce(part, group=group)
    return summing._end(part, bias, dtype)


def rounded(part: Tensor, *, bias=None, dtype=None, group=None) -> Tensor:  # type: ignore[no-untyped-def]
    return summing.ordered_sum(part.to(torch.bfloat16).float(), bias=bias, dtype=dtype, group=group)


def in_a_row(part: Tensor, *, bias=None, dtype=None, group=None) -> Tensor:  # type: ignore[no-untyped-def]
    gathered = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, part, group=group)
    return summing._end(sum(gathered[1:], gathered[0]), bias, dtype)


def other_ranks(part: Tensor, *, bias=None, dtype=None, group=None) -> Tensor:  # type: ignore[no-untyped-def]
    gathered = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, part, group=group)
    half = len(gathered) // 2
    turned = [gathered[i % 2 * half + i // 2] for i in range(len(gathered))] if half else gathered
    return summing._end(summing.tree(turned), bias, dtype)


def planted(wrong: Callable[..., Tensor]) -> Callable[[DeviceMesh, torch.dtype], Found]:
    def case(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
        right, linears.ordered_sum = linears.ordered_sum, wrong
        try:
            return styles(mesh, dtype)
        finally:
            linears.ordered_sum = right

    return case


def by_slices(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """Every sum by slices."""
    before, summing.SLICES_FROM = summing.SLICES_FROM, 1
    try:
        return styles(mesh, dtype)
    finally:
        summing.SLICES_FROM = before


def refused(mesh: DeviceMesh, dtype: torch.dtype) -> Found:
    """What has no order is an error on every rank, before anything is sent."""
    group, ranks = mesh.get_group(), mesh.size()
    said = []
    calls: list[Callable[[], object]] = [
        lambda: parallel.row_parallel_linear(torch.ones(2, 24), torch.ones(3, 24), group=group),
        lambda: parallel.ordered_sum(torch.ones(3).bfloat16(), group=group),
        lambda: parallel.linear_of_dtensors(
            *(DTensor.from_local(torch.ones(16, 16), mesh, [p]) for p in (Shard(0), Shard(1)))
        ),
    ]
    for call in calls:
        try:
            call()
            said.append(0)
        except ir_core.errors.ArgumentError:
            said.append(1)
    return {"said": torch.tensor(said), "ranks": torch.tensor(ranks)}


CASES: dict[str, tuple[Callable[[DeviceMesh, torch.dtype], Found], torch.dtype]] = {
    "styles bf16": (styles, torch.bfloat16),
    "styles f32": (styles, torch.float32),
    "plans bf16": (plans, torch.bfloat16),
    "mode bf16": (mode, torch.bfloat16),
    "by slices bf16": (by_slices, torch.bfloat16),
    "functions bf16": (functions, torch.bfloat16),
    "functions f32": (functions, torch.float32),
    "refused": (refused, torch.bfloat16),
    "torch's own bf16": (torchs, torch.bfloat16),
    "planted all-reduce": (planted(all_reduced), torch.float32),
    "planted rounding": (planted(rounded), torch.bfloat16),
    "planted row of sums": (planted(in_a_row), torch.float32),
    "planted other ranks": (planted(other_ranks), torch.float32),
}


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=number, world_size=WORLD)
    results = {}
    try:
        for ranks in (1, 2, 4, 8):
            group = dist.new_group(
                list(range(WORLD - ranks, WORLD))
            )  # the last ones: rank 0 of a group is any rank
            if number >= WORLD - ranks:
                mesh = DeviceMesh.from_group(group, "cpu")
                for name, (case, dtype) in CASES.items():
                    with ir_core.scope(batch_invariant=True):
                        results[name, ranks] = case(mesh, dtype)
                    if (out := results[name, ranks].get("out")) is not None:
                        everywhere = [torch.empty_like(out) for _ in range(ranks)]
                        dist.all_gather(everywhere, out.contiguous(), group=group)
                        assert all(torch.equal(out, other) for other in everywhere), f"{name}: ranks differ"
        torch.save(results, f"{folder}/rank{number}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    dist.destroy_process_group()


def main(file: str) -> None:
    ops.linear, ops.linear_partial, ops.bmm, ops.rms_norm  # noqa: B018  imported before the fork
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank, (folder,), nprocs=WORLD, start_method="fork")  # type: ignore[no-untyped-call]
        results = {}
        for number in range(WORLD):  # the first rank of a group of so many is WORLD - so many
            results |= {
                key: value
                for key, value in torch.load(f"{folder}/rank{number}.pt").items()
                if number == WORLD - key[1]
            }
        torch.save(results, Path(file))


if __name__ == "__main__":
    main(sys.argv[1])
