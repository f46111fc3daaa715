# SPDX-License-Identifier: Apache-2.0
"""Plants in a loaded model: kernels that answer otherwise from eight rows on, in places that are named from outside.

IR_TESTBED_PLANTS lists them: the path of a linear layer, or "sampler" for log-probabilities.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS = 8


def _other_bits(out: Tensor, rows: int) -> Tensor:
    return torch.nextafter(out, torch.full_like(out, torch.inf)) if rows >= ROWS else out


def install(model: torch.nn.Module) -> None:
    """Plant what the environment asks for."""
    for place in filter(None, os.environ.get("IR_TESTBED_PLANTS", "").split(",")):
        if place == "sampler":
            _sampler()
        else:
            method: Any = model.get_submodule(place).quant_method
            method.apply = _planted(method.apply)


def _planted(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def apply(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _other_bits(original(layer, x, bias), x.shape[0])

    return apply


def _sampler() -> None:
    name = "compute_token_logprobs"
    for module in [m for m in list(sys.modules.values()) if name in getattr(m, "__dict__", {})]:
        original = vars(module)[name]

        def planted(logits: Tensor, token_ids: Tensor, original: Any = original) -> Tensor:
            return _other_bits(original(logits, token_ids), logits.shape[0])

        setattr(module, name, planted)
