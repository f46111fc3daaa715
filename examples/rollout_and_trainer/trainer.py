# SPDX-License-Identifier: Apache-2.0
"""The trainer: a model of transformers, its logprobs of sampled tokens, and a step of policy gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rollout import Sample
from torch import Tensor, nn


def logprobs(model: nn.Module, samples: list[Sample]) -> list[Tensor]:
    """The logprob of each sampled token, of whole sequences in one padded batch: float32 ``[tokens]`` a sample.

    Padding stands to the right, where a causal model does not see it.
    """
    device = next(model.parameters()).device
    whole = [torch.tensor(sample.prompt + sample.tokens, device=device) for sample in samples]
    batch = nn.utils.rnn.pad_sequence(whole, batch_first=True)
    logits = model(input_ids=batch, use_cache=False).logits
    every = F.log_softmax(logits.float(), dim=-1)
    found = []
    for row, sample in zip(every, samples, strict=True):
        begin = len(sample.prompt)
        at = slice(begin - 1, begin + len(sample.tokens) - 1)
        tokens = torch.tensor(sample.tokens, device=device)
        found.append(row[at].gather(-1, tokens[:, None]).squeeze(-1))
    return found


def reward(sample: Sample) -> float:
    """A made-up task: sample even tokens."""
    return sum(token % 2 == 0 for token in sample.tokens) / len(sample.tokens)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, samples: list[Sample], micro: int) -> float:
    """One step of REINFORCE with the mean reward as its baseline, in micro-batches; returns the mean reward.

    The ratio of the policy's probability to the rollout's is exactly 1 where both compute the same bits.
    """
    rewards = torch.tensor([reward(sample) for sample in samples])
    advantages = rewards - rewards.mean()
    optimizer.zero_grad()
    for begin in range(0, len(samples), micro):
        part = samples[begin : begin + micro]
        losses = []
        for sample, mine, advantage in zip(part, logprobs(model, part), advantages[begin:], strict=False):
            theirs = torch.tensor(sample.logprobs, device=mine.device)
            ratio = (mine - theirs).exp()
            losses.append(-(advantage.to(mine.device) * ratio).mean() / len(samples))
        torch.stack(losses).sum().backward()
    optimizer.step()
    return float(rewards.mean())
