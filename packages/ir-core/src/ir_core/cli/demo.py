# SPDX-License-Identifier: Apache-2.0
"""The main job, as plain data: a decoder in batch-invariant mode, eagerly and compiled, its norms compared bit by bit.

Every norm of the model is given real rows, recorded while the model runs. The same rows then go through the op alone
and in batches, and what the op gave inside the model, eagerly and compiled, is held against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ir_core import lowering, ops, platforms, policy
from ir_core.cli.demo_model import EPSILON, Decoder, Norm, Record
from ir_core.resolve import select

SIZES: Final = (2, 64, 300)
LONE_ROW: Final = 65536
"""Elements of the row of the last part: from about 32768 on, torch splits a lone reduction over threads."""

Advance = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """What to run.

    Args:
        text: the bytes that are the tokens.
        layers, dtype, seed: of the model.
        rows: rows of each norm that are run alone.
        device: where it runs; the last part is about the CPU and runs there.
    """

    text: bytes
    layers: int
    dtype: torch.dtype
    rows: int
    device: str = "cpu"
    seed: int = 0

    @property
    def steps(self) -> int:
        """How often :func:`run` reports progress."""
        return 4 + 4 * self.layers + 1


def run(job: Job, advance: Advance) -> dict[str, Any]:
    """Do the job; calls ``advance(what comes next)`` before each part."""
    seconds: dict[str, float] = {}
    tokens = torch.tensor(list(job.text), device=job.device)
    model = Decoder(job.layers, job.dtype, job.seed).to(job.device)
    with policy.scope(batch_invariant=True), torch.no_grad():
        advance("eager", steps=0)
        start = time.perf_counter()
        logits, eager = model(tokens, record=True)
        seconds["eager"] = time.perf_counter() - start

        advance("compile")
        compiled = lowering.compile(model, fullgraph=True)
        start = time.perf_counter()
        again, lowered = compiled(tokens, record=True)
        seconds["compile and run"] = time.perf_counter() - start
        advance()

        bits = []
        for site, norm in model.norms().items():
            advance(site)
            bits.append(compare(site, norm, eager[site], lowered[site], job.rows))
        sites = [describe(site, norm, eager) for site, norm in model.norms().items()]
    advance(f"a lone row of {LONE_ROW}")
    native = lone_row()
    advance()
    return {
        "tokens": len(tokens),
        "layers": job.layers,
        "dtype": str(job.dtype).removeprefix("torch."),
        "device": platforms.target_of(tokens.device).describe(),
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "norms": sites,
        "lowered": "; ".join(report.summary() for report in lowering.reports(compiled))
        or "as the compile cache has it",
        "bits": bits,
        "logits": {
            "equal": torch.equal(logits, again),
            "largest_difference": float((logits - again).abs().max()),
            "note": "matmuls, rotary embedding, attention and silu are torch's own, eager and compiled",
        },
        "lone_row": native,
        "holds": all(site["holds"] for site in bits),
    }


def describe(site: str, norm: Norm, record: Record) -> dict[str, Any]:
    """What was selected for a norm, and why nothing else was."""
    given, _ = record[site]
    op = ops.fused_add_rms_norm if len(given) == 2 else ops.rms_norm
    args = op.apply_arg_defaults((*given, norm.weight, EPSILON))
    target = platforms.target_of(given[0].device)
    selection = select(op, policy.current(), target, args)
    return {"site": site, "shape": list(given[0].shape), **selection.to_dict()}


def call(norm: Norm, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The norm's op on rows [B, N] (and residual rows), as the model calls it."""
    if len(rows) == 1:
        return (ops.rms_norm(rows[0], norm.weight, EPSILON),)
    # It may write into its inputs: give it copies.
    return tuple(ops.fused_add_rms_norm.maybe_inplace(*(x.clone() for x in rows), norm.weight, EPSILON))


def take(tensors: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """These rows of each tensor, flattened to [rows, N]."""
    return tuple(t.flatten(0, -2)[index.to(t.device)] for t in tensors)


def different(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """For each row, whether any bit of any output differs."""
    integer = {2: torch.int16, 4: torch.int32}
    pairs = [
        (x.contiguous().view(integer[x.itemsize]), y.contiguous().view(integer[y.itemsize]))
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack([(x != y).any(dim=-1) for x, y in pairs]).any(dim=0)


def compare(site: str, norm: Norm, eager: Any, lowered: Any, rows: int) -> dict[str, Any]:
    """Rows of one norm alone, against the same rows in batches and inside the model, eager and compiled."""
    count = eager[0][0].flatten(0, -2).shape[0]
    sample = torch.linspace(0, count - 1, min(rows, count)).long()
    alone = _alone(norm, take(eager[0], sample))
    found = {str(size): _tally(_in_batches(norm, eager[0], sample, size), alone) for size in SIZES}
    found["eager run"] = _tally(take(eager[1], sample), alone)
    # What is before the norm may round differently once it is compiled, so the norm has rows of its own there.
    theirs = take(lowered[0], sample)
    same_rows = not bool(different(theirs, take(eager[0], sample)).any())
    found["compiled run"] = _tally(take(lowered[1], sample), alone if same_rows else _alone(norm, theirs))
    return {
        "site": site,
        "rows_in_model": count,
        "width": eager[0][0].shape[-1],
        "alone_against": found,
        "holds": not any(result["different"] for result in found.values()),
    }


def _alone(norm: Norm, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    parts = [call(norm, tuple(x[i : i + 1] for x in rows)) for i in range(rows[0].shape[0])]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def _in_batches(norm: Norm, given: tuple[Tensor, ...], sample: Tensor, size: int) -> tuple[Tensor, ...]:
    """The sampled rows in batches of ``size``; the last batch is filled with other rows of the model."""
    count = given[0].flatten(0, -2).shape[0]
    parts = []
    for start in range(0, len(sample), size):
        mine = sample[start : start + size]
        others = torch.arange(size - len(mine)) % count
        outputs = call(norm, take(given, torch.cat((mine, others))))
        parts.append(tuple(x[: len(mine)] for x in outputs))
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def _tally(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> dict[str, int]:
    rows = different(a, b)
    return {"rows": rows.numel(), "different": int(rows.sum())}


def lone_row(batch: int = 32) -> dict[str, Any]:
    """A long float32 row alone against the same row in a batch: ``native`` beside ``portable``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, LONE_ROW, generator=generator)
    found: dict[str, Any] = {"width": LONE_ROW, "batch": batch, "threads": torch.get_num_threads()}
    for provider in ("native", "portable"):
        run = ops.rms_norm.impls[provider].impl_fn
        alone = torch.cat([run(x[i : i + 1], None, EPSILON) for i in range(batch)])
        together = run(x, None, EPSILON)
        found[provider] = {
            "different_rows": int(different((alone,), (together,)).sum()),
            "different_elements": int((alone != together).sum()),
            "largest_difference": float((alone - together).abs().max()),
        }
    return found
