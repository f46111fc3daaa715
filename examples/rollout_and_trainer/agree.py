# SPDX-License-Identifier: Apache-2.0
"""Where a model of transformers and vLLM's round in other places, the trainer's model is told to do as the engine does.

Orders say how an op adds and rounds, and not which ops a model is made of. Qwen3 differs in four places:

- vLLM's norms are the op ``rms_norm``; transformers' are a square, a mean, a root and two products, rounded in between.
- vLLM adds the residual within the norm that follows (``fused_add_rms_norm``), which normalises the sum before it is
  rounded. transformers adds, rounds, and then normalises. In float32 both are the same; in bfloat16 they are not.
- vLLM's activation is one kernel, on gate and up side by side; it is called here as the engine calls it.
- vLLM reads the cosines and sines of all positions from a table; transformers computes those that it needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ir_core import ops


def agree(model: nn.Module) -> nn.Module:
    """Make a Qwen3 of transformers compute what vLLM's Qwen3 does; changes the model and returns it."""
    inner: Any = model.model
    for layer in inner.layers:
        layer.self_attn.q_norm.forward = _Norm(layer.self_attn.q_norm)
        layer.self_attn.k_norm.forward = _Norm(layer.self_attn.k_norm)
        layer.mlp.forward = _Gated(layer.mlp)
        layer.forward = _Layer(layer)
    inner.norm.forward = _Norm(inner.norm)
    inner.rotary_emb.forward = _Table(inner.config, next(model.parameters()).device)
    return model


class _Norm:
    """A norm; of the pair that a layer returns, the last norm adds what was left apart."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, hidden_states: Any) -> Tensor:
        if isinstance(hidden_states, tuple):
            return self.add(*hidden_states)[0]
        return ops.rms_norm(hidden_states, self.norm.weight, self.norm.variance_epsilon)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum."""
        return ops.fused_add_rms_norm(x, residual, self.norm.weight, self.norm.variance_epsilon)


class _Layer:
    """A decoder layer whose hidden state is a pair between layers: the last output, and the residual beside it."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.first, self.second = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)

    def __call__(self, hidden_states: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if isinstance(hidden_states, tuple):
            x, residual = self.first.add(*hidden_states)
        else:
            x, residual = self.first(hidden_states), hidden_states
        x, _ = self.layer.self_attn(hidden_states=x, **options)
        x, residual = self.second.add(x, residual)
        return self.layer.mlp(x), residual


class _Gated:
    """The gated MLP, with vLLM's activation."""

    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        both = torch.cat((self.mlp.gate_proj(x), self.mlp.up_proj(x)), dim=-1)
        rows = _SiluAndMul.apply(both.reshape(-1, both.shape[-1]))
        return self.mlp.down_proj(rows.reshape(*x.shape[:-1], -1))


class _SiluAndMul(torch.autograd.Function):
    """``silu(gate) * up``: forward as vLLM's layer runs it, backward in torch, for rows by themselves."""

    @staticmethod
    def forward(context: Any, both: Tensor) -> Tensor:
        from vllm.model_executor.layers.activation import SiluAndMul

        context.save_for_backward(both)
        with torch._C.DisableTorchFunction():  # as in the engine: no mode sends torch's functions elsewhere
            if both.is_cuda:
                out = both.new_empty((both.shape[0], both.shape[1] // 2))
                torch.ops._C.silu_and_mul(out, both)
                return out
            return SiluAndMul.forward_native(both)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Tensor:
        gate, up = context.saved_tensors[0].float().chunk(2, dim=-1)
        grad32 = grad.float()
        sigmoid = torch.sigmoid(gate)
        through = grad32 * up * sigmoid * (1 + gate * (1 - sigmoid))
        return torch.cat((through, grad32 * gate * sigmoid), dim=-1).to(grad.dtype)


class _Table:
    """Rotary embeddings from a table, computed as vLLM computes it."""

    def __init__(self, config: Any, device: torch.device) -> None:
        size, base = config.head_dim, config.rope_parameters["rope_theta"]
        frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float) / size))
        positions = torch.arange(config.max_position_embeddings, dtype=torch.float)
        angles = torch.einsum("i,j -> ij", positions, frequencies)
        self.cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(device)
        self.sin = torch.cat((angles.sin(), angles.sin()), dim=-1).to(device)

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)
