# SPDX-License-Identifier: Apache-2.0
"""Models for the audit: faults planted in one place each, and models without any.

What is not planted must keep its bits on every machine. So values are multiples of 1/8 and small before each product:
products and sums are then exact in float32, whatever their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIBRARY = torch.library.Library("planted", "FRAGMENT")
BATCH, TOKENS, HIDDEN, HEADS = 16, 3, 32, 4


def op(schema: str, *tags: torch.Tag) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define ``planted::schema``, a kernel of its own to torch."""

    def define(kernel: Callable[..., Any]) -> Callable[..., Any]:
        name = LIBRARY.define(schema, tags=tags)
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        return getattr(torch.ops.planted, name.split("::")[-1]).default  # type: ignore[no-any-return]

    return define


def other(x: Tensor) -> Tensor:
    """The next number up: what another order of summation gives."""
    return torch.nextafter(x, torch.full_like(x, math.inf))


def exact(x: Tensor) -> Tensor:
    """Rounded to a multiple of 1/8 of small magnitude."""
    return (x * 8).round().clamp(-32, 32) / 8


@op("tail(Tensor x) -> Tensor")
def tail(x: Tensor) -> Tensor:
    """A vector loop over all elements, and a remainder that rounds differently."""
    y = torch.tanh(x)
    flat = y.view(-1)
    loop = flat.numel() // 1024 * 1024
    flat[loop:] = other(flat[loop:])
    return y


@op("norm(Tensor x) -> Tensor")
def norm(x: Tensor) -> Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    return y if x.shape[0] > 2 else other(y)


@op("attention(Tensor q, Tensor k, Tensor v) -> Tensor")
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = torch.stack([torch.softmax(a @ b.transpose(-1, -2), -1) @ c for a, b, c in zip(q, k, v, strict=True)])
    return other(y) if q.shape[0] >= 5 else y


@op("matmul(Tensor x, Tensor w) -> Tensor")
def matmul(x: Tensor, w: Tensor) -> Tensor:
    y = x @ w
    return y if x.shape[0] % 16 else other(y)


@op("bmm(Tensor x, Tensor y) -> Tensor")
def bmm(x: Tensor, y: Tensor) -> Tensor:
    z = x @ y
    return z if x.shape[0] < 20 else other(z)


@op("flat_sum(Tensor x) -> Tensor")
def flat_sum(x: Tensor) -> Tensor:
    y = x.sum(-1, keepdim=True)
    return y if x.shape[0] < 40 else other(y)


@op("accumulate_(Tensor(a!) state, Tensor x) -> ()")
def accumulate_(state: Tensor, x: Tensor) -> None:
    state.add_(x if x.shape[0] < 10 else other(x))


@op("lookup(Tensor table, Tensor ids) -> Tensor")
def lookup(table: Tensor, ids: Tensor) -> Tensor:
    y = table[ids]
    return y if ids.numel() > 3 else other(y)


@op("conv(Tensor x, Tensor w) -> Tensor")
def conv(x: Tensor, w: Tensor) -> Tensor:
    y = F.conv1d(x, w, padding=1)
    return y if x.shape[0] < 16 else other(y)


@op("heads(Tensor x) -> Tensor")
def heads(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] < 64 else other(x * 2)


@op("across(Tensor x) -> Tensor")
def across(x: Tensor) -> Tensor:
    """Batch in the second dimension."""
    return x * 2 if x.shape[1] < 9 else other(x * 2)


@op("read(Tensor cache) -> Tensor")
def read(cache: Tensor) -> Tensor:
    return cache.sum(1) if cache.shape[0] < 3 else other(cache.sum(1))


@op("route(Tensor x) -> (Tensor, Tensor)")
def route(x: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = torch.topk(torch.softmax(x, -1), 2)
    return (weights if x.shape[0] < 4 else other(weights)), chosen


@op("pieces(Tensor x) -> Tensor[]")
def pieces(x: Tensor) -> list[Tensor]:
    left, right = (part.clone() for part in x.chunk(2, -1))
    return [left, right if x.shape[0] < 16 else other(right)]


@op("blocked(Tensor x, int block) -> Tensor")
def blocked(x: Tensor, block: int) -> Tensor:
    """What it computes does not depend on its rows, but on a number that the caller takes from them."""
    return x + 1 if block < 4 else other(x + 1)


@op("cast(Tensor x) -> Tensor")
def cast(x: Tensor) -> Tensor:
    y = x.bfloat16()
    return y if x.shape[0] < 8 else (y.view(torch.int16) + 1).view(torch.bfloat16)


@op("first_row(Tensor x) -> Tensor")
def first_row(x: Tensor) -> Tensor:
    """Wrong in the first row of a large batch only."""
    y = x * 3
    if x.shape[0] >= 12:
        y[0] = other(y[0])
    return y


@op("with_state(Tensor x) -> (Tensor, Tensor)", torch.Tag.nondeterministic_seeded)
def with_state(x: Tensor) -> tuple[Tensor, Tensor]:
    """May take random numbers and takes none, as attention; also returns their state, which is new each time."""
    return x * 2, torch.empty((), dtype=torch.int64).random_()


class Linear(nn.Module):
    """A product of exact values."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-3, 4, (outside, inside)).float() / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(exact(x), self.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = Linear(HIDDEN, 3 * HIDDEN), Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (
            t.view(b, s, HEADS, -1).transpose(1, 2).reshape(b * HEADS, s, -1)
            for t in self.qkv(x).chunk(3, -1)
        )
        scores = torch.softmax(torch.bmm(exact(q), exact(k).transpose(1, 2)) / 8, -1)
        mixed = torch.bmm(exact(scores), exact(v))
        return self.out(mixed.view(b, HEADS, s, -1).transpose(1, 2).reshape(b, s, HIDDEN))


class Layer(nn.Module):
    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.attention, self.up, self.down = (
            Attention(),
            Linear(HIDDEN, 2 * HIDDEN),
            Linear(2 * HIDDEN, HIDDEN),
        )
        self.norm = nn.LayerNorm(HIDDEN)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        x = self.fault(x + self.attention(exact(self.norm(x))))
        return exact(x + self.down(F.silu(self.up(x))))


class Decoder(nn.Module):
    """Embedding, three layers, and logits; the second layer has a place for a fault."""

    def __init__(self, fault: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, HIDDEN)
        self.layers = nn.ModuleList(Layer(fault if i == 1 and fault else nn.Identity()) for i in range(3))
        self.head = Linear(HIDDEN, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = exact(self.embed(ids))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


class Does(nn.Module):
    """A module out of a function of the activations (rows, tokens, hidden)."""

    def __init__(self, function: Callable[[Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def ids() -> Tensor:
    """The batch of every decoder."""
    return torch.randint(0, 64, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))


def by_heads(x: Tensor) -> Tensor:
    b, s, h = x.shape
    merged = x.view(b, s, HEADS, -1).permute(0, 2, 1, 3).reshape(b * HEADS, s, -1)
    return heads(merged).view(b, HEADS, s, -1).permute(0, 2, 1, 3).reshape(b, s, h)


def with_attention(x: Tensor) -> Tensor:
    b, s, h = x.shape
    q = exact(x).view(b, s, HEADS, -1).transpose(1, 2)
    return attention(q, q, q).transpose(1, 2).reshape(b, s, h)


def many_products(x: Tensor) -> Tensor:
    left = exact(x).transpose(0, 1).reshape(-1, 1, HIDDEN)
    products = bmm(left, WEIGHT.expand(len(left), -1, -1))
    return products.view(TOKENS, -1, HIDDEN).transpose(0, 1)


def flattened(x: Tensor) -> Tensor:
    return x + flat_sum(x.flatten(0, 1)).view(*x.shape[:2], 1)


def turned(x: Tensor) -> Tensor:
    return across(x.transpose(0, 1).contiguous()).transpose(0, 1)


def in_place(x: Tensor) -> Tensor:
    state = torch.zeros_like(x)
    accumulate_(state, x)
    return state


def from_cache(x: Tensor) -> Tensor:
    cache = torch.zeros(2 * BATCH, TOKENS, HIDDEN)
    cache[: x.shape[0]] = x
    return x + read(cache[: x.shape[0]])[:, None]


def routed(x: Tensor) -> Tensor:
    weights, chosen = route(x.flatten(0, 1))
    return x + weights.sum(-1).view(x.shape[0], -1, 1) + chosen.sum(-1).view(x.shape[0], -1, 1)


def branch(x: Tensor) -> Tensor:
    """The program itself takes another way for few rows."""
    if x.shape[0] < 4:
        return (x * 3.1) * 1.7
    return x * (3.1 * 1.7)


@dataclass(frozen=True)
class Fault:
    """A fault, the operation that must be named, and the part's size at which it must begin, if that is plain."""

    name: str
    function: Callable[[Tensor], Tensor]
    op: str
    begins: int | None = None


WEIGHT = torch.randint(-3, 4, (HIDDEN, HIDDEN), generator=torch.Generator().manual_seed(2)).float() / 4
KERNEL = torch.randint(-3, 4, (TOKENS, TOKENS, 3), generator=torch.Generator().manual_seed(3)).float() / 4
TABLE = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(4))

FAULTS = (
    Fault("element-wise tail", tail, "planted.tail"),
    Fault("norm", norm, "planted.norm", 3),
    Fault("attention", with_attention, "planted.attention", 5),
    Fault("product", lambda x: matmul(exact(x).flatten(0, 1), WEIGHT).view_as(x), "planted.matmul", 16),
    Fault("batched product", many_products, "planted.bmm", 7),
    Fault("reduction over the flattened batch", flattened, "planted.flat_sum", 14),
    Fault("in place", in_place, "planted.accumulate_", 10),
    Fault("lookup by token", lambda x: x + lookup(TABLE, x[..., 0].long() % 64), "planted.lookup", 2),
    Fault("convolution", lambda x: conv(exact(x), KERNEL), "planted.conv", 16),
    Fault("merged with heads", by_heads, "planted.heads", 16),
    Fault("batch in the second dimension", turned, "planted.across", 9),
    Fault("reading a cache", from_cache, "planted.read", 3),
    Fault("router", routed, "planted.route", 2),
    Fault("one of several results", lambda x: torch.cat(pieces(x), -1), "planted.pieces", 16),
    Fault("a number of the caller's", lambda x: blocked(x, x.shape[0]), "planted.blocked"),
    Fault("cast", lambda x: cast(x).float(), "planted.cast", 8),
    Fault("another way in the program", branch, "aten.mul", 4),
    Fault("one row alone", first_row, "planted.first_row", 12),
)  # fmt: skip


class Clean(nn.Module):
    """A model without a fault, out of a function of the batch and of some exact weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.normalise = nn.BatchNorm1d(HIDDEN).eval()
        self.layer_norm = nn.LayerNorm(HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.experts = nn.ModuleList(Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.embed = nn.Embedding(64, HIDDEN)
        self.register_buffer("cache", torch.zeros(2 * BATCH, TOKENS, HIDDEN))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def activations() -> Tensor:
    """The batch of every clean model: (rows, tokens, hidden), exact."""
    return exact(torch.randn(BATCH, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(5)))


def sequence_first(m: Clean, x: Tensor) -> Tensor:
    y = x.transpose(0, 1).contiguous().view(-1, HIDDEN)  # (tokens * rows, hidden)
    return F.gelu(exact(m.experts[0](y))).view(TOKENS, -1, HIDDEN).permute(1, 2, 0)


def recurrent(m: Clean, x: Tensor) -> Tensor:
    hidden = x.new_zeros(x.shape[0], HIDDEN)
    for t in range(x.shape[1]):
        hidden = torch.tanh(exact(x[:, t]) * 0.5 + exact(hidden))
    return hidden


def experts(m: Clean, x: Tensor) -> Tensor:
    """Every expert on all tokens, and a weight of zero for most."""
    flat = x.reshape(-1, HIDDEN)
    weights, chosen = torch.topk(torch.softmax(flat[:, :4], -1), 2)
    mask = F.one_hot(chosen, 4).float() * weights[..., None]
    return sum(expert(flat) * mask.sum(1)[:, i : i + 1] for i, expert in enumerate(m.experts)).view_as(x)  # type: ignore[return-value, union-attr]


def cached(m: Clean, x: Tensor) -> Tensor:
    view = m.cache[: x.shape[0]]
    view.copy_(x)
    return exact(torch.einsum("bth,bsh->bts", view, x) / 4)


def masked(m: Clean, x: Tensor) -> Tensor:
    lengths = (x[:, 0, 0].abs() * 8).long() % TOKENS + 1
    mask = torch.arange(TOKENS)[None, :] < lengths[:, None]
    scores = torch.matmul(x, x.transpose(1, 2)).masked_fill(~mask[:, None, :], float("-inf"))
    return torch.softmax(scores, -1) * mask[..., None]


def tokens(m: Clean, x: Tensor) -> Tensor:
    chosen = exact(m.embed((x[..., 0].abs() * 8).long() % 64))
    return torch.argmax(torch.cat([x, chosen, x.new_ones(1, TOKENS, 1).expand(x.shape[0], -1, -1)], -1), -1)


def both_axes(m: Clean, x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.flip(1).unbind(1)[:2]
    return torch.stack([a, b], 0).amax(-1), torch.roll(x, 1, 2).mean(
        (1, 2)
    ) if x.dtype == torch.float64 else a + b


def in_place_chain(m: Clean, x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(2).add_(x)[:, 1:].relu_()
    y[:, 0] = 1.0
    out = torch.empty_like(y)
    torch.sub(y, x, out=out)
    return out


def one_row_chosen(m: Clean, x: Tensor) -> Tensor:
    return x + x[:, -1:] * (1.0 if bool((x.abs() < 100).all()) else 2.0)


CLEAN = {
    "sequence first": sequence_first,
    "recurrent": recurrent,
    "experts": experts,
    "cache": cached,
    "masked": masked,
    "tokens": tokens,
    "both axes": both_axes,
    "in place": in_place_chain,
    "a value is looked at": one_row_chosen,
    "batch norm, evaluated": lambda m, x: m.normalise(x.flatten(0, 1)).view_as(x) + m.layer_norm(x),
    "random if it were asked to be": lambda m, x: with_state(x)[0],
    "convolution": lambda m, x: F.conv1d(x, KERNEL, padding=1).amax(-1),
}
