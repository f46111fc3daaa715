# SPDX-License-Identifier: Apache-2.0
"""The demo's model: a decoder with the layer shapes of Qwen3-0.6B, whose every norm is an ir-core op.

Weights are random, from a seed. Tokens are bytes. With ``record=True`` the model also returns what each norm was
given and what it gave, eagerly and compiled alike.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ir_core import ops

HIDDEN: Final = 1024
HEADS: Final = 16
KV_HEADS: Final = 8
HEAD_DIM: Final = 128
INTERMEDIATE: Final = 3072
EPSILON: Final = 1e-6
ROPE_BASE: Final = 1e6
VOCABULARY: Final = 256

Record: TypeAlias = dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
"""By norm: its activation inputs and its outputs."""


class Norm(nn.Module):
    """``rms_norm``, or with a residual ``fused_add_rms_norm.maybe_inplace``, over the last dimension.

    Args:
        width: length of a row.
        site: its name in the record.
    """

    def __init__(self, width: int, site: str) -> None:
        super().__init__()
        self.site = site
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width), requires_grad=False)

    def forward(self, x: Tensor, residual: Tensor | None, record: Record | None) -> Any:
        if residual is None:
            if record is None:
                return ops.rms_norm(x, self.weight, EPSILON)
            given = (x.clone(),)
            y = ops.rms_norm(x, self.weight, EPSILON)
            record[self.site] = given, (y.clone(),)
            return y
        if record is None:
            return ops.fused_add_rms_norm.maybe_inplace(x, residual, self.weight, EPSILON)
        both = x.clone(), residual.clone()  # the call may write into what it is given
        y, total = ops.fused_add_rms_norm.maybe_inplace(x, residual, self.weight, EPSILON)
        record[self.site] = both, (y.clone(), total.clone())
        return y, total


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of ``x`` [tokens, heads, HEAD_DIM] by angles [tokens, 1, HEAD_DIM / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    """One decoder layer; ``forward`` takes and returns the hidden states [tokens, HIDDEN]."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.input_norm = Norm(HIDDEN, f"layers.{index}.input_norm")
        self.q_norm = Norm(HEAD_DIM, f"layers.{index}.q_norm")
        self.k_norm = Norm(HEAD_DIM, f"layers.{index}.k_norm")
        self.post_attention_norm = Norm(HIDDEN, f"layers.{index}.post_attention_norm")
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INTERMEDIATE, bias=False)
        self.down = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, record: Record | None) -> Tensor:
        x = self.input_norm(hidden, None, record)
        qkv = self.qkv(x).unflatten(-1, (-1, HEAD_DIM))  # q and k are strided views of it
        q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        q = _rotate(self.q_norm(q, None, record), cos, sin)
        k = _rotate(self.k_norm(k, None, record), cos, sin)
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attended = self.out(mixed.squeeze(0).transpose(0, 1).flatten(1))
        x, residual = self.post_attention_norm(attended, hidden, record)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return residual + self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """``layers`` decoder layers between a byte embedding and a byte head.

    Args:
        layers: how many.
        dtype: of weights and activations.
        seed: of the random weights.
    """

    def __init__(self, layers: int, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.layers = nn.ModuleList(Layer(index) for index in range(layers))
            self.final_norm = Norm(HIDDEN, "final_norm")
            nn.init.normal_(self.embedding.weight, std=0.02)  # logits of about one
        self.to(dtype)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, record: bool = False) -> tuple[Tensor, Record]:
        """Logits [tokens, VOCABULARY] and the record (empty unless asked for) of token ids [tokens]."""
        kept: Record = {}
        into = kept if record else None
        hidden = self.embedding(tokens)
        frequencies = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, device=tokens.device) / HEAD_DIM)
        angles = (torch.arange(tokens.shape[0], device=tokens.device)[:, None] * frequencies)[:, None]
        cos, sin = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, into)
        return functional.linear(self.final_norm(hidden, None, into), self.embedding.weight), kept

    def norms(self) -> dict[str, Norm]:
        """The norms by the name that they have in the record."""
        return {module.site: module for module in self.modules() if isinstance(module, Norm)}
