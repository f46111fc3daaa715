# SPDX-License-Identifier: Apache-2.0
"""What the adapter costs or saves in vLLM: the table of vLLM pull request 36816 again, on one GPU.

    python benchmarks/vllm_latency.py                    # all eight configurations; about two minutes each
    python benchmarks/vllm_latency.py --only eager       # those with "eager" in their name; results are merged

Needs one GPU, vLLM 0.26.0 with its torch 2.11.0 and Triton 3.6.0, and this project installed beside it. The model is
Qwen3-0.6B's configuration with dummy weights, so nothing is downloaded; attention is TRITON_ATTN. Every configuration
runs in a process of its own: VLLM_BATCH_INVARIANT 0 and 1, compiled and --enforce-eager, without the adapter
(VLLM_PLUGINS is empty) and with it.

Measured, as `vllm bench latency` does: seconds for 8 prompts of 32 tokens and 128 new tokens, after 10 warm-ups.
Beyond it: tokens a second for 256 prompts of 256 tokens and 64 new ones, time to the first token and between tokens at
batch 8, and vLLM's determinism test: one prompt alone and among 31 others, logprobs compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import common

NAME = "vllm_latency"
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
# name -> (VLLM_BATCH_INVARIANT, eager, with the adapter); pairs that are compared stand together.
CONFIGURATIONS = {
    f"{'invariant' if invariant else 'default'}-{'eager' if eager else 'compiled'}-{'ir' if adapter else 'vllm'}": (
        invariant,
        eager,
        adapter,
    )
    for invariant in (True, False)
    for eager in (True, False)
    for adapter in (False, True)
}
# With the adapter against without: at most so much of vLLM's own latency. With invariance off nothing of ours runs, so
# any difference is noise between processes; 2 % is what repeated runs of one configuration differ by.
GOALS = {
    "invariant-eager": 0.95,
    "invariant-compiled": 1.00,
    "default-eager": 1.02,
    "default-compiled": 1.02,
}
BATCH, INPUT, OUTPUT, WARMUPS, ROUNDS = 8, 32, 128, 10, 30
THROUGHPUT = {"requests": 256, "input": 256, "output": 64}
COMPANY = 31


def main() -> int:
    """Run what was asked for; 0 when done or when this machine cannot, 1 when a configuration failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="latency measurements a configuration")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: print the table of the last results"
    )
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, file = options.child
        Path(file).write_text(json.dumps(measure(name, options.rounds)))
        return 0
    results = previous()
    if options.report:
        report(results)
        return 0
    if missing := cannot_run():
        print(f"{NAME}: {missing} Nothing was measured.", file=sys.stderr)
        return 0
    failed = []
    for name in CONFIGURATIONS:
        if options.only in name:
            found = in_process(name, options.rounds)
            if found is None:
                failed.append(name)
            else:
                results[name] = found
                common.save(NAME, {"settings": settings(), "configurations": results})
    report(results)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def cannot_run() -> str:
    """Why this machine cannot run the benchmark, in one sentence; "" if it can. Initialises no GPU."""
    import torch

    try:
        version("vllm")
    except PackageNotFoundError:
        return "needs vLLM (0.26.0 beside torch 2.11.0 and Triton 3.6.0)."
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and torch finds none here."
    return ""


def settings() -> dict[str, Any]:
    return {
        "latency": {"batch": BATCH, "input": INPUT, "output": OUTPUT, "warmups": WARMUPS},
        "throughput": THROUGHPUT,
        "model": "Qwen3-0.6B configuration, dummy weights, bfloat16, TRITON_ATTN, no prefix caching",
    }


def previous() -> dict[str, Any]:
    path = common.RESULTS / f"{NAME}.json"
    return dict(json.loads(path.read_text())["configurations"]) if path.exists() else {}


def in_process(name: str, rounds: int) -> dict[str, Any] | None:
    """One configuration in a process of its own; None, with the end of its log on stderr, if it failed."""
    invariant, _, adapter = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory(prefix="vllm-latency-") as folder:
        result = Path(folder) / "result.json"
        env = os.environ | {
            "VLLM_BATCH_INVARIANT": str(int(invariant)),
            "VLLM_PLUGINS": "ir_vllm_adapter" if adapter else "",
            "VLLM_CACHE_ROOT": str(Path(folder) / "cache"),  # no configuration takes another's graphs
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--rounds", str(rounds), "--child", name, str(result)]
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        started = time.monotonic()
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
        if done.returncode or not result.exists():
            print(done.stdout[-4000:], file=sys.stderr)
            return None
        found: dict[str, Any] = json.loads(result.read_text())
    lines = done.stdout.splitlines()
    found["adapter_said"] = [line.partition("] ")[2] for line in lines if "log.py:" in line][:30]
    return found


# -- in the process of one configuration ---------------------------------------------------------------------


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Everything about one configuration, in this process."""
    from vllm import LLM

    _, eager, _ = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory(prefix="qwen3-0.6b-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(QWEN3_0_6B))
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=eager,
            max_model_len=1024,
            max_num_seqs=256,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.5,
            attention_config={"backend": "TRITON_ATTN"},
            seed=0,
        )
        return {
            "latency": latency(llm, rounds),
            "throughput": throughput(llm),
            "streaming": streaming(llm),
            "deterministic": deterministic(llm),
        }


def prompts(count: int, length: int, seed: int = 0) -> list[Any]:
    from vllm.inputs import TokensPrompt

    rng = random.Random(seed)
    return [
        TokensPrompt(prompt_token_ids=[rng.randrange(10_000) for _ in range(length)]) for _ in range(count)
    ]


def sampling(output: int, **more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**({"ignore_eos": True, "max_tokens": output, "detokenize": False} | more))


def latency(llm: Any, rounds: int) -> dict[str, float]:
    """Seconds from a batch of prompts to its last token."""
    batch, params = prompts(BATCH, INPUT), sampling(OUTPUT, temperature=1.0)
    seconds = []
    for number in range(WARMUPS + rounds):
        start = time.perf_counter()
        llm.generate(batch, params, use_tqdm=False)
        if number >= WARMUPS:
            seconds.append(time.perf_counter() - start)
    low, *_, high = (
        statistics.quantiles(seconds, n=10, method="inclusive")
        if len(seconds) > 1
        else (seconds[0], seconds[0])
    )
    return {
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "p10": low,
        "p90": high,
    }


def throughput(llm: Any) -> dict[str, float]:
    """Tokens a second when the engine is full; the better of two rounds."""
    batch = prompts(THROUGHPUT["requests"], THROUGHPUT["input"], seed=1)
    params = sampling(THROUGHPUT["output"], temperature=0.0)
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        llm.generate(batch, params, use_tqdm=False)
        best = min(best, time.perf_counter() - start)
    new = THROUGHPUT["requests"] * THROUGHPUT["output"]
    total = new + THROUGHPUT["requests"] * THROUGHPUT["input"]
    return {"output_tokens_per_second": new / best, "total_tokens_per_second": total / best}


def streaming(llm: Any, repetitions: int = 5) -> dict[str, float]:
    """Milliseconds to the first token, and between tokens, as a client of the engine sees them at batch 8."""
    engine = llm.llm_engine
    first: list[float] = []
    between: list[float] = []
    for repetition in range(repetitions + 1):
        seen: dict[str, tuple[int, float]] = {}
        start = time.perf_counter()
        for number, prompt in enumerate(prompts(BATCH, INPUT, seed=2)):
            engine.add_request(f"{repetition}-{number}", prompt, sampling(OUTPUT, temperature=0.0))
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            for output in outputs:
                tokens = len(output.outputs[0].token_ids)
                before = seen.get(output.request_id)
                if repetition and before is None:
                    first.append((now - start) * 1e3)
                elif repetition and before is not None and tokens > before[0]:
                    between.append((now - before[1]) * 1e3 / (tokens - before[0]))
                seen[output.request_id] = (tokens, now)
    return {"ttft_ms": statistics.median(first), "itl_ms": statistics.median(between)}


def deterministic(llm: Any) -> dict[str, Any]:
    """vLLM's own test: a prompt alone and in the middle of others gives the same tokens and bits of its logprobs."""
    needle = prompts(1, 100, seed=3)
    company = [p for length in (3, 40, 200) for p in prompts(COMPANY // 3 + 1, length, seed=length)][:COMPANY]
    params = sampling(32, temperature=0.0, logprobs=5)

    def bits(output: Any) -> list[Any]:
        steps = output.outputs[0].logprobs
        return [sorted((token, value.logprob.hex()) for token, value in step.items()) for step in steps]

    (alone,) = llm.generate(needle, params, use_tqdm=False)
    half = len(company) // 2
    among = llm.generate([*company[:half], *needle, *company[half:]], params, use_tqdm=False)[half]
    same = [a == b for a, b in zip(bits(alone), bits(among), strict=True)]
    return {"bitwise_equal": all(same), "equal_steps": sum(same), "steps": len(same)}


# -- what it says --------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    """Print the table and the goals, and draw the latencies."""
    if not results:
        print("no results yet")
        return
    header = f"{'configuration':28}{'latency s':>11}{'ratio':>8}{'tok/s':>9}{'TTFT ms':>9}{'ITL ms':>8}"
    print(f"{header}  bits alone = among")
    for name in CONFIGURATIONS:
        if name not in results:
            continue
        one = results[name]
        ratio = compared(results, name.rpartition("-")[0]) if name.endswith("-ir") else None
        shown = "" if ratio is None else f"{ratio:.3f}"
        fate = one["deterministic"]
        verdict = "yes" if fate["bitwise_equal"] else f"no, {fate['equal_steps']} of {fate['steps']} steps"
        print(
            f"{name:28}{one['latency']['median']:11.4f}{shown:>8}"
            f"{one['throughput']['output_tokens_per_second']:9.0f}{one['streaming']['ttft_ms']:9.2f}"
            f"{one['streaming']['itl_ms']:8.3f}  {verdict}"
        )
    for pair, goal in GOALS.items():
        ratio = compared(results, pair)
        if ratio is not None:
            print(
                f"{pair}: {ratio:.3f} of vLLM alone, goal {goal:.2f}: {'met' if ratio <= goal else 'MISSED'}"
            )
    groups = {
        pair: {
            contender: results[f"{pair}-{end}"]["latency"]["median"]
            for end, contender in (("vllm", "vLLM alone"), ("ir", "with ir-vllm-adapter"))
            if f"{pair}-{end}" in results
        }
        for pair in GOALS
    }
    common.bars(
        NAME,
        f"Qwen3-0.6B (dummy weights): {BATCH} x {INPUT} tokens in, {OUTPUT} out",
        "seconds, median",
        {pair: group for pair, group in groups.items() if group},
    )


def compared(results: dict[str, Any], pair: str) -> float | None:
    """Median latency with the adapter over that without."""
    with_us, without = results.get(f"{pair}-ir"), results.get(f"{pair}-vllm")
    if with_us is None or without is None:
        return None
    return float(with_us["latency"]["median"] / without["latency"]["median"])


if __name__ == "__main__":
    sys.exit(main())
