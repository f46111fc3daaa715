# SPDX-License-Identifier: Apache-2.0
"""One engine run in a process of its own: `python -m ir_vllm_testbed.run SPEC.json RESULT.json`.

SPEC keys (all but `model` optional):
  model     "qwen3" | "gemma3"
  mode      "eager" | "compile"                               how the model runs
  dtype     "float32" | "bfloat16"
  priority  {op: [provider, ...]}                             vLLM's --ir-op-priority
  hide_ir   true: the adapter sees no vLLM IR, as in the release that removes it
  ranks     N: tensor parallelism, each rank a process; RESULT then has `ranks`, and no `passes`
  scenarios, prompts  [name, ...]                             only these; "alone" is always among the scenarios
  max_tokens, pass_config, folder
RESULT keys:
  runs      {scenario: {prompt name: {"tokens": [...], "logprobs": [...], "prompt_logprobs": [...]}}}; a logprob is
            [token id, float.hex()], that is, exact bits
  passes    [[tokens scheduled for each request], ...] of every forward pass: shows chunking and cache hits
  lowered   {op: {provider: nodes}} read from vLLM's lowering pass
  adapter   what the adapter says of itself (status and counters)
  ranks     [{"ballot": what it would run, "adapter": ...}, ...] of every rank
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Sized for the interpreter (seconds a scenario), yet the longest prompt exceeds BUDGET tokens a pass (chunked prefill),
# and two prompts fill at least one cache block of 16 (prefix caching).
BUDGET = 32
PROMPTS: dict[str, list[int]] = {
    "a": [(7 * i + 3) % 250 + 3 for i in range(19)],
    "b": [(11 * i + 5) % 250 + 3 for i in range(5)],
    "c": [(13 * i + 1) % 250 + 3 for i in range(35)],
    "d": [9],
}
NEIGHBOURS = [[(17 * i + j) % 250 + 3 for i in range(4 * j)] for j in range(1, 4)]
SCENARIOS = ("alone", "batched", "reordered", "neighbours", "prefix_cached")


def main(spec_path: str, result_path: str) -> None:
    """Run the spec and write the result; exceptions end the process with their traceback."""
    spec: dict[str, Any] = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    started = time.monotonic()
    result = Engine(spec).run()
    result["seconds"] = round(time.monotonic() - started, 1)
    Path(result_path).write_text(json.dumps(result, indent=1), encoding="utf-8")


class Engine:
    """vLLM's LLM for one spec, with the three things a test wants to read back."""

    def __init__(self, spec: dict[str, Any]) -> None:
        if spec.get("hide_ir"):
            _hide_ir()
        from vllm import LLM

        from . import models, worker

        self.lowered: dict[str, dict[str, int]] = {}
        self.passes = worker.PASSES
        compile_mode = spec.get("mode") == "compile"
        if compile_mode:
            self._watch_lowering()
        folder = Path(spec.get("folder") or tempfile.mkdtemp(prefix="ir-testbed-"))
        dtype = spec.get("dtype", "float32")
        options: dict[str, Any] = {
            "model": str(models.write_model(spec["model"], folder, dtype=dtype)),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "max_model_len": 128,
            "block_size": 16,
            "max_num_seqs": 16,
            "max_num_batched_tokens": BUDGET,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "kv_cache_memory_bytes": 1 << 24,
            "seed": 0,
            "disable_log_stats": True,
            "enforce_eager": not compile_mode,
            "tensor_parallel_size": spec.get("ranks", 1),
        }
        if compile_mode:
            options["compilation_config"] = {
                "mode": 3,
                "custom_ops": ["none"],
                "compile_sizes": [],
                "cudagraph_mode": "NONE",
                "pass_config": spec.get("pass_config", {}),
            }
        if spec.get("priority"):
            options["kernel_config"] = {"ir_op_priority": spec["priority"]}
        self.llm = LLM(**options)
        self.max_tokens = int(spec.get("max_tokens", 3))
        self.ranks = int(spec.get("ranks", 1))
        self.scenarios = {"alone", *spec.get("scenarios", SCENARIOS)}
        self.prompts = [name for name in PROMPTS if name in spec.get("prompts", PROMPTS)]

    def _watch_lowering(self) -> None:
        """Count what vLLM's own lowering pass selected, by wrapping the pass from outside."""
        from vllm.compilation.passes.ir import lowering_pass

        original = lowering_pass.VllmIRLoweringPass.__call__
        lowered = self.lowered

        def watched(self: Any, graph: Any) -> None:
            original(self, graph)
            for op, by_node in self.selected_impls.items():
                counts = collections.Counter(lowered.get(op, {}))
                counts.update(by_node.values())
                lowered[op] = dict(counts)

        lowering_pass.VllmIRLoweringPass.__call__ = watched

    def generate(self, prompts: list[list[int]], *, prompt_logprobs: bool) -> list[dict[str, Any]]:
        """Greedy tokens and logprobs, in the order of the prompts."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = SamplingParams(
            temperature=0.0,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=3,
            prompt_logprobs=1 if prompt_logprobs else None,
        )
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False
        )
        return [_bits(output) for output in outputs]

    def run(self) -> dict[str, Any]:
        """All scenarios, one after another, in this engine."""
        names = self.prompts
        runs: dict[str, dict[str, Any]] = {}
        passes: dict[str, list[list[int]]] = {}

        def scenario(
            name: str,
            batches: list[list[str]],
            extra: tuple[list[list[int]], list[list[int]]] = ([], []),
            *,
            keep_cache: bool = False,
        ) -> None:
            if name not in self.scenarios:
                return
            if not keep_cache:
                self.llm.reset_prefix_cache()
            self.passes.clear()
            runs[name] = {}
            for batch in batches:
                # A request for prompt logprobs does not read the prefix cache, so that scenario goes without.
                prompts = [*extra[0], *(PROMPTS[n] for n in batch), *extra[1]]
                found = self.generate(prompts, prompt_logprobs=not keep_cache)
                for offset, prompt in enumerate(batch):
                    runs[name][prompt] = found[len(extra[0]) + offset]
            passes[name] = [list(p) for p in self.passes]

        scenario("alone", [[n] for n in names])
        scenario("batched", [names])
        scenario("reordered", [names[::-1]])
        scenario("neighbours", [names], (NEIGHBOURS[:1], NEIGHBOURS[1:]))
        scenario("prefix_cached", [names, names], keep_cache=True)
        result = {"runs": runs, "passes": passes, "lowered": self.lowered, "adapter": _adapter()}
        if self.ranks > 1:
            result["ranks"] = self.llm.collective_rpc("testbed_report")
        return result


def _hide_ir() -> None:
    """Stand in for a vLLM without IR: the adapter's two questions about it are answered with no."""
    from ir_vllm_adapter import compat

    compat.ir_present = lambda: False
    compat.ir_op_names = lambda: ()


def _bits(output: Any) -> dict[str, Any]:
    """Tokens and logprobs of one request; floats as hex so that equality is equality of bits."""

    def step(entry: Any) -> list[list[Any]]:
        return sorted([token, value.logprob.hex()] for token, value in entry.items())

    completion = output.outputs[0]
    return {
        "tokens": list(completion.token_ids),
        "logprobs": [step(entry) for entry in completion.logprobs],
        "prompt_logprobs": [step(entry) for entry in (output.prompt_logprobs or []) if entry],
    }


def _adapter() -> dict[str, Any]:
    try:
        from ir_vllm_adapter import status
    except ImportError:
        return {}
    return dict(status.collect())


if __name__ == "__main__":
    main(*sys.argv[1:])
