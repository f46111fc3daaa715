# SPDX-License-Identifier: Apache-2.0
"""What batch invariance costs in vLLM, with the adapter and without: issue 19's table, on one GPU.

    python benchmarks/vllm_latency.py --part 0.6b-compiled      # one part: under eight minutes
    python benchmarks/vllm_latency.py --part 0.6b-compiled --kernels   # and GPU time by kernel
    python benchmarks/vllm_latency.py --list                    # the parts, and what each is for
    python benchmarks/vllm_latency.py --report                  # the table and the goals, from the last results

Needs one GPU, vLLM 0.26.0 with its torch 2.11.0 and Triton 3.6.0, and this project installed beside it. Models are
configurations with dummy weights, so nothing is downloaded; attention is TRITON_ATTN.

Each configuration is an engine in a process of its own: VLLM_BATCH_INVARIANT 0 or 1, compiled or --enforce-eager,
without the adapter (VLLM_PLUGINS is empty) or with it. Those of a part are loaded together and measured in turns, round
by round, so that whatever drifts hits all; only one of them ever works at a time. Results of parts are merged.

Measured, as `vllm bench latency` does: seconds for 8 prompts of 32 tokens and 128 new tokens, after warm-ups. Beyond
it: tokens a second for 64 and for 256 prompts of 256 tokens and 64 new ones, time to the first token and between tokens
at batch 8, and vLLM's determinism test: prompts alone and among others, logprobs compared bit for bit.

A configuration that fails is recorded with its error and loses nothing of the others; after `--deadline` seconds
everything stops and what was measured by then is kept.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
QWEN3_8B: dict[str, Any] = QWEN3_0_6B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
# Qwen3-30B-A3B's layers, four of its 48: a layer of experts is what is compared, and loading has to be short.
QWEN3_MOE: dict[str, Any] = QWEN3_0_6B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
MODELS = {"0.6b": QWEN3_0_6B, "8b": QWEN3_8B, "moe": QWEN3_MOE}


@dataclass(frozen=True)
class Configuration:
    """One engine: a model of `MODELS`, VLLM_BATCH_INVARIANT, eager or compiled, with the adapter or without."""

    model: str
    invariant: bool
    eager: bool
    adapter: bool

    @property
    def name(self) -> str:
        mode, how = ("invariant" if self.invariant else "default"), ("eager" if self.eager else "compiled")
        return f"{self.model}-{mode}-{how}-{'ir' if self.adapter else 'vllm'}"


CONFIGURATIONS = {
    one.name: one
    for model in MODELS
    for eager in (False, True)
    for invariant, adapter in ((False, False), (False, True), (True, False), (True, True))
    for one in (Configuration(model, invariant, eager, adapter),)
}
LATENCY = ("latency", "streaming", "deterministic")


@dataclass(frozen=True)
class Part:
    """What is measured together: engines that are loaded beside each other, and which measurements are made."""

    why: str
    engines: tuple[str, ...]
    measures: tuple[str, ...]
    seconds: float = 20.0


PARTS = {
    "0.6b-compiled": Part(
        "latency, compiled: against default vLLM, and against batch-invariant vLLM alone",
        ("0.6b-default-compiled-vllm", "0.6b-invariant-compiled-vllm", "0.6b-invariant-compiled-ir"),
        LATENCY,
    ),
    "0.6b-eager": Part(
        "the same, eager",
        ("0.6b-default-eager-vllm", "0.6b-invariant-eager-vllm", "0.6b-invariant-eager-ir"),
        LATENCY,
        30.0,
    ),
    "8b-compiled": Part(
        "latency of the 8B configuration",
        ("8b-default-compiled-vllm", "8b-invariant-compiled-ir"),
        LATENCY,
    ),
    "0.6b-throughput": Part(
        "64 and 256 sequences",
        ("0.6b-default-compiled-vllm", "0.6b-invariant-compiled-ir"),
        ("throughput64", "throughput256", "deterministic"),
        25.0,
    ),
    "8b-throughput": Part(
        "the same, 8B",
        ("8b-default-compiled-vllm", "8b-invariant-compiled-ir"),
        ("throughput64", "throughput256"),
        30.0,
    ),
    "moe": Part(
        "a mixture of experts: against batch-invariant vLLM alone",
        ("moe-invariant-compiled-vllm", "moe-invariant-compiled-ir"),
        ("latency", "throughput64", "deterministic"),
    ),
    "default": Part(
        "the adapter installed and the switch off: many rounds, so that the standard error is below 0.005",
        ("0.6b-default-compiled-vllm", "0.6b-default-compiled-ir"),
        ("latency",),
        75.0,
    ),
}


@dataclass(frozen=True)
class Goal:
    """`value(one) / value(other)` within bounds. For throughput a larger one is better."""

    one: str
    other: str
    measure: str
    low: float
    high: float


GOALS = (
    Goal("0.6b-invariant-compiled-ir", "0.6b-default-compiled-vllm", "latency", 0.0, 1.00),
    Goal("0.6b-invariant-eager-ir", "0.6b-default-eager-vllm", "latency", 0.0, 1.00),
    Goal("8b-invariant-compiled-ir", "8b-default-compiled-vllm", "latency", 0.0, 1.03),
    Goal("0.6b-invariant-compiled-ir", "0.6b-invariant-compiled-vllm", "latency", 0.0, 0.60),
    Goal("0.6b-invariant-eager-ir", "0.6b-invariant-eager-vllm", "latency", 0.0, 0.85),
    *(
        Goal(f"{model}-invariant-compiled-ir", f"{model}-default-compiled-vllm", f"throughput{n}", 0.97, 9.9)
        for model in ("0.6b", "8b")
        for n in (64, 256)
    ),
    Goal("moe-invariant-compiled-ir", "moe-invariant-compiled-vllm", "latency", 0.0, 0.80),
    Goal("0.6b-default-compiled-ir", "0.6b-default-compiled-vllm", "latency", 0.99, 1.01),
)
BATCH, INPUT, OUTPUT, WARMUPS, ROUNDS = 8, 32, 128, 10, 400
FEWEST = 5  # rounds, however long one takes
THROUGHPUT = {"input": 256, "output": 64}
KV_CACHE = 12 << 30  # bytes an engine: all requests of the throughput round at once
# vLLM's determinism test: these prompts alone and in the middle of that many others, of other lengths.
NEEDLES, COMPANY = (1, 7, 32, 100, 333), 27
SECONDS_TO_START, SECONDS_TO_ANSWER, STAGGER = 300.0, 120.0, 8.0
SHARE = {"0.6b": 0.1, "8b": 0.25, "moe": 0.15}  # of the memory, which vLLM wants to see free at the start


def main() -> int:
    """Run what was asked for; 0 when done or when this machine cannot, 1 when a configuration failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", default="", choices=["", *PARTS], help="what to measure; all parts by default"
    )
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="latency measurements a configuration, at most"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="of rounds a configuration, not the part's"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=460.0,
        help="seconds after which a part is over, whatever is left",
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
    if options.list:
        for name, part in PARTS.items():
            print(f"{name:18}{part.why}")
        return 0
    results = previous()
    if options.report:
        report(results)
        return 0
    if missing := cannot_run():
        print(f"{NAME}: {missing} Nothing was measured.", file=sys.stderr)
        return 0
    bad: list[str] = []
    for name in [options.part] if options.part else list(PARTS):
        measured = measure(name, results, options)
        bad += [f"{name}: {e}" for e in PARTS[name].engines if "failed" in measured.get(e, {"failed": ""})]
    report(results)
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
        "models": "configurations of Qwen3-0.6B, Qwen3-8B, and four layers of Qwen3-30B-A3B; dummy weights, bfloat16, "
        "TRITON_ATTN, no prefix caching",
        "parts": {name: list(part.engines) for name, part in PARTS.items()},
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
        configuration = CONFIGURATIONS[name]
        env = os.environ | {
            "VLLM_BATCH_INVARIANT": str(int(configuration.invariant)),
            "VLLM_PLUGINS": "ir_vllm_adapter" if configuration.adapter else "",
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
        return [line.partition("] ")[2] for line in lines if "log.py:" in line][:60]

    def close(self) -> None:
        """End it and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.answers.close()


def measure(part: str, results: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measure a part into `results`, and the file of results; returns what was found in this run."""
    clock = Clock(options.deadline)
    engines: list[Engine] = []

    def note() -> None:
        for engine in engines:
            # What failed before it measured anything does not replace an earlier result.
            if any(measure in engine.found for measure in PARTS[part].measures):
                kept = {k: v for k, v in results.get(engine.name, {}).items() if k != "failed"}
                results[engine.name] = kept | engine.found
            elif "failed" in engine.found:
                results.setdefault(engine.name, dict(engine.found))
        common.save(NAME, {"settings": settings(), "configurations": results})

    with tempfile.TemporaryDirectory(prefix="vllm-latency-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clock.say(f"{part}: loading {', '.join(PARTS[part].engines)}")
        flags = ["--kernels"] if options.kernels else []
        try:
            launch(engines, PARTS[part].engines, folder, clock, *flags)
            measure_group(started(engines), PARTS[part], options)
        finally:
            for engine in engines:
                engine.close()
            note()
    clock.say("done")
    return {engine.name: engine.found for engine in engines}


def launch(engines: list[Engine], names: Sequence[str], folder: Path, clock: Clock, *flags: str) -> None:
    """Start their processes, a little after one another: they look for free ports, and compiling, time kernels."""
    for number, name in enumerate(names):
        if number:
            time.sleep(max(0.0, min(STAGGER, clock.left())))
        engines.append(Engine(name, folder, clock, *flags))


def started(engines: Sequence[Engine]) -> list[Engine]:
    """Those of them that have loaded their model."""
    return [engine for engine in engines if attempt(engine, load)]


def load(engine: Engine) -> None:
    """Wait until it has loaded its model."""
    engine.found |= engine.answer("start", SECONDS_TO_START)
    engine.found["adapter_said"] = said = engine.adapter_said()
    one = CONFIGURATIONS[engine.name]
    broken = [line for line in said if "could not" in line]
    if one.adapter and (
        broken or (one.invariant and not any("batch-invariant mode, " in line for line in said))
    ):
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


def measure_group(group: list[Engine], part: Part, options: argparse.Namespace) -> None:
    """Engines of a part, in turns."""
    if not group:
        return
    clock, seconds = group[0].clock, options.seconds or part.seconds

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

    if "latency" in part.measures:
        in_turns("latency", WARMUPS, 2, seconds / 8)
        for name, rounds in in_turns("latency", options.rounds, FEWEST, seconds).items():
            keep(group, name, "latency", statistics_of(rounds))
    for measure in ("throughput64", "throughput256"):
        if measure in part.measures:
            in_turns(measure, 1, 1, 0.0)
            for name, rates in in_turns(measure, options.rounds, 3, seconds).items():
                keep(group, name, measure, statistics_of(rates))
    if "streaming" in part.measures:
        for name, seen in in_turns("streaming", 5, 2, 6.0).items():
            medians = (
                {k: statistics.median(one[k] for one in seen[1:]) for k in seen[0]} if seen[1:] else None
            )
            keep(group, name, "streaming", medians)
    for measure in ("deterministic", *(["kernels"] if options.kernels else [])):
        if measure in part.measures or measure == "kernels":
            for name, verdicts in in_turns(measure, 1, 1, 0.0).items():
                keep(group, name, measure, verdicts[0] if verdicts else None)
    clock.say(f"measured {', '.join(engine.name for engine in group)}")


def keep(group: Sequence[Engine], name: str, what: str, value: Any) -> None:
    """Note what was found about one of the group."""
    for engine in group:
        if engine.name == name and value is not None:
            engine.found[what] = value


def statistics_of(seconds: list[float]) -> dict[str, Any] | None:
    """Statistics of the rounds (seconds, or tokens a second); None without any."""
    if not seconds:
        return None
    low, high = seconds[0], seconds[0]
    if len(seconds) > 1:
        low, *_, high = statistics.quantiles(seconds, n=10, method="inclusive")
    return {
        "mean": statistics.fmean(seconds),
        "standard_error": statistics.stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else None,
        "median": statistics.median(seconds),
        "p10": low,
        "p90": high,
        "rounds": [round(s, 6) for s in seconds],
    }


# -- in the process of one configuration ---------------------------------------------------------------------


def serve(name: str, pipe: int, *, with_profiler: bool) -> int:
    """Load the engine, say so, and do what is asked, a line each, until nothing more comes."""
    with os.fdopen(pipe, "w") as answers, tempfile.TemporaryDirectory(prefix="qwen3-") as folder:

        def tell(value: Any) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        start = time.monotonic()
        llm = engine_of(name, Path(folder), with_profiler=with_profiler)
        tell({"seconds_to_load": round(time.monotonic() - start, 1)})
        actions: dict[str, Callable[[Any], Any]] = {
            "latency": latency,
            "throughput64": lambda llm: throughput(llm, 64),
            "throughput256": lambda llm: throughput(llm, 256),
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
    one = CONFIGURATIONS[name]
    (folder / "config.json").write_text(json.dumps(MODELS[one.model]))
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=one.eager,
        max_model_len=1024,
        max_num_seqs=256,
        enable_prefix_caching=False,
        # So that engines beside each other need not agree about the rest of the memory.
        gpu_memory_utilization=SHARE[one.model],
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


def throughput(llm: Any, requests: int) -> float:
    """New tokens a second with so many sequences at once."""
    batch = prompts(requests, THROUGHPUT["input"], seed=1)
    params = sampling(THROUGHPUT["output"], temperature=0.0)
    start = time.perf_counter()
    llm.generate(batch, params, use_tqdm=False)
    return requests * THROUGHPUT["output"] / (time.perf_counter() - start)


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
    if not any(name in results for name in CONFIGURATIONS):
        print("no results yet")
        return
    columns = ("latency s", "tok/s at 64", "at 256", "TTFT ms", "ITL ms")
    print(f"{'configuration':32}" + "".join(c.rjust(13) for c in columns) + "  bits alone = among")
    for name in CONFIGURATIONS:
        if name in results:
            print(row(name, results[name]))
    for goal in GOALS:
        found = ratio(results, goal)
        if found is not None:
            value, error = found
            verdict = "met" if goal.low <= value <= goal.high else "MISSED"
            bounds = f"at most {goal.high:.2f}" if not goal.low else f"at least {goal.low:.2f}"
            if goal.low and goal.high < 2:
                bounds = f"{goal.low:.2f} to {goal.high:.2f}"
            print(
                f"{goal.measure}: {goal.one} / {goal.other}: {value:.3f} (+-{error:.3f}), {bounds}: {verdict}"
            )
    groups = {
        f"{model} {how}": {
            contender: results[name]["latency"]["median"]
            for contender, end in CONTENDERS.items()
            for name in (f"{model}-{end.format(how=how)}",)
            if "latency" in results.get(name, {})
        }
        for model in MODELS
        for how in ("compiled", "eager")
    }
    if any(groups.values()):
        common.bars(
            NAME,
            f"Dummy weights: {BATCH} x {INPUT} tokens in, {OUTPUT} out",
            "seconds, median",
            {name: group for name, group in groups.items() if group},
        )


CONTENDERS = {
    "default vLLM": "default-{how}-vllm",
    "batch-invariant vLLM": "invariant-{how}-vllm",
    "batch-invariant with ir-vllm-adapter": "invariant-{how}-ir",
}


def row(name: str, one: dict[str, Any]) -> str:
    """One configuration's line of the table; a dash for what was not measured."""

    def number(group: str, key: str, places: int) -> str:
        value = one.get(group, {}).get(key)
        return "-".rjust(13) if value is None else f"{value:13.{places}f}"

    fate = one.get("deterministic")
    verdict = "-" if fate is None else "yes"
    if fate is not None and not fate["bitwise_equal"]:
        verdict = f"no, {fate['equal_steps']} of {fate['steps']} steps"
    if "failed" in one:
        verdict += f"  FAILED: {one['failed'].partition(chr(10))[0]}"
    return (
        f"{name:32}{number('latency', 'median', 4)}{number('throughput64', 'median', 0)}"
        f"{number('throughput256', 'median', 0)}{number('streaming', 'ttft_ms', 2)}"
        f"{number('streaming', 'itl_ms', 3)}  {verdict}"
    )


def ratio(results: dict[str, Any], goal: Goal) -> tuple[float, float] | None:
    """Of means, and its standard error; the two are measured in turns, round by round."""
    pair = [results.get(name, {}).get(goal.measure) for name in (goal.one, goal.other)]
    if not all(pair):
        return None
    (one, other) = ((float(p["mean"]), float(p["standard_error"] or 0.0)) for p in pair)
    value = one[0] / other[0]
    return value, value * ((one[1] / one[0]) ** 2 + (other[1] / other[0]) ** 2) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
