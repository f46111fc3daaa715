# SPDX-License-Identifier: Apache-2.0
"""The gradient of attention, in float32 (float64 for float64), whatever the dtype of the arguments.

With the scores ``S = scale * Q K^T``, ``P = softmax(S)`` over visible keys and the gradient ``G`` of ``P V``:
``dV = P^T G``, ``dP = G V^T``, ``dS = P * (dP - sum over keys of P * dP)``, ``dQ = scale * dS K``,
``dK = scale * dS^T Q``; each rounded to its argument's dtype at the end.

The five products are ``bmm``'s, one matrix a group of heads of a sequence, in the order of their dtype; sums over keys
are trees of 64 keys, added one after the other. So the gradients of one sequence do not depend on the others, and keys
that are not visible change nothing, except that they get gradients of zero. All of it can be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ir_core.ops.arguments import wanted
from ir_core.ops.attention_arguments import call_of, visible_keys
from ir_core.ops.batched_matmul import bmm
from ir_core.ops.powers import differentiable_exp2
from ir_core.ops.tiles64 import LOG2_E, SUM_BITS, TILE


def gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    causal: bool,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    *,
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query, key and value for the output's gradient ``grad``; None where none is asked for."""
    call = call_of(query, key, value, mask, key_lengths)
    wide = torch.promote_types(query.dtype, torch.float32)
    factor = float(query.shape[-1]) ** -0.5 if scale is None else scale
    seen = call.seen(visible_keys(query, key, causal, mask, key_lengths))
    q, g = call.rows(query).to(wide), call.rows(grad).to(wide)
    k, v = call.group(key).to(wide), call.values(value, key_lengths).to(wide)
    p = _probabilities(bmm(q, k) * factor, seen)
    found: list[Tensor | None] = [None, None, None]
    if wanted(query) or wanted(key):
        dp = bmm(g, v)
        ds = p * (dp - _sum(p * dp)) * factor
        found[0] = bmm(ds, k.mT) if wanted(query) else None
        found[1] = bmm(ds.mT, q.mT) if wanted(key) else None
    if wanted(value):
        found[2] = call.values(bmm(p.mT, g.mT), key_lengths)
    query_grad, key_grad, value_grad = (
        None if t is None else t.reshape(of.shape).to(of.dtype)
        for t, of in zip(found, (query, key, value), strict=True)
    )
    return query_grad, key_grad, value_grad


def _probabilities(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Softmax over the visible keys; zeros for a query that sees none."""
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    if not scores.shape[-1]:
        return scores
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    e = differentiable_exp2((scores - top) * LOG2_E, 6)
    total = _sum(e)
    return e / torch.where(total == 0, 1.0, total)


def _sum(x: Tensor) -> Tensor:
    """Sum over keys, ``[Z, R, N]`` to ``[Z, R, 1]``."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % TILE))
    x = x.reshape(*x.shape[:-1], -1, *(2,) * 6)
    left = list(range(5, -1, -1))
    for bit in SUM_BITS:
        dim = left.index(bit) - len(left)
        x = x.select(dim, 0) + x.select(dim, 1)
        left.remove(bit)
    total = x.new_zeros(x.shape[:-1])
    for tile in range(x.shape[-1]):
        total = total + x[..., tile]
    return total.unsqueeze(-1)
