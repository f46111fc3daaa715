# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention, with grouped heads, causal or not, masked or not.

Its orders are those of ``tiles64.py``, one a dtype: ``tiles64`` (fp16, bf16), ``tiles64_fma`` (float32) and
``tiles64_mul_add`` (float64). Keys are grouped by their index alone, so that a query has the same bits in a prompt at
once, in chunks of any size, or by itself, alone or in a batch, with or without further keys that it does not see.

The gradient is in ``attention_backward.py``.

Tolerance, for outputs that average values of variance 1, and scores of variance 1 (the generator's). Let u be the unit
roundoff of the dtype. 16 bits: probabilities are rounded (u, on values up to 6), and the output (u). A score sums
D / 16 steps that each cut off up to 17 * 2**-25 of terms up to 6 * sqrt(D); times 1 / sqrt(D) that is a relative error
of a probability, on values up to 6; D = 65536 is granted. float32: scores of D roundings of random sign, 4 sqrt(D)
units, on scores and values up to 6; and as much for sums over up to 65536 keys. float64 likewise.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ir_core.errors import ArgumentError
from ir_core.meaning import Order
from ir_core.op import register_op
from ir_core.ops.attention_arguments import call_of, check_shapes, visible_keys
from ir_core.ops.attention_backward import gradients
from ir_core.ops.tiles64 import ARITHMETIC, attend, prepared_scale
from ir_core.requirement import parse_requirement
from ir_core.tolerances import unit_roundoff

_TILES: Final = (
    "Scores are sums of products in the order {dot}. Keys are taken in tiles of 64 by their index, from 0 on. In a "
    "tile: the maximum of the scores so far, times scale * log2(e) and made one to two units larger; the exponentials "
    "exp2(score * scale * log2(e) - maximum), by fused multiply-adds; what there is is multiplied by the exponential "
    "of the old maximum less the new; the exponentials' sum, a tree over pairs, is added; their products with the "
    "values{rounded} are added by continuing the sum in the order {dot}. After every 512 keys the result is closed, "
    "and merged with the ones before, in ascending order. At the end it is multiplied by the reciprocal of the sum and "
    "rounded once. A key that is not visible counts +0; a query without visible keys gives zeros. See docs/orders.md."
)

ORDERS: Final = (
    Order(
        "tiles64",
        _TILES.format(dot="chain16", rounded=", of the exponentials rounded to the dtype,"),
        requires=parse_requirement("sm>=9.0, sm<10.0 | cpu"),
        dtypes=(torch.float16, torch.bfloat16),
    ),
    Order("tiles64_fma", _TILES.format(dot="fma_chain", rounded=""), dtypes=(torch.float32,)),
    Order(
        "tiles64_mul_add",
        _TILES.format(dot="mul_add_chain", rounded="")
        + " Every product and every sum is rounded to float64.",
        dtypes=(torch.float64,),
    ),
)


@register_op(activations=["query", "key", "value"], has_reduction=True, orders=ORDERS)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * query @ key.mT) @ value``, over the keys that a query may see.

    Args:
        query: fp16, bf16, fp32 or fp64 ``[B, H, M, D]``, any strides. Further leading dimensions are more of B.
        key: of query's dtype, ``[B, G, N, D]``, H a multiple of G: head h attends to the keys of ``h // (H / G)``.
        value: of query's dtype, ``[B, G, N, C]``.
        scale: of the scores; ``None``: ``1 / sqrt(D)``.
        causal: query m sees the keys up to index ``m + N - M``: the last query sees the last key.
        mask: bool, which broadcasts to ``[B, H, M, N]``: True where a query may see a key.
        key_lengths: integers, which broadcast to ``[B]``: keys and values from that index on are not there, whatever
            their memory holds (right padding).

    Returns:
        ``[B, H, M, C]``, of query's dtype, contiguous. A query that sees no key has zeros.

    Values of keys that a mask or ``causal`` hides must be finite: their weight is zero, and zero times infinity is not.

    Raises:
        ArgumentError: a dtype without an order, two dtypes, or shapes that do not fit.
    """
    call = call_of(query, key, value, mask, key_lengths)
    seen = visible_keys(query, key, causal, mask, key_lengths)
    grouped = call.heads != call.groups
    flat = [t.reshape(call.batch, *t.shape[-3:]) for t in (query, key, value)]
    if key_lengths is not None:
        inside = torch.arange(call.keys, device=key.device) < call.lengths(key_lengths).view(-1, 1)
        flat[2] = flat[2].masked_fill(~inside[:, None, :, None], 0.0)
    whole = causal and mask is None and key_lengths is None and call.queries == call.keys
    if not call.keys:
        return query.new_zeros((*query.shape[:-1], value.shape[-1]))
    hidden = None if whole else seen
    out = torch.nn.functional.scaled_dot_product_attention(
        flat[0], flat[1], flat[2], attn_mask=hidden, is_causal=whole, scale=scale, enable_gqa=grouped
    )
    if hidden is not None:
        out = torch.where(hidden.any(-1, keepdim=True), out, 0.0)
    return out.reshape(*query.shape[:-1], value.shape[-1]).contiguous()


@attention.register_check
def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> None:
    """Refuse what is no call of ``attention``, as far as dtypes, ranks and last dimensions tell."""
    if query.dtype not in ARITHMETIC:
        raise ArgumentError(
            f"attention takes float16, bfloat16, float32 and float64, and 'query' is {query.dtype}.",
            why="An order is defined for each of these.",
            fix="Convert it first.",
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ArgumentError(
                f"attention: '{name}' is {tensor.dtype}, and 'query' is {query.dtype}.",
                why="The order of the sums is that of one dtype.",
                fix=f"Convert one of them: {name}.to(query.dtype).",
            )
        if tensor.ndim < 4 or tensor.ndim != query.ndim:
            raise ArgumentError(
                f"attention: '{name}' has {tensor.ndim} dimensions, and 'query' has {query.ndim}.",
                why="Each of the three has a batch, heads, rows and the elements of a row: [B, H, M, D].",
                fix="Give all three four dimensions (or as many more in front).",
            )
    if key.shape[-1] != query.shape[-1]:
        raise ArgumentError(
            f"attention: the rows of 'key' have {key.shape[-1]} elements, those of 'query' {query.shape[-1]}.",
            why="A score is the sum of the products of their elements.",
            fix="Give both the same head size.",
        )
    if scale is not None and not math.isfinite(scale):
        raise ArgumentError(f"attention: scale is {scale}.", fix="Give a finite number, or None.")
    if mask is not None and mask.dtype != torch.bool:
        raise ArgumentError(
            f"attention: 'mask' is {mask.dtype}.",
            why="It says which keys a query may see; nothing is added to the scores.",
            fix="Give booleans, True where a key may be seen.",
        )
    if key_lengths is not None and key_lengths.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(
            f"attention: 'key_lengths' is {key_lengths.dtype}.", fix="Give int32 or int64 numbers of keys."
        )


def attention_portable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """The order's reference. Opaque, so that no compiler contracts, splits or reorders it."""
    call = call_of(query, key, value, mask, key_lengths)
    query, factor = prepared_scale(query.detach(), scale)
    seen = visible_keys(query, key, causal, mask, key_lengths)
    out = attend(
        call.rows(query),
        call.group(key.detach()),
        call.values(value.detach(), key_lengths),
        call.seen(seen),
        factor,
    )
    return out.reshape(*query.shape[:-1], value.shape[-1])


@attention.register_fake
def _attention_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    check_shapes(query, key, value, mask, key_lengths)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@attention.register_backward
def _attention_backward(args: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * 7
    return (*gradients(*args, grad=grads[0]), None, None, None, None)


QUERIES: Final = 2
KEYS: Final = 66
"""Of generated inputs: a tile and some, so that tiles are told apart, and few, for the sake of ``portable``."""


@attention.register_input_generator
def _attention_inputs(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype,
    heads: int = 2,
    groups: int = 1,
    queries: int = QUERIES,
    keys: int = KEYS,
    causal: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Any, ...]:
    """``num_tokens`` sequences of ``queries`` queries and ``keys`` keys, heads of ``hidden_size`` elements."""
    query = torch.randn(num_tokens, heads, queries, hidden_size, dtype=dtype, device=device)
    key = torch.randn(num_tokens, groups, keys, hidden_size, dtype=dtype, device=device)
    value = torch.randn(num_tokens, groups, keys, hidden_size, dtype=dtype, device=device)
    return query, key, value, None, causal


attention.register_values(
    scale=(0.25, 0.0, -0.125),
    mask={"every other key": lambda _: torch.arange(KEYS).remainder(2) == 0},
    key_lengths={"65": lambda _: torch.tensor([65])},
)

_WIDEST: Final = 65536
for _dtype in (torch.float16, torch.bfloat16):
    _u = unit_roundoff(_dtype)
    attention.override_tolerance(_dtype, atol=6 * _u + 6 * 6 * (_WIDEST / 16) * 17 * 2.0**-25, rtol=2 * _u)
for _dtype in (torch.float32, torch.float64):
    _u = unit_roundoff(_dtype)
    attention.override_tolerance(_dtype, atol=2 * 36 * 4 * math.sqrt(_WIDEST) * _u, rtol=2 * _u)
