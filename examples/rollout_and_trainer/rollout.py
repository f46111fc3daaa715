# SPDX-License-Identifier: Apache-2.0
"""The rollout: vLLM's engine samples tokens, with the logprob of each, and takes new weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


@dataclass(frozen=True)
class Sample:
    """One sampled sequence: the prompt's tokens, those that were sampled, and the logprob of each of the latter."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


class Rollout:
    """An engine that samples from the policy.

    Args:
        folder: the model's folder; its ``config.json`` is enough, the weights come by :meth:`load`.
        dtype: of weights and activations, ``"float32"`` or ``"bfloat16"``.
        most: the most tokens of a sequence.
    """

    def __init__(self, folder: Path, dtype: str, most: int) -> None:
        on_gpu = torch.cuda.is_available()
        sizes = {} if on_gpu else {"kv_cache_memory_bytes": 1 << 24}
        self.llm = LLM(
            model=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=most,
            max_num_batched_tokens=max(32, most) if not on_gpu else 8192,
            max_num_seqs=16,
            enable_chunked_prefill=True,
            enforce_eager=True,
            attention_backend="TRITON_ATTN",
            seed=0,
            disable_log_stats=True,
            **sizes,
        )

    def load(self, state: dict[str, Tensor]) -> None:
        """Take these weights; what was cached under the old ones is dropped."""
        self.llm.apply_model(functools.partial(_load, list(state.items())))
        self.llm.reset_prefix_cache()

    def sample(self, prompts: list[list[int]], tokens: int, seed: int) -> list[Sample]:
        """One sequence of ``tokens`` tokens for each prompt, at temperature 1."""
        params = [
            SamplingParams(
                temperature=1.0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=1,
                seed=seed * 1000 + number,
            )
            for number in range(len(prompts))
        ]
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        found = []
        for prompt, output in zip(prompts, self.llm.generate(asked, params, use_tqdm=False), strict=True):
            done = output.outputs[0]
            sampled = list(done.token_ids)
            steps = zip(sampled, done.logprobs or (), strict=True)
            found.append(Sample(prompt, sampled, [step[token].logprob for token, step in steps]))
        return found


def _load(weights: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
    model.load_weights(iter(weights))  # type: ignore[operator]
