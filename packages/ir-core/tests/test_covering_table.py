# SPDX-License-Identifier: Apache-2.0
"""Each cover: the value that torch's own function has, and bits that do not depend on the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ir_core
from ir_core import batch_invariant_mode, ops
from ir_core.covering import known
from ir_core.covering.attention import refuse_left_padding
from ir_core.covering.table import COVERS
from ir_core.errors import ArgumentError
from ir_core.ops.elementwise import FUNCTIONS

pytestmark = pytest.mark.usefixtures("alone")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = random(3, 4, 24)
Y = random(3, 24, 5, seed=1)
W = random(6, 24, seed=2)
B = random(6, seed=3)
ROW, OTHER = random(24, seed=4), random(24, seed=5)
Q, K, V = random(2, 4, 7, 16), random(2, 2, 7, 16, seed=6), random(2, 2, 7, 8, seed=7)
IMAGE, KERNEL = random(2, 4, 9, 8), random(6, 2, 3, 2, seed=8)
TARGET = torch.tensor([0, 3, -100])


@pytest.fixture(autouse=True)
def all_is_covered() -> Iterator[None]:
    known.forget()
    yield
    assert known.said() == ()


# What is called, with float32 or float64 tensors.
CALLS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "linear": lambda c: F.linear(c(X), c(W), c(B)),
    "linear, a row for a weight": lambda c: F.linear(c(X), c(ROW)),
    "@": lambda c: c(X) @ c(Y),
    "@, a matrix": lambda c: c(X) @ c(W).T,
    "@, two rows": lambda c: c(ROW) @ c(OTHER),
    "@, a row first": lambda c: c(ROW) @ c(Y),
    "matmul that broadcasts": lambda c: torch.matmul(c(X).unsqueeze(1), c(Y)[:2].unsqueeze(0)),
    "mm": lambda c: torch.mm(c(X)[0], c(Y)[0]),
    "mv": lambda c: c(X)[0].mv(c(ROW)),
    "addmm": lambda c: torch.addmm(c(B), c(X)[0], c(W).T),
    "addmm, scaled": lambda c: torch.addmm(c(B), c(X)[0], c(W).T, beta=0.5, alpha=2.0),
    "baddbmm": lambda c: torch.baddbmm(c(X)[..., :5], c(X), c(Y), alpha=0.5),
    "bmm into": lambda c: torch.bmm(c(X), c(Y), out=torch.empty(3, 4, 5, dtype=c(X).dtype)),
    "einsum": lambda c: torch.einsum("bmk,bkn->bnm", c(X), c(Y)),
    "einsum of three": lambda c: torch.einsum("bmk,bkn,k->bn", c(X), c(Y), c(ROW)),
    "einsum without result": lambda c: torch.einsum("...k,nk", c(X), c(W)),
    "einsum of a diagonal": lambda c: torch.einsum("bii->bi", c(X)[..., :4]),
    "outer": lambda c: torch.outer(c(ROW), c(OTHER)),
    "bilinear": lambda c: F.bilinear(c(X)[0], c(X)[1], c(random(5, 24, 24)), c(B)[:5]),
    "conv1d": lambda c: F.conv1d(c(X), c(random(6, 4, 3)), c(B), padding=1, stride=2),
    "conv2d in groups": lambda c: F.conv2d(c(IMAGE), c(KERNEL), c(B), (2, 1), (1, 0), (1, 2), 2),
    "conv2d that keeps its size": lambda c: F.conv2d(c(IMAGE), c(random(3, 4, 3, 2)), padding="same"),
    "sum": lambda c: c(X).sum(),
    "sum over two": lambda c: c(X).sum((0, -1), keepdim=True),
    "mean": lambda c: c(X).mean(-1),
    "mean over the first": lambda c: torch.mean(c(X), 0, True),
    "var": lambda c: c(X).var(-1),
    "std": lambda c: torch.std(c(X), (1, 2), correction=0),
    "var_mean": lambda c: torch.stack(torch.var_mean(c(X), -1, keepdim=True)),
    "norm": lambda c: c(X).norm(dim=-1),
    "vector_norm": lambda c: torch.linalg.vector_norm(c(X), 1, (0, 2)),
    "normalize": lambda c: F.normalize(c(X), dim=-1),
    "cosine_similarity": lambda c: F.cosine_similarity(c(X)[0], c(X)[1], dim=-1),
    "softmax": lambda c: c(X).softmax(1),
    "log_softmax": lambda c: F.log_softmax(c(X), -1),
    "logsumexp": lambda c: torch.logsumexp(c(X), (0, 2)),
    "layer_norm": lambda c: F.layer_norm(c(X), (24,), c(ROW), c(OTHER)),
    "layer_norm of two": lambda c: F.layer_norm(c(X), (4, 24)),
    "rms_norm": lambda c: F.rms_norm(c(X), (24,), c(ROW), 1e-6),
    "group_norm": lambda c: F.group_norm(c(IMAGE), 2, c(B)[:4], c(B)[:4]),
    "batch_norm": lambda c: F.batch_norm(c(IMAGE), c(B)[:4], c(B)[:4].abs(), c(B)[:4]),
    "cross_entropy": lambda c: F.cross_entropy(c(X)[:, 0], TARGET, c(ROW).abs(), label_smoothing=0.1),
    "cross_entropy of shares": lambda c: F.cross_entropy(c(X)[:, 0], c(X)[:, 1].softmax(-1), reduction="sum"),
    "cross_entropy of each": lambda c: F.cross_entropy(c(X)[:, 0], TARGET, reduction="none"),
    "nll_loss": lambda c: F.nll_loss(c(X)[:, 0], TARGET),
    "mse_loss": lambda c: F.mse_loss(c(X)[0], c(X)[1]),
    "sdpa": lambda c: F.scaled_dot_product_attention(c(Q), c(K), c(V), enable_gqa=True),
    "sdpa, causal": lambda c: F.scaled_dot_product_attention(
        c(Q), c(K), c(V), is_causal=True, enable_gqa=True, scale=0.3
    ),
    "sdpa, causal, fewer queries": lambda c: F.scaled_dot_product_attention(
        c(Q)[:, :, :3], c(K), c(V), is_causal=True, enable_gqa=True
    ),
    "sdpa, causal, fewer keys": lambda c: F.scaled_dot_product_attention(
        c(Q), c(K)[:, :, :3], c(V)[:, :, :3], is_causal=True, enable_gqa=True
    ),
    "sdpa with numbers": lambda c: F.scaled_dot_product_attention(
        c(Q), c(K), c(V), c(random(7, 7)), enable_gqa=True
    ),
    "sdpa of one head": lambda c: F.scaled_dot_product_attention(c(Q)[0], c(Q)[1], c(Q)[0]),
    "exp": lambda c: c(X).exp(),
    "log": lambda c: torch.log(c(X).abs()),
    "gelu": lambda c: F.gelu(c(X)),
    "gelu_tanh": lambda c: F.gelu(c(X), approximate="tanh"),
    "silu": lambda c: F.silu(c(X)),
    "silu in place": lambda c: F.silu(c(X).clone(), inplace=True),
    "sigmoid in place": lambda c: c(X).clone().sigmoid_(),
    "tanh": lambda c: torch.tanh(c(X)),
    "softplus": lambda c: F.softplus(c(X) * 9, beta=2.0),
    "elu": lambda c: F.elu(c(X)),
    "mish": lambda c: F.mish(c(X)),
    "glu": lambda c: F.glu(c(X)),
    "logsigmoid": lambda c: F.logsigmoid(c(X)),
    "cos": lambda c: torch.cos(c(X * 1000)),
    "sin": lambda c: (c(X * 1000)).sin(),
    "sqrt": lambda c: c(X).abs().sqrt(),
    "rsqrt": lambda c: torch.rsqrt(c(X).abs() + 1e-3),
    "powers": lambda c: torch.stack([c(X).abs() ** p for p in (2, 3, 4, 0.5, -0.5, -1, -2)]),
    "general powers": lambda c: (
        torch.cat(
            (c(X).abs() ** 1.7, 1e4 ** c(X), c(X) ** 5, c(X).abs() ** c(X), torch.pow(2, c(X)), c(X) ** -3)
        )
        .clamp(-100, 100)
        .nan_to_num()
    ),
    "add": lambda c: torch.add(c(X), c(X), alpha=0.3) + 1.3,
    "rsub": lambda c: 1.7 - torch.rsub(c(X), c(X), alpha=0.3),
    "addcmul": lambda c: torch.addcmul(c(X), c(X), c(X), value=0.3),
    "addcdiv": lambda c: torch.addcdiv(c(X), c(X), c(X).abs() + 1, value=0.3),
    "lerp": lambda c: torch.lerp(c(X), -c(X), 0.3),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_value_is_that_of_torch(name: str) -> None:
    """Sums of 24 to 600 terms of size 1: 600 roundings of float32 are below 4e-5 times their sizes."""
    expected = CALLS[name](lambda t: t.double())
    with batch_invariant_mode():
        found = CALLS[name](lambda t: t)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=4e-5, atol=4e-5)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.itemsize])


ROWS = random(257, 3, 40) * 3
ELEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: (lambda x, name=name: ops.pointwise(x.abs() if name == "log" else x, name))
        for name in FUNCTIONS
    },
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: x.abs().rsqrt(),
    "arithmetic": lambda x: (x * 0.7 + 1.3 - x / 3) / (x.abs() + 1) * x - (1.7 - x),
    "powers": lambda x: x**2 + x**3 + x.abs() ** 1.7 + 3.0**x,
    "sums": lambda x: torch.add(x, x, alpha=0.3) - torch.rsub(x, x, alpha=0.7),
    "choices": lambda x: torch.where(x > 1.3, x.clamp(-1, 2), F.relu(x)) + F.leaky_relu(x) + x.abs(),
    "casts": lambda x: (x.to(torch.bfloat16) * x.to(torch.bfloat16)).to(x.dtype),
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "mish": F.mish,
    "lerp": lambda x: torch.lerp(x, -x, 0.3) + torch.addcmul(x, x, x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ELEMENTS)
def test_an_element_keeps_its_bits_at_any_place(name: str, dtype: torch.dtype) -> None:
    """In a vector loop, its remainder, another memory layout, and on several threads."""
    x = ROWS.to(dtype)
    with batch_invariant_mode():
        whole = bits(ELEMENTS[name](x))
        for size in (1, 2, 3, 7, 33):
            parts = torch.cat([ELEMENTS[name](part) for part in x[:66].split(size)])
            assert torch.equal(bits(parts), whole[:66]), size
        strided = torch.stack((x, x), -1)[..., 0]
        assert torch.equal(bits(ELEMENTS[name](strided)), whole)
        moved = torch.cat((x.new_zeros(3), x.flatten()))[3:].view(x.shape)
        assert torch.equal(bits(ELEMENTS[name](moved)), whole)
        across = x.transpose(0, 2).contiguous().transpose(0, 2)
        assert torch.equal(bits(ELEMENTS[name](across)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_elements_have_the_eager_bits(dtype: torch.dtype) -> None:
    def every(x: Tensor) -> list[Tensor]:
        return [function(x) for function in ELEMENTS.values()]

    torch._dynamo.reset()
    x = ROWS.to(dtype)
    with batch_invariant_mode(), torch.no_grad():
        pairs = zip(ELEMENTS, every(x), torch.compile(every, fullgraph=True)(x), strict=True)
        different = [name for name, eager, compiled in pairs if not torch.equal(bits(eager), bits(compiled))]
    assert different == []


BATCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, W, B),
    "matmul": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("bmk,bnk->bmn", x, x),
    "softmax": lambda x: x.softmax(-1),
    "mean": lambda x: x.pow(2).mean(-1, keepdim=True),
    "sum": lambda x: x.sum((1, 2)),
    "layer_norm": lambda x: F.layer_norm(x, (24,), ROW.to(x.dtype)),
    "rms_norm": lambda x: F.rms_norm(x, (24,)),
    "norm": lambda x: F.normalize(x, dim=-1),
    "conv1d": lambda x: F.conv1d(x, random(6, 2, 3).to(x.dtype), padding=1),
    "sdpa": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    "loss": lambda x: F.cross_entropy(
        x.mT, torch.zeros(len(x), 2, dtype=torch.long), reduction="none", label_smoothing=0.1
    ),
}


@pytest.mark.parametrize("name", BATCHED)
def test_a_row_and_its_gradient_do_not_depend_on_the_batch(name: str) -> None:
    x = random(33, 2, 24, seed=9)

    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.clone().requires_grad_()
        y = BATCHED[name](rows)
        slopes = torch.linspace(-1, 1, y[0].numel()).reshape(y[0].shape)
        y.backward(slopes.expand_as(y))
        assert rows.grad is not None
        return y.detach(), rows.grad

    with batch_invariant_mode():
        weight = W.clone()
        assert weight.grad is None
        together = run(x)
        for size in (1, 2):
            parts = [run(part) for part in x.split(size)]
            for whole, found in zip(together, zip(*parts, strict=True), strict=True):
                assert torch.equal(bits(whole), bits(torch.cat(found))), size


def test_a_query_has_its_bits_in_chunks() -> None:
    q, k, v = random(1, 4, 33, 16), random(1, 2, 33, 16, seed=1), random(1, 2, 33, 16, seed=2)
    with batch_invariant_mode():
        whole = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        for start, stop in itertools.pairwise((0, 5, 6, 32, 33)):
            mask = torch.ones(33, 33, dtype=torch.bool).tril()[start:stop, :stop]
            part = F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask[None, None], enable_gqa=True
            )
            assert torch.equal(bits(part), bits(whole[:, :, start:stop]))


def test_left_padding_is_refused() -> None:
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6).clone()
    refuse_left_padding(mask, 6, 6)
    right = mask.clone()
    right[1, :, :, 4:] = False
    refuse_left_padding(right, 6, 6)
    window = mask & mask.logical_not().logical_not().triu(-2)
    refuse_left_padding(window, 6, 6)
    mask[1, :, :, :2] = False
    x = random(2, 1, 6, 16)
    with batch_invariant_mode(), pytest.raises(ArgumentError, match="padded on the left"):
        F.scaled_dot_product_attention(x, x, x, mask)


def test_autocast_decides_the_dtype() -> None:
    with batch_invariant_mode(), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(X, W).dtype == torch.bfloat16
        assert (X @ Y).dtype == torch.bfloat16


def test_every_cover_takes_what_its_function_takes() -> None:
    """A form of a function that has no signature to compare with is called in the other tests."""
    assert len(COVERS) > 120
    assert torch.Tensor.__matmul__ in COVERS
    assert torch.Tensor.mean in COVERS
    assert ir_core.current().covering is False
