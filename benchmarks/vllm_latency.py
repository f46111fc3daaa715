# SPDX-License-Identifier: Apache-2.0
"""What the adapter costs or saves in vLLM: the table of vLLM pull request 36816 again, on one GPU.

    python benchmarks/vllm_latency.py                    # all eight configurations, a pair of engines at a time
    python benchmarks/vllm_latency.py --only eager       # those with "eager" in their name; results are merged
    python benchmarks/vllm_latency.py --at-once 4 --deadline 540   # two pairs loaded together; over in nine minutes

Needs one GPU, vLLM 0.26.0 with its torch 2.11.0 and Triton 3.6.0, and this project installed beside it. The model is
Qwen3-0.6B's configuration with dummy weights, so nothing is downloaded; attention is TRITON_ATTN. The configurations:
VLLM_BATCH_INVARIANT 0 and 1, compiled and --enforce-eager, without the adapter (VLLM_PLUGINS is empty) and with it.

Each configuration is an engine in a process of its own. The two of a pair, without and with the adapter, are loaded
together (about 16 GB of GPU memory each) and measured in turns, round by round, so that whatever drifts hits both; only
one of them ever works at a time. `--at-once 1` measures one after the other on a smaller GPU.

Measured, as `vllm bench latency` does: seconds for 8 prompts of 32 tokens and 128 new tokens, after warm-ups.
Beyond it: tokens a second for 256 prompts of 256 tokens and 64 new ones, time to the first token and between tokens at
batch 8, and vLLM's determinism test: prompts alone and among others, logprobs compared bit for bit.

A configuration that fails is recorded with its error and loses nothing of the others; results are written after each
pair; after `--deadline` seconds everything stops and what was measured by then is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

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
# name -> (VLLM_BATCH_INVARIANT, eager, with the adapter); the two of a pair stand together, what matters most first.
CONFIGURATIONS = {
    f"{'invariant' if invariant else 'default'}-{'eager' if eager else 'compiled'}-{'ir' if adapter else 'vllm'}": (
        invariant,
        eager,
        adapter,
    )
    for invariant in (True, False)
    for eager in (False, True)
    for adapter in (False, True)
}
# With the adapter against without: at most so much of vLLM's own latency. With invariance off nothing of ours runs, so
# any difference is noise between processes; 2 % is what repeated runs of one configuration differ by.
GOALS = {
    "invariant-compiled": 1.00,
    "invariant-eager": 0.95,
    "default-compiled": 1.02,
    "default-eager": 1.02,
}
BATCH, INPUT, OUTPUT, WARMUPS, ROUNDS = 8, 32, 128, 10, 30
FEWEST = 5  # rounds, however long one takes
THROUGHPUT = {"requests": 256, "input": 256, "output": 64}
KV_CACHE = 10 << 30  # bytes an engine: all requests of the throughput round at once
# vLLM's determinism test: these prompts alone and in the middle of that many others, of other lengths.
NEEDLES, COMPANY = (1, 7, 32, 100, 333), 27
SECONDS_TO_START, SECONDS_TO_ANSWER, STAGGER = 300.0, 120.0, 8.0


def main() -> int:
    """Run what was asked for; 0 when done or when this machine cannot, 1 when a configuration failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="latency measurements a configuration")
    parser.add_argument("--seconds", type=float, default=20.0, help="of latency rounds a configuration")
    parser.add_argument("--at-once", type=int, default=2, help="engines that are loaded together")
    parser.add_argument(
        "--deadline",
        type=float,
        default=float("inf"),
        help="seconds after which it is over, whatever is left",
    )
    parser.add_argument(
        "--kernels", action="store_true", help="also record GPU time by kernel (torch's profiler)"
    )
    parser.add_argument("--logs", type=Path, help="a folder to keep the engines' logs in")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: print the table of the last results"
    )
    parser.add_argument("--child", nargs=2, metavar=("NAME", "PIPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, pipe = options.child
        return serve(name, int(pipe), with_profiler=options.kernels)
    results = previous()
    if options.report:
        report(results)
        return 0
    if missing := cannot_run():
        print(f"{NAME}: {missing} Nothing was measured.", file=sys.stderr)
        return 0
    names = [name for name in CONFIGURATIONS if options.only in name]
    measured = measure(names, results, options)
    report(results)
    bad = [name for name in names if "failed" in measured.get(name, {"failed": ""})]
    if bad:
        print(f"not, or not completely, measured: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


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
    """What was measured, for the file of results."""
    return {
        "latency": {"batch": BATCH, "input": INPUT, "output": OUTPUT, "warmups": WARMUPS},
        "throughput": THROUGHPUT,
        "determinism": {"prompt_lengths": NEEDLES, "others": COMPANY},
        "model": "Qwen3-0.6B configuration, dummy weights, bfloat16, TRITON_ATTN, no prefix caching",
    }


def previous() -> dict[str, Any]:
    """The configurations of the last run's file; {} without one."""
    path = common.RESULTS / f"{NAME}.json"
    return dict(json.loads(path.read_text())["configurations"]) if path.exists() else {}


# -- who measures whom, and when -----------------------------------------------------------------------------


class EngineError(Exception):
    """An engine is no more, or did not answer in time. The text says what it said last."""


class Clock:
    """What is left until the deadline."""

    def __init__(self, seconds: float) -> None:
        self.start = time.monotonic()
        self.end = self.start + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", file=sys.stderr, flush=True)


class Engine:
    """One configuration: a process that loads vLLM once and measures what it is asked to."""

    def __init__(self, name: str, folder: Path, clock: Clock, *flags: str) -> None:
        self.name, self.clock = name, clock
        self.found: dict[str, Any] = {}
        self.log = folder / f"{name}.log"
        invariant, _, adapter = CONFIGURATIONS[name]
        env = os.environ | {
            "VLLM_BATCH_INVARIANT": str(int(invariant)),
            "VLLM_PLUGINS": "ir_vllm_adapter" if adapter else "",
            "VLLM_CACHE_ROOT": str(folder / f"cache-{name}"),  # no configuration takes another's graphs
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONHASHSEED": "0",
        }
        answers, pipe = os.pipe()
        self.answers: IO[str] = os.fdopen(answers)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--child", name, str(pipe), *flags],
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=(pipe,),
                start_new_session=True,
            )
        os.close(pipe)

    def ask(self, what: str, seconds: float = SECONDS_TO_ANSWER) -> Any:
        """Have it do `what` once and return what it found."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except OSError:
            raise EngineError(self.last_words(f"was gone before {what}")) from None
        return self.answer(what, seconds)

    def answer(self, what: str, seconds: float) -> Any:
        """Wait for the answer to what it was asked before."""
        ready, _, _ = select.select([self.answers], [], [], max(0.0, min(seconds, self.clock.left())))
        if not ready:
            why = "the deadline" if self.clock.left() <= 0 else f"{seconds:.0f} s without an answer"
            raise EngineError(self.last_words(f"{what}: {why}"))
        line = self.answers.readline()
        if not line:
            raise EngineError(self.last_words(f"died in {what}"))
        return json.loads(line)

    def last_words(self, what: str, lines: int = 40) -> str:
        """What happened, the first errors in its log, and the log's end on stdout."""
        log = self.log.read_text(errors="replace").splitlines()
        print("\n".join([f"---- {self.name} {what}", *log[-lines:], "----"]), flush=True)
        errors = [line for line in log if re.search(r"\b[A-Z]\w*(Error|Exception): ", line)]
        return "\n".join([what, *errors[:3]])

    def adapter_said(self) -> list[str]:
        """What the adapter logged in it."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line.partition("] ")[2] for line in lines if "log.py:" in line][:30]

    def close(self) -> None:
        """End it and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.answers.close()


def measure(names: Sequence[str], results: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measure these configurations into `results`, and the file of results; returns what was found in this run."""
    clock = Clock(options.deadline)
    measured: dict[str, Any] = {}

    def note(engines: Iterable[Engine]) -> None:
        for engine in engines:
            measured[engine.name] = engine.found
            # What failed before it measured anything does not replace an earlier result.
            if "latency" in engine.found or "latency" not in results.get(engine.name, {}):
                results[engine.name] = engine.found
        common.save(NAME, {"settings": settings(), "configurations": results})

    with tempfile.TemporaryDirectory(prefix="vllm-latency-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for batch in batches(names, options.at_once):
            if clock.left() <= 0:
                break
            clock.say(f"loading {', '.join(batch)}")
            engines = launched(batch, folder, clock, *(["--kernels"] if options.kernels else []))
            try:
                for group in pairs(started(engines)):
                    measure_group(group, options)
                    note(group)
            finally:
                for engine in engines:
                    engine.close()
                note(engines)
    clock.say("done")
    return measured


def launched(names: Sequence[str], folder: Path, clock: Clock, *flags: str) -> list[Engine]:
    """Their processes, a little after one another: they look for free ports, and compiling, time kernels."""
    engines = [Engine(names[0], folder, clock, *flags)]
    for name in names[1:]:
        time.sleep(max(0.0, min(STAGGER, clock.left())))
        engines.append(Engine(name, folder, clock, *flags))
    return engines


def batches(names: Sequence[str], at_once: int) -> Iterable[Sequence[str]]:
    """Which configurations are loaded together."""
    size = max(1, at_once)
    return [names[i : i + size] for i in range(0, len(names), size)]


def pairs(engines: Sequence[Engine]) -> list[list[Engine]]:
    """Those that are compared, together."""
    groups: dict[str, list[Engine]] = {}
    for engine in engines:
        groups.setdefault(engine.name.rpartition("-")[0], []).append(engine)
    return list(groups.values())


def started(engines: Sequence[Engine]) -> list[Engine]:
    """Those of them that have loaded their model."""
    return [engine for engine in engines if attempt(engine, load)]


def load(engine: Engine) -> None:
    """Wait until it has loaded its model."""
    engine.found |= engine.answer("start", SECONDS_TO_START)
    engine.found["adapter_said"] = said = engine.adapter_said()
    invariant, _, adapter = CONFIGURATIONS[engine.name]
    broken = [line for line in said if "could not" in line]
    if adapter and (broken or (invariant and not any("batch-invariant mode, " in line for line in said))):
        # vLLM goes on without it, and the two of a pair would be the same thing.
        raise EngineError("\n".join(["the adapter is not in force", *broken]))
    engine.clock.say(f"{engine.name}: loaded in {engine.found['seconds_to_load']:.0f} s")


def attempt(engine: Engine, action: Callable[[Engine], Any]) -> bool:
    """Whether it could; if not, the engine's result says so."""
    if "failed" in engine.found:
        return False
    try:
        action(engine)
    except EngineError as error:
        engine.found["failed"] = str(error)
        return False
    return True


def measure_group(group: list[Engine], options: argparse.Namespace) -> None:
    """A pair, in turns."""
    clock = group[0].clock

    def in_turns(what: str, most: int, fewest: int, seconds: float) -> dict[str, list[Any]]:
        """Ask each in turn, the first one first or last; at least `fewest` times, then while the time lasts."""
        found: dict[str, list[Any]] = {engine.name: [] for engine in group}
        until = time.monotonic() + seconds * len(group)
        for number in range(most):
            if number >= fewest and time.monotonic() > until:
                break
            for engine in group if number % 2 else group[::-1]:
                attempt(engine, lambda e: found[e.name].append(e.ask(what)))
        return found

    in_turns("latency", WARMUPS, 2, options.seconds / 4)
    for name, seconds in in_turns("latency", options.rounds, FEWEST, options.seconds).items():
        keep(group, name, "latency", latency_of(seconds))
    for name, rates in in_turns("throughput", 3, 2, 10.0).items():
        keep(
            group,
            name,
            "throughput",
            max(rates[1:], key=lambda r: float(r["output_tokens_per_second"]), default=None),
        )
    for name, seen in in_turns("streaming", 5, 2, 6.0).items():
        keep(
            group,
            name,
            "streaming",
            {k: statistics.median(one[k] for one in seen[1:]) for k in seen[0]} if seen[1:] else None,
        )
    for name, verdicts in in_turns("deterministic", 1, 1, 0.0).items():
        keep(group, name, "deterministic", verdicts[0] if verdicts else None)
    if options.kernels:
        for name, found in in_turns("kernels", 1, 1, 0.0).items():
            keep(group, name, "kernels", found[0] if found else None)
    clock.say(f"measured {', '.join(engine.name for engine in group)}")


def keep(group: Sequence[Engine], name: str, what: str, value: Any) -> None:
    """Note what was found about one of the group."""
    for engine in group:
        if engine.name == name and value is not None:
            engine.found[what] = value


def latency_of(seconds: list[float]) -> dict[str, Any] | None:
    """Statistics of the rounds; None without any."""
    if not seconds:
        return None
    low, high = seconds[0], seconds[0]
    if len(seconds) > 1:
        low, *_, high = statistics.quantiles(seconds, n=10, method="inclusive")
    return {
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "p10": low,
        "p90": high,
        "rounds": [round(s, 6) for s in seconds],
    }


# -- in the process of one configuration ---------------------------------------------------------------------


def serve(name: str, pipe: int, *, with_profiler: bool) -> int:
    """Load the engine, say so, and do what is asked, a line each, until nothing more comes."""
    with os.fdopen(pipe, "w") as answers, tempfile.TemporaryDirectory(prefix="qwen3-0.6b-") as folder:

        def tell(value: Any) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        start = time.monotonic()
        llm = engine_of(name, Path(folder), with_profiler=with_profiler)
        tell({"seconds_to_load": round(time.monotonic() - start, 1)})
        actions = {
            "latency": latency,
            "throughput": throughput,
            "streaming": streaming,
            "deterministic": deterministic,
            "kernels": lambda llm: kernels(llm, Path(folder)),
        }
        for line in sys.stdin:
            tell(actions[line.strip()](llm))
    return 0


def engine_of(name: str, folder: Path, *, with_profiler: bool) -> Any:
    """vLLM's engine in this configuration."""
    from vllm import LLM

    more: dict[str, Any] = {}
    if with_profiler:
        where = str(folder / "traces")
        more["profiler_config"] = {
            "profiler": "torch",
            "torch_profiler_dir": where,
            "torch_profiler_with_stack": False,
        }
    (folder / "config.json").write_text(json.dumps(QWEN3_0_6B))
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=CONFIGURATIONS[name][1],
        max_model_len=1024,
        max_num_seqs=256,
        enable_prefix_caching=False,
        # So that engines beside each other need not agree about the rest of the memory.
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=KV_CACHE,
        attention_config={"backend": "TRITON_ATTN"},
        seed=0,
        **more,
    )


def prompts(count: int, length: int, seed: int = 0) -> list[Any]:
    """Random token ids; the same for the same arguments."""
    from vllm.inputs import TokensPrompt

    rng = random.Random(seed)
    return [
        TokensPrompt(prompt_token_ids=[rng.randrange(10_000) for _ in range(length)]) for _ in range(count)
    ]


def sampling(output: int, **more: Any) -> Any:
    """Exactly so many new tokens."""
    from vllm import SamplingParams

    return SamplingParams(**({"ignore_eos": True, "max_tokens": output, "detokenize": False} | more))


def latency(llm: Any) -> float:
    """Seconds from a batch of prompts to its last token."""
    batch, params = prompts(BATCH, INPUT), sampling(OUTPUT, temperature=1.0)
    start = time.perf_counter()
    llm.generate(batch, params, use_tqdm=False)
    return time.perf_counter() - start


def throughput(llm: Any) -> dict[str, float]:
    """Tokens a second when the engine is full."""
    batch = prompts(THROUGHPUT["requests"], THROUGHPUT["input"], seed=1)
    params = sampling(THROUGHPUT["output"], temperature=0.0)
    start = time.perf_counter()
    llm.generate(batch, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    new = THROUGHPUT["requests"] * THROUGHPUT["output"]
    total = new + THROUGHPUT["requests"] * THROUGHPUT["input"]
    return {"output_tokens_per_second": new / seconds, "total_tokens_per_second": total / seconds}


def streaming(llm: Any) -> dict[str, float]:
    """Milliseconds to the first token, and between tokens, as a client of the engine sees them at batch 8."""
    engine = llm.llm_engine
    first: list[float] = []
    between: list[float] = []
    seen: dict[str, tuple[int, float]] = {}
    start = time.perf_counter()
    for number, prompt in enumerate(prompts(BATCH, INPUT, seed=2)):
        engine.add_request(f"{start}-{number}", prompt, sampling(OUTPUT, temperature=0.0))
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            tokens = len(output.outputs[0].token_ids)
            before = seen.get(output.request_id)
            if before is None:
                first.append((now - start) * 1e3)
            elif tokens > before[0]:
                between.append((now - before[1]) * 1e3 / (tokens - before[0]))
            seen[output.request_id] = (tokens, now)
    return {"ttft_ms": statistics.median(first), "itl_ms": statistics.median(between)}


def deterministic(llm: Any) -> dict[str, Any]:
    """vLLM's own test: prompts alone and in the middle of others give the same tokens and bits of their logprobs."""
    needles = [prompts(1, length, seed=3)[0] for length in NEEDLES]
    lengths = [3 + 37 * i % 400 for i in range(COMPANY)]
    company = [prompts(1, length, seed=100 + i)[0] for i, length in enumerate(lengths)]
    params = sampling(32, temperature=0.0, logprobs=5)

    def bits(output: Any) -> list[Any]:
        steps = output.outputs[0].logprobs
        return [sorted((token, value.logprob.hex()) for token, value in step.items()) for step in steps]

    alone = [llm.generate([needle], params, use_tqdm=False)[0] for needle in needles]
    every = COMPANY // len(needles)
    mixed = [p for i, needle in enumerate(needles) for p in (*company[i * every : (i + 1) * every], needle)]
    among = llm.generate([*mixed, *company[every * len(needles) :]], params, use_tqdm=False)
    found = [among[i * (every + 1) + every] for i in range(len(needles))]
    same = [
        a == b
        for one, other in zip(alone, found, strict=True)
        for a, b in zip(bits(one), bits(other), strict=True)
    ]
    return {"bitwise_equal": all(same), "equal_steps": sum(same), "steps": len(same)}


def kernels(llm: Any, folder: Path) -> dict[str, Any]:
    """GPU microseconds and launches by kernel, of one prefill and 16 decode steps at batch 8."""
    try:
        llm.start_profile()
        llm.generate(prompts(BATCH, INPUT), sampling(17, temperature=1.0), use_tqdm=False)
        llm.stop_profile()
        found: dict[str, list[float]] = {}
        for trace in folder.glob("traces/**/*.json.gz"):
            for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
                if event.get("cat") == "kernel":
                    one = found.setdefault(event["name"][:120], [0, 0.0])
                    one[0] += 1
                    one[1] += event["dur"]
    except Exception as error:  # whatever it is, the engine's other numbers stand
        return {"error": f"{type(error).__name__}: {error}"}
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return {
        "microseconds": round(sum(us for _, us in found.values())),
        "launches": sum(int(count) for count, _ in found.values()),
        "by_kernel": {name: [int(count), round(us, 1)] for name, (count, us) in ordered[:30]},
    }


# -- what it says --------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    """Print the table and the goals, and draw the latencies."""
    if not results:
        print("no results yet")
        return
    header = f"{'configuration':28}{'latency s':>11}{'ratio':>8}{'tok/s':>9}{'TTFT ms':>9}{'ITL ms':>8}"
    print(f"{header}  bits alone = among")
    for name in CONFIGURATIONS:
        if name in results:
            print(row(name, results))
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
            if "latency" in results.get(f"{pair}-{end}", {})
        }
        for pair in GOALS
    }
    if any(groups.values()):
        common.bars(
            NAME,
            f"Qwen3-0.6B (dummy weights): {BATCH} x {INPUT} tokens in, {OUTPUT} out",
            "seconds, median",
            {pair: group for pair, group in groups.items() if group},
        )


def row(name: str, results: dict[str, Any]) -> str:
    """One configuration's line of the table; a dash for what was not measured."""
    one = results[name]
    ratio = compared(results, name.rpartition("-")[0]) if name.endswith("-ir") else None

    def number(group: str, key: str, width: int, places: int) -> str:
        value = one.get(group, {}).get(key)
        return "-".rjust(width) if value is None else f"{value:{width}.{places}f}"

    fate = one.get("deterministic")
    verdict = "-" if fate is None else "yes"
    if fate is not None and not fate["bitwise_equal"]:
        verdict = f"no, {fate['equal_steps']} of {fate['steps']} steps"
    if "failed" in one:
        verdict += f"  FAILED: {one['failed'].partition(chr(10))[0]}"
    return (
        f"{name:28}{number('latency', 'median', 11, 4)}{'' if ratio is None else f'{ratio:.3f}':>8}"
        f"{number('throughput', 'output_tokens_per_second', 9, 0)}{number('streaming', 'ttft_ms', 9, 2)}"
        f"{number('streaming', 'itl_ms', 8, 3)}  {verdict}"
    )


def compared(results: dict[str, Any], pair: str) -> float | None:
    """Median latency with the adapter over that without."""
    with_us, without = results.get(f"{pair}-ir", {}), results.get(f"{pair}-vllm", {})
    if "latency" not in with_us or "latency" not in without:
        return None
    return float(with_us["latency"]["median"] / without["latency"]["median"])


if __name__ == "__main__":
    sys.exit(main())
