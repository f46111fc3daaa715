# SPDX-License-Identifier: Apache-2.0
"""Train on what was sampled: five steps of policy gradient, every logprob of the trainer held against the engine's.

    python examples/rollout_and_trainer/run.py [--dtype float32|bfloat16] [--steps 5] [--model small|0.6B] [--json FILE]

Two processes: one with ``VLLM_BATCH_INVARIANT=1``, the adapter and ``batch_invariant_mode``, where every logprob is
the same, bit for bit; and one of plain vLLM and plain PyTorch, for what is usual. On a machine without a GPU the
engine is vLLM's own too, on the test platform ``ir-vllm-testbed`` (packages/ir-vllm-adapter/tests/engine), with its
Triton kernels interpreted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# What the engine runs that is not ours: the trainer runs it too, by the names of its orders.
ENGINE = "attention=order:vllm_unified;log_softmax=order:vllm_sampler"
EXACT = {"VLLM_BATCH_INVARIANT": "1", "IR_PRIORITY": ENGINE}
PLAIN = {"IR_DISABLE": "1", "VLLM_BATCH_INVARIANT": "0"}
WITHOUT_GPU = {
    "IR_PRIORITY": f"portable;{ENGINE}",  # where a kernel of ours would be interpreted: the same bits, sooner
    "IR_TESTBED": "1",
    "TRITON_INTERPRET": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}
ALWAYS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 256,
        "max_position_embeddings": 256,
    },
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 4096,
    },
}
SAMPLED = {"small": 8, "0.6B": 64}
"""Tokens that are sampled for each prompt."""


def main() -> None:
    """Both processes, and what they found beside each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", choices=tuple(SIZES), default="small")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    parser.add_argument("--part", choices=("exact", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        found = train(options.part == "exact", options.dtype, options.steps, options.model)
        options.json.write_text(json.dumps(found), encoding="utf-8")
        return
    both = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, settings in (("exact", EXACT), ("plain", PLAIN)):
            result = Path(folder) / f"{part}.json"
            command = [sys.executable, __file__, "--part", part, "--json", str(result)]
            command += ["--dtype", options.dtype, "--steps", str(options.steps), "--model", options.model]
            subprocess.run(command, check=True, env=os.environ | ALWAYS | settings | without_gpu())
            both[part] = json.loads(result.read_text(encoding="utf-8"))
    print(table(both, options.dtype))
    if options.json:
        options.json.write_text(json.dumps(both, indent=1), encoding="utf-8")


def without_gpu() -> dict[str, str]:
    """The test platform's settings, where torch sees no GPU."""
    import torch

    return {} if torch.cuda.is_available() else WITHOUT_GPU


def train(exact: bool, dtype: str, steps: int, size: str) -> dict[str, Any]:
    """The five steps in this process; what was compared at each."""
    import rollout
    import torch
    import trainer
    from agree import agree
    from transformers import Qwen3Config, Qwen3ForCausalLM

    import ir_core

    torch.manual_seed(0)
    config = Qwen3Config(**SIZES[size], tie_word_embeddings=False, rms_norm_eps=1e-6, bos_token_id=1)
    config.architectures = ["Qwen3ForCausalLM"]
    config.torch_dtype = dtype
    folder = Path(tempfile.mkdtemp())
    config.save_pretrained(folder)
    engine = rollout.Rollout(folder, dtype, most=128)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen3ForCausalLM(config).to(device, getattr(torch, dtype))
    model.config._attn_implementation = "sdpa"
    if exact:
        agree(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    prompts = [[3 + (7 * n + 11 * i) % 250 for i in range(1 + 5 * n)] for n in range(6)]
    mode = ir_core.batch_invariant_mode if exact else contextlib.nullcontext
    rows = []
    for number in range(steps):
        engine.load(model.state_dict())
        samples = engine.sample(prompts, SAMPLED[size], seed=number)
        with mode(), torch.no_grad():
            backwards = samples[::-1]  # other batches than the engine's, and whole sequences
            parts = [part for part in (backwards[:1], backwards[1:4], backwards[4:]) if part]
            mine = [row for part in parts for row in trainer.logprobs(model, part)]
        compared = compare(mine, [sample.logprobs for sample in backwards])
        with mode():
            mean = trainer.step(model, optimizer, samples, micro=2)
        rows.append({"step": number, "reward": mean, **compared})
        print(rows[-1], flush=True)
    return {"steps": rows}


def compare(mine: list[Any], theirs: list[list[float]]) -> dict[str, Any]:
    """The trainer's logprobs held against those of the engine, bit by bit."""
    import torch

    one = torch.cat(mine).cpu()
    other = torch.tensor([logprob for row in theirs for logprob in row])
    gap = one.double() - other.double()
    return {
        "tokens": len(other),
        "differ": int((one.view(torch.int32) != other.view(torch.int32)).sum()),
        "largest": float(gap.abs().max()),
        # KL(rollout || trainer) of the sampled tokens, by the estimator that is never negative.
        "kl": float((gap.exp() - 1 - gap).mean()),
    }


def table(both: dict[str, Any], dtype: str) -> str:
    """What both processes found, a line a step."""
    lines = [
        f"{dtype}: logprobs of the trainer against those of the engine",
        "",
        "| step | tokens | differ | largest difference | KL | plain: differ | largest difference | KL |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one, other in zip(both["exact"]["steps"], both["plain"]["steps"], strict=True):
        cells = [one["step"], one["tokens"]]
        for row in (one, other):
            cells += [row["differ"], f"{row['largest']:.3g}", f"{row['kl']:.3g}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
