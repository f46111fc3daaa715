# SPDX-License-Identifier: Apache-2.0
"""attention: its numbers; a query's bits depend on its visible keys alone; its arguments; its gradients."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops
from ir_core.errors import ArgumentError
from ir_core.ops import powers, tiles64
from ir_core.ops.chain16 import chain16, chain16_add
from ir_core.ops.fma_chain import fma, fma_add, fma_chain

pytestmark = pytest.mark.usefixtures("alone")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BF16, F32, F64)
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(5)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bits; what is no number has no bits of its own."""
    integer = INTEGER[a.element_size()]
    same = (a.contiguous().view(integer) == b.contiguous().view(integer)) | (a.isnan() & b.isnan())
    return a.dtype is b.dtype and a.shape == b.shape and bool(same.all())


def portable(*args: Tensor, **options: object) -> Tensor:
    result = ops.attention.impls["portable"].impl_fn(*args, **options)
    assert isinstance(result, Tensor)
    return result


def operands(dtype, b=2, h=4, g=2, m=9, n=90, d=16, c=8) -> list[Tensor]:
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, c)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def in_float64(
    q: Tensor, k: Tensor, v: Tensor, scale=None, causal=False, mask=None, key_lengths=None
) -> Tensor:
    """The definition, one query at a time."""
    (batch, heads, queries, d), (groups, keys) = q.shape, k.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    out = torch.zeros(batch, heads, queries, v.shape[-1], dtype=F64)
    for b in range(batch):
        for h in range(heads):
            for m in range(queries):
                seen = torch.ones(keys, dtype=torch.bool)
                if causal:
                    seen &= torch.arange(keys) <= m + keys - queries
                if key_lengths is not None:
                    seen &= torch.arange(keys) < key_lengths[b]
                if mask is not None:
                    seen &= mask.expand(batch, heads, queries, keys)[b, h, m]
                if seen.any():
                    at = h // (heads // groups)
                    p = torch.softmax(scale * (k[b, at, seen].double() @ q[b, h, m].double()), 0)
                    out[b, h, m] = p @ v[b, at, seen].double()
    return out


OPTIONS = {
    "all keys": {},
    "causal": {"causal": True},
    "scaled": {"scale": -0.375, "causal": True},
    "no scale": {"scale": 0.0},
    "lengths": {"key_lengths": torch.tensor([0, 71])},
    "mask": {"mask": torch.arange(90).remainder(7) > 2},
    "all of them": {
        "mask": torch.rand(2, 1, 9, 90) > 0.4,
        "causal": True,
        "key_lengths": torch.tensor([5, 86]),
    },
}


@pytest.mark.parametrize("provider", ["native", "portable"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values(provider, dtype, options):
    q, k, v = operands(dtype)
    got = ops.attention.impls[provider].impl_fn(q, k, v, **options)
    want = in_float64(q, k, v, **options)
    bound = ops.attention.get_tolerance(dtype)
    assert got.dtype is dtype and got.shape == want.shape and got.is_contiguous()
    assert torch.allclose(got.double(), want, rtol=bound["rtol"], atol=bound["atol"])
    if "key_lengths" in options and options["key_lengths"][0] == 0:
        assert not got[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_far_below_the_tolerance_at_usual_sizes(dtype):
    """The tolerance is derived for 65536 elements a head; with 64 the errors are those of a few roundings."""
    q, k, v = operands(dtype, m=40, n=700, d=64, c=32)
    want = in_float64(q, k, v)
    unit = torch.finfo(dtype).eps / 2
    assert (portable(q, k, v).double() - want).abs().max() < 16 * unit


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
def test_chunks_and_single_queries_have_the_bits_of_the_whole(dtype):
    """Across the ends of tiles (64) and parts (512), with a history and without."""
    q, k, v = operands(dtype, b=1, h=2, g=1, m=600, n=600, d=8, c=4)
    whole = portable(q, k, v, causal=True)
    for begin, end in ((0, 1), (0, 63), (63, 65), (65, 300), (300, 513), (511, 512), (512, 513), (513, 600)):
        part = portable(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], causal=True)
        assert equal(part, whole[:, :, begin:end]), (begin, end)
    for at in range(0, 600, 37):
        assert equal(
            portable(q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1]), whole[:, :, at : at + 1]
        )


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
def test_batch_heads_and_padding_change_nothing(dtype):
    q, k, v = operands(dtype, b=3, h=4, g=2, m=70, n=70)
    whole = portable(q, k, v, causal=True)
    for b in range(3):
        assert equal(portable(q[b : b + 1], k[b : b + 1], v[b : b + 1], causal=True), whole[b : b + 1])
    assert equal(portable(q[:, 2:], k[:, 1:], v[:, 1:], causal=True), whole[:, 2:])
    each = [t.repeat_interleave(2, 1) for t in (k, v)]
    assert equal(portable(q, *each, causal=True), whole)
    lengths = torch.tensor([70, 33, 64])
    padded = [t.clone() for t in (q, k, v)]
    for b, length in enumerate(lengths.tolist()):
        for t in padded[1:]:
            t[b, :, length:] = torch.nan  # what lies behind a sequence's end is not looked at
    got = portable(*padded, causal=True, key_lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        alone = portable(
            q[b : b + 1, :, :length], k[b : b + 1, :, :length], v[b : b + 1, :, :length], causal=True
        )
        assert equal(got[b : b + 1, :, :length], alone)


def test_a_mask_that_says_the_same_has_the_same_bits():
    q, k, v = operands(BF16, m=40, n=90)
    seen = torch.arange(90) <= torch.arange(40).unsqueeze(1) + 50
    assert equal(portable(q, k, v, mask=seen), portable(q, k, v, causal=True))
    assert equal(portable(q, k, v, mask=torch.arange(90) < 77), portable(q, k[:, :, :77], v[:, :, :77]))
    # keys further on that no query sees, whole tiles and parts of them
    more = [torch.cat([t, torch.randn_like(t).repeat(1, 1, 12, 1)], 2) for t in (k, v)]
    assert equal(portable(q, *more, key_lengths=torch.tensor(90)), portable(q, k, v))
    assert equal(portable(q, *more, mask=torch.arange(more[0].shape[2]) < 90), portable(q, k, v))


def test_a_leading_tile_without_visible_keys_leaves_no_trace():
    """The maximum begins at minus infinity: what is added there is zero, and it is dropped exactly."""
    q, k, v = operands(F32, m=3, n=700)
    late = torch.arange(700) >= 640
    got = portable(q, k, v, mask=late)
    assert torch.allclose(got.double(), in_float64(q, k, v, mask=late), atol=1e-5)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_what_is_no_number_stays_so(dtype):
    q, k, v = operands(dtype, b=1, h=1, g=1, m=4, n=70)
    q[0, 0, 1, 3] = torch.nan
    q[0, 0, 2, 3] = torch.inf
    got = portable(q, k, v)
    assert got[0, 0, 1:3].isnan().all() and got[0, 0, [0, 3]].isfinite().all()
    v[0, 0, 66, 2] = torch.inf
    assert portable(q, k, v)[0, 0, 0, 2] == torch.inf


def test_large_scores_do_not_overflow():
    for dtype in (HALF, BF16, F32):
        q, k, v = operands(dtype, b=1, h=1, g=1, m=3, n=600)
        got = portable(q * 200, k * 200, v)
        assert got.isfinite().all()
        nearest = (k[0, 0].double() @ q[0, 0].double().T).argmax(0)
        assert torch.allclose(got[0, 0], v[0, 0, nearest], atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_do_not_change_bits(dtype):
    q, k, v = operands(dtype)
    want = portable(q, k, v, causal=True)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert equal(portable(*turned, causal=True), want)
    assert equal(portable(*(t.mT.contiguous().mT for t in (q, k, v)), causal=True), want)
    assert equal(portable(*(t.unsqueeze(1) for t in (q, k, v)), causal=True), want.unsqueeze(1))


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=["sequences", "queries", "keys"])
@pytest.mark.parametrize("provider", ["native", "portable"])
def test_nothing_to_attend_to(provider, sizes):
    b, m, n = sizes
    q, k, v = operands(F32, b=b, m=m, n=n)
    got = ops.attention.impls[provider].impl_fn(q, k, v)
    assert got.shape == (b, 4, m, 8) and not got.any()


# -- what it is made of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("spread", [0, 3, 40])
def test_chain16_add_is_chain16_continued(dtype, spread):
    """A sum of 48 products in one go, and its last 16 on top of the first 32; the batch changes nothing."""
    x, w = torch.randn(3, 5, 48), torch.randn(3, 7, 48)
    if spread:
        reach = min(spread, 10) if dtype == HALF else spread
        x, w = (t * torch.exp2(torch.randint(-reach, reach, t.shape).float()) for t in (x, w))
    x, w = x.to(dtype), w.to(dtype)
    want = torch.stack([chain16(a, b) for a, b in zip(x, w, strict=True)])
    zeros = torch.zeros(3, 5, 7)
    assert equal(chain16_add(zeros, x, w), want)
    first = chain16_add(zeros, x[..., :32], w[..., :32])
    assert equal(chain16_add(first, x[..., 32:], w[..., 32:]), want)
    assert equal(chain16_add(want, torch.zeros_like(x), w), want)


def test_chain16_add_of_what_is_not_finite():
    x, w = torch.randn(2, 4, 32).bfloat16(), torch.randn(2, 4, 32).bfloat16()
    x[0, 0, 3], x[0, 1, 20], w[1, 2, 5] = torch.inf, torch.nan, -torch.inf
    want = torch.stack([chain16(a, b) for a, b in zip(x, w, strict=True)])
    assert want.isnan().any() and want.isinf().any()
    assert equal(chain16_add(torch.zeros(2, 4, 4), x, w), want)


def test_blocks_do_not_change_bits(monkeypatch):
    x, w = torch.randn(3, 9, 48).to(BF16), torch.randn(3, 11, 48).to(BF16)
    acc = torch.randn(3, 9, 11)
    want = chain16_add(acc, x, w)
    monkeypatch.setitem(chain16_add.__globals__["BLOCK"], "cpu", 20)
    assert equal(chain16_add(acc, x, w), want)


def test_fma_add_is_fma_chain():
    x, w = torch.randn(2, 5, 60), torch.randn(2, 7, 60)
    want = torch.stack([fma_chain(a, b) for a, b in zip(x, w, strict=True)])
    assert equal(fma_add(torch.zeros(2, 5, 7), x, w), want)


def test_fma_rounds_once():
    """Against exact arithmetic, with sums that lie midway between two float32."""
    a = 1 + torch.randint(-4, 5, (2000,)) * 2.0**-23
    b = 1 + torch.randint(-4, 5, (2000,)) * 2.0**-23
    c = torch.randint(-3, 4, (2000,)) * 2.0**-24 + torch.randint(0, 2, (2000,)) * 2.0**-47
    got = fma(a, b, c)
    for i in range(2000):
        exact = Fraction(a[i].item()) * Fraction(b[i].item()) + Fraction(c[i].item())
        assert Fraction(got[i].item()) == _nearest(exact)


def _nearest(value: Fraction) -> Fraction:
    exponent = math.frexp(float(value))[1] - 1
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit


def test_exp2_in_float64():
    x = -torch.rand(100_000, dtype=F64).mul(1000)
    exact = torch.exp2(x)
    assert ((powers.exp2(x, 13) - exact).abs() / exact).max() < 2.0**-50
    special = torch.tensor([0.0, -0.0, -1.0, -1000.0, -2000.0, -torch.inf], dtype=F64)
    assert equal(powers.exp2(special, 13), torch.tensor([1.0, 1.0, 0.5, 2.0**-1000, 0.0, 0.0], dtype=F64))


def test_the_tree():
    p = torch.rand(2, 3, 64)
    by_hand = p
    for bit in tiles64.SUM_BITS:  # the partners that differ in one bit are added
        by_hand = by_hand + by_hand[..., torch.arange(64) ^ (1 << bit)]
    assert equal(tiles64._tree(p), by_hand[..., :1])
    assert equal(tiles64._tree(p[..., :37]), tiles64._tree(torch.nn.functional.pad(p[..., :37], (0, 27))))


# -- arguments ----------------------------------------------------------------------------------------------------


def wrong() -> dict[str, tuple[dict[str, object], str]]:
    q, k, v = operands(F32)
    return {
        "dtype": (
            {"query": q.int(), "key": k.int(), "value": v.int()},
            "float16, bfloat16, float32 and float64",
        ),
        "two dtypes": ({"key": k.double()}, "'key' is torch.float64, and 'query' is torch.float32"),
        "rank": ({"value": v[0]}, "'value' has 3 dimensions"),
        "head size": ({"key": k[..., :8]}, "'key' have 8 elements, those of 'query' 16"),
        "batch": ({"key": k[:1], "value": v[:1]}, r"'key' \[1, 2, 90, 16\]"),
        "values": ({"value": v[:, :, :9]}, r"'value' \[2, 2, 9, 8\]"),
        "heads": ({"query": q[:, :3]}, "'query' has 3 heads, and 'key' has 2"),
        "scale": ({"scale": math.inf}, "scale is inf"),
        "float mask": ({"mask": torch.zeros(9, 90)}, r"'mask' is torch\.float32"),
        "mask": ({"mask": torch.ones(9, 89, dtype=torch.bool)}, r"'mask' has the shape \[9, 89\]"),
        "lengths": ({"key_lengths": torch.tensor([1, 2, 3])}, r"'key_lengths' has the shape \[3\]"),
        "float lengths": ({"key_lengths": torch.tensor([1.0])}, r"'key_lengths' is torch\.float32"),
    }


@pytest.mark.parametrize("case", wrong().values(), ids=wrong())
@pytest.mark.parametrize("invariant", [True, False])
def test_bad_arguments(case, invariant):
    changes, message = case
    q, k, v = operands(F32)
    args = {"query": q, "key": k, "value": v} | changes
    with ir_core.scope(batch_invariant=invariant):
        ops.attention(q, k, v)
        with pytest.raises(ArgumentError, match=message):
            ops.attention(**args)
    with pytest.raises(ArgumentError, match=message):
        torch.ops.ir_core.attention(*(args[name].to("meta") for name in ("query", "key", "value")),
            args.get("scale"), False, args.get("mask"), args.get("key_lengths"))  # fmt: skip


def test_batch_invariant_mode_takes_the_reference():
    q, k, v = operands(BF16)
    with ir_core.scope(batch_invariant=True):
        assert ops.attention.dispatch(q, k, v).provider == "portable"
        assert equal(ops.attention(q, k, v, causal=True), portable(q, k, v, causal=True))


def test_fake_tensors_have_the_shape_of_real_ones():
    q, k, v = operands(F32)
    for args in (
        (q, k, v),
        (q.transpose(1, 2).contiguous().transpose(1, 2), k, v),
        (q[None], k[None], v[None]),
    ):
        real = ops.attention(*args)
        fake = torch.ops.ir_core.attention(*(t.to("meta") for t in args), None, True, None, None)
        assert fake.shape == real.shape and fake.stride() == real.stride() and fake.dtype == real.dtype


# -- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"scale": -0.4, "key_lengths": torch.tensor([0, 3])}]
)
def test_gradcheck_and_second_derivatives(options):
    q, k, v = (t.requires_grad_() for t in operands(F64, h=2, g=1, m=2, n=4, d=3, c=2))
    with ir_core.scope(batch_invariant=True):
        assert torch.autograd.gradcheck(lambda *a: ops.attention(*a, **options), (q, k, v))
        assert torch.autograd.gradgradcheck(lambda *a: ops.attention(*a, **options), (q, k, v))


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
def test_gradients_are_those_of_the_definition(dtype):
    args = operands(dtype, m=20, n=20)
    for t in args:
        t.requires_grad_()
    mask = torch.rand(2, 4, 20, 20) > 0.2
    g = torch.randn(2, 4, 20, 8).to(dtype)
    ops.attention(*args, None, True, mask).backward(g)
    exact = [t.detach().double().requires_grad_() for t in args]
    ops.attention.impls["native"].impl_fn(*exact, None, True, mask).backward(g.double())
    for got, want in zip(args, exact, strict=True):
        assert got.grad.dtype is dtype
        unit = torch.finfo(dtype).eps
        assert (got.grad.double() - want.grad).abs().max() < 16 * unit * want.grad.abs().max()


def test_the_gradient_of_a_sequence_depends_on_nothing_else():
    """Not on the batch, and not on keys behind its end."""
    args, g = operands(BF16, b=3, m=70, n=70), torch.randn(3, 4, 70, 8).bfloat16()

    def of(rows: slice, length: int, **options: object) -> list[Tensor]:
        some = [t[rows, :, :length].clone().requires_grad_() for t in args]
        ops.attention(*some, causal=True, **options).backward(g[rows, :, :length])
        return [t.grad for t in some]

    with ir_core.scope(batch_invariant=True):
        for together, alone in zip(of(slice(0, 3), 70), of(slice(1, 2), 70), strict=True):
            assert equal(together[1:2], alone)
        g[1, :, 40:] = 0.0
        padded = of(slice(0, 3), 70, key_lengths=torch.tensor([70, 40, 3]))
        for together, alone in zip(padded, of(slice(1, 2), 40), strict=True):
            assert equal(together[1:2, :, :40], alone)
            assert not together[1, :, 40:].any()


def test_transforms():
    q, k, v = (torch.stack([t, 2 * t, t + 1]) for t in operands(F64, m=3, n=5))
    lengths = torch.tensor([2, 5])
    with ir_core.scope(batch_invariant=True):
        each = torch.stack([ops.attention(q[i], k[i], v[i], key_lengths=lengths) for i in range(3)])
        mapped = torch.func.vmap(lambda *a: ops.attention(*a, key_lengths=lengths))(q, k, v)
        assert equal(mapped, each)
        shared = torch.func.vmap(lambda q: ops.attention(q, k[0], v[0]))(q)
        assert equal(shared, torch.stack([ops.attention(q[i], k[0], v[0]) for i in range(3)]))
        grads = torch.func.grad(lambda *a: ops.attention(*a, causal=True).square().sum(), (0, 1, 2))(
            q[0], k[0], v[0]
        )
    native = ops.attention.impls["native"].impl_fn
    wanted = torch.func.grad(lambda *a: native(*a, None, True).square().sum(), (0, 1, 2))(q[0], k[0], v[0])
    for got, want in zip(grads, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_compiled_is_eager():
    q, k, v = operands(BF16)
    with ir_core.scope(batch_invariant=True):
        want = ops.attention(q, k, v, causal=True)

        def twice(*args: Tensor) -> Tensor:
            return torch.nn.functional.relu(ops.attention(*args, causal=True))

        got = ir_core.compile(twice, fullgraph=True)(q, k, v)
    assert equal(got, want.relu())


def test_generated_inputs_are_a_call():
    args = ops.attention.generate_inputs(num_tokens=3, hidden_size=16, dtype=BF16)
    assert portable(*args).shape == (3, 2, 2, 16)
