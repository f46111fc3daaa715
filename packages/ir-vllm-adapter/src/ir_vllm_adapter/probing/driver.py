# SPDX-License-Identifier: Apache-2.0
"""Running prompts through an engine, greedily, and reading exact bits back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ir_vllm_adapter.probing.cases import LOGPROBS, Case

SEEDS: Final = 4
"""How many sequences are generated."""


class Driver:
    """An engine and its limits.

    Args:
        llm: a ``vllm.LLM`` whose worker is in this process.
        config: vLLM's configuration, as the worker has it.
    """

    def __init__(self, llm: Any, config: Any) -> None:
        self.llm = llm
        scheduler = config.scheduler_config
        self.rows = int(scheduler.max_num_batched_tokens)
        self.sequences = int(scheduler.max_num_seqs)
        self.longest = int(config.model_config.max_model_len)
        self.vocabulary = int(config.model_config.get_vocab_size())
        self.caching = bool(config.cache_config.enable_prefix_caching)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new: int,
        *,
        prompt_logprobs: bool = False,
        keep_cache: bool = False,
    ) -> list[Any]:
        """vLLM's outputs for prompts of token ids, in their order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        if not keep_cache:
            self.llm.reset_prefix_cache()
        params = SamplingParams(
            temperature=0.0,
            max_tokens=new,
            ignore_eos=True,
            detokenize=False,
            logprobs=LOGPROBS,
            prompt_logprobs=LOGPROBS if prompt_logprobs else None,
        )
        given = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        return list(self.llm.generate(given, params, use_tqdm=False))

    def run(self, case: Case) -> list[Any]:
        """Run a case."""
        return self.generate(
            case.prompts, case.new, prompt_logprobs=case.prompt_logprobs, keep_cache=case.keep_cache
        )

    def grow(self, first: int, length: int) -> list[int]:
        """A sequence of this length, generated from one token."""
        (output,) = self.generate([[first]], length - 1)
        return [first, *output.outputs[0].token_ids]

    def firsts(self) -> list[int]:
        """First tokens of the sequences, spread over the vocabulary."""
        return [(self.vocabulary * (2 * i + 1)) // (2 * SEEDS) for i in range(SEEDS)]


def bits(output: Any) -> list[Any]:
    """Tokens and log-probabilities of an output, floats as hexadecimal text: equality is equality of bits."""

    def step(entry: Any) -> list[Any]:
        return sorted([token, value.logprob.hex()] for token, value in entry.items())

    done = output.outputs[0]
    return [list(done.token_ids), [step(entry) for entry in done.logprobs or []]]
