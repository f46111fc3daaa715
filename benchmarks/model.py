# SPDX-License-Identifier: Apache-2.0
"""What batch_invariant_mode costs a whole model: prefill and decode, eager and compiled, mode on and off.

Qwen3-0.6B's configuration (``--model 8b``: Qwen3-8B's) with random weights, in plain PyTorch, built from transformers::

    python benchmarks/model.py --seconds 300 --output model.json
    python benchmarks/model.py --device cpu --model tiny --seconds 60

Each cell is the median of repeated forwards after a warm-up. Prefill: 2048 tokens of one prompt, without a cache.
Decode: one token of each of 1, 8 and 64 sequences, behind 512 tokens in a static cache. Compiled:
``mode="reduce-overhead"``, with CUDA graphs. Cells that the time does not suffice for are left out, and said. Bits are
checked beside: the logits of prompts alone against those in a batch, under the mode.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

import ir_core

SIZES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    },
}
HISTORY = 512


def build(size: str, device: str, dtype: torch.dtype) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SIZES[size], max_position_embeddings=4096, rope_theta=1e6)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval().requires_grad_(False)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str, until: float) -> tuple[float, int]:
    """Median milliseconds of a call and how many were made, after two warm-up calls; stops at ``until``."""
    for _ in range(2):
        call()
    wait(device)
    times: list[float] = []
    stop = min(until, time.monotonic() + 8)
    while len(times) < 5 or (len(times) < 50 and time.monotonic() < stop):
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
        if time.monotonic() > until and times:
            break
    return statistics.median(times) * 1e3, len(times)


def prefill(model: Any, run: Callable[..., Any], tokens: int, device: str) -> Callable[[], Any]:
    ids = torch.randint(model.config.vocab_size, (1, tokens), device=device)
    return lambda: run(input_ids=ids, use_cache=False, logits_to_keep=1).logits


def decode(model: Any, run: Callable[..., Any], batch: int, history: int, device: str) -> Callable[[], Any]:
    """One token of each sequence; the cache is static, so that a graph's shapes stay what they are."""
    from transformers import StaticCache

    config = model.config
    cache = StaticCache(config=config, max_cache_len=history + 16)
    ids = torch.randint(config.vocab_size, (batch, history), device=device)
    one = ids[:, :1].contiguous()
    at = torch.full((batch, 1), history, device=device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    kept = [getattr(layer, "cumulative_length", None) for layer in cache.layers]

    def step() -> Any:
        for layer, length in zip(cache.layers, kept, strict=True):  # the same place again
            if isinstance(length, torch.Tensor):
                layer.cumulative_length.fill_(history)
            elif length is not None:
                layer.cumulative_length = history
        return run(input_ids=one, past_key_values=cache, position_ids=at, use_cache=True).logits

    return step


def same_bits(model: Any, device: str, history: int) -> bool:
    """Whether the last logits of a prompt are the same alone and in a batch of 8."""
    ids = torch.randint(model.config.vocab_size, (8, min(history, 64)), device=device)
    together = model(input_ids=ids, use_cache=False).logits[:, -1]
    alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[:, -1] for row in ids[:3]])
    return torch.equal(together[:3], alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=SIZES, default="0.6b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300, help="bound of the whole run")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the prompt")
    parser.add_argument("--history", type=int, default=HISTORY, help="tokens in the cache while decoding")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    device = options.device
    model = build(options.model, device, getattr(torch, options.dtype))
    jobs: dict[str, Any] = {
        f"prefill {options.prefill}": lambda run: prefill(model, run, options.prefill, device)
    }
    for batch in options.batches:
        jobs[f"decode {batch}"] = lambda run, batch=batch: decode(model, run, batch, options.history, device)
    cells: list[dict[str, Any]] = []
    with torch.no_grad():
        with ir_core.batch_invariant_mode():
            equal = same_bits(model, device, options.history)
        for how in ("eager",) if options.eager_only else ("eager", "compiled"):
            for job, make in jobs.items():
                for mode in (False, True):
                    cells.append(measure(model, how, job, make, mode, device, until))
                    print(json.dumps(cells[-1]), flush=True)
    results = {
        "model": options.model,
        "dtype": options.dtype,
        "bits equal, 8 against 1": equal,
        "cells": cells,
    }
    table(cells)
    if options.output:
        options.output.write_text(json.dumps({"machine": common.machine(), **results}, indent=1) + "\n")
    elif device != "cpu":
        print(common.save("model", results))


def measure(
    model: Any, how: str, job: str, make: Any, mode: bool, device: str, until: float
) -> dict[str, Any]:
    """One cell; an error is its result, so that the others are still measured."""
    cell: dict[str, Any] = {"how": how, "job": job, "mode": mode}
    if time.monotonic() > until:
        return {**cell, "skipped": "no time left"}
    scope: Any = ir_core.batch_invariant_mode() if mode else contextlib.nullcontext()
    torch._dynamo.reset()
    try:
        with scope:
            run = model
            if how == "compiled":
                run = torch.compile(
                    model, fullgraph=True, mode="reduce-overhead" if device != "cpu" else None
                )
            start = time.monotonic()
            call = make(run)
            call()
            wait(device)
            cell["first call, s"] = round(time.monotonic() - start, 1)
            cell["ms"], cell["calls"] = timed(call, device, until)
    except Exception as error:  # reported as the cell's result
        cell["error"] = f"{type(error).__name__}: {str(error)[:400]}"
    return cell


def table(cells: list[dict[str, Any]]) -> None:
    """Print milliseconds without and with the mode, and their ratio."""
    found = {(c["how"], c["job"], c["mode"]): c.get("ms") for c in cells}
    print(f"{'':10} {'':14} {'off, ms':>10} {'on, ms':>10} {'ratio':>7}")
    for how, job in dict.fromkeys((c["how"], c["job"]) for c in cells):
        off, on = found[how, job, False], found[how, job, True]
        ratio = f"{on / off:7.2f}" if on and off else "      -"
        texts = [f"{ms:10.3f}" if ms else f"{'-':>10}" for ms in (off, on)]
        print(f"{how:10} {job:14} {texts[0]} {texts[1]} {ratio}")


if __name__ == "__main__":
    main()
