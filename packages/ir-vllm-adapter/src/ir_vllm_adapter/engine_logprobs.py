# SPDX-License-Identifier: Apache-2.0
"""vLLM's own kernel for the logprobs of sampled tokens as an implementation of the op ``log_softmax``.

From 0.32 on vLLM's sampler computes, for the tokens that are asked for, ``logit - maximum - log(sum)`` in one Triton
kernel, and not ATen's log_softmax. Asked for every token of the vocabulary it gives the whole row.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def _kernel() -> Any:
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    return compute_token_logprobs


def log_softmax(x: Tensor) -> Tensor:
    """The op ``log_softmax`` of float32 rows, by the kernel of vLLM's sampler."""
    rows = x.reshape(-1, x.shape[-1])
    tokens = torch.arange(rows.shape[1], device=x.device).expand(rows.shape[0], -1).contiguous()
    found: Tensor = _kernel()(rows.contiguous(), tokens)
    return found.view(x.shape)


def supports(x: Any) -> bool:
    """float32, which is what the kernel gives."""
    return bool(x.dtype == torch.float32)
