# SPDX-License-Identifier: Apache-2.0
"""triton_batch_invariant has portable's bits: every dtype, weight, length, layout and batch."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_kernels_triton import gelu_and_mul_sparse as gelu
from ir_kernels_triton import rms_norm as norms
from ir_kernels_triton import rms_pair
from ir_kernels_triton.proof import golden

# numpy speaks of the NaN, infinities and overflows that the interpreter meets; they are wanted here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EPS = 1e-6
GOLDEN = Path(__file__).parent / "golden" / "digests.json"


def portable(op: str) -> Callable[..., Any]:
    return ir_core.IrOp.registry[op].impls["portable"].impl_fn


def bits(x: Tensor) -> Tensor:
    """The bits, with one NaN for all: their payloads are the processor's."""
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.contiguous().view(torch.int16 if x.itemsize == 2 else torch.int32)


def same(got: Any, want: Any) -> None:
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(bits(a), bits(b)), (
            f"{int((bits(a) != bits(b)).sum())} of {a.numel()} elements differ"
        )


def random(*shape: int, dtype: torch.dtype, device: str, seed: int = 0, scale: float = 1.0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.to(dtype).to(device)


def check(x: Tensor, residual: Tensor, weight: Tensor | None, variance_size: int | None = None) -> None:
    """All three forms of both ops against portable."""
    args = (weight, 1e-6, variance_size)
    want = portable("fused_add_rms_norm")(x, residual, *args)
    same(norms.rms_norm_batch_invariant(x, *args), portable("rms_norm")(x, *args))
    same(norms.fused_add_rms_norm_batch_invariant_functional(x, residual, *args), want)
    a, b = writable(x), writable(residual)
    y, total = norms.fused_add_rms_norm_batch_invariant(a, b, *args)
    assert y is a and total is b
    same((y, total), want)


def writable(x: Tensor) -> Tensor:
    """A copy with the same strides and the same alignment."""
    extent = (
        x.storage_offset()
        + 1
        + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True) if size)
    )
    copy = torch.zeros(max(extent, 1), dtype=x.dtype, device=x.device).as_strided(
        x.shape, x.stride(), x.storage_offset()
    )
    return copy.copy_(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 64, 128, 500, 1000, 1024, 2880, 4096])
def test_lengths_and_weights(device: str, dtype: torch.dtype, n: int) -> None:
    x, r = (random(3, n, dtype=dtype, device=device, seed=s, scale=3) for s in (1, 2))
    for w_dtype in (*DTYPES, None):
        w = None if w_dtype is None else random(n, dtype=w_dtype, device=device, seed=3)
        check(x, r, w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [16384, 20000, 32768, 65536, 70001])
def test_long_rows(device: str, dtype: torch.dtype, n: int) -> None:
    x, r = (random(2, n, dtype=dtype, device=device, seed=s) for s in (1, 2))
    w = random(n, dtype=dtype, device=device, seed=3)
    same(norms.rms_norm_batch_invariant(x, w, 1e-6), portable("rms_norm")(x, w, 1e-6))
    got = norms.fused_add_rms_norm_batch_invariant(x.clone(), r.clone(), w, 1e-6)
    same(got, portable("fused_add_rms_norm")(x, r, w, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "size"),
    [(100, 33), (4096, 2048), (1024, 1), (1024, 4000), (20000, 17000), (160, 159), (4096, 2047)],
)
def test_variance_size(device: str, dtype: torch.dtype, n: int, size: int) -> None:
    x, r = (random(2, n, dtype=dtype, device=device, seed=s) for s in (1, 2))
    check(x, r, random(n, dtype=dtype, device=device, seed=3), size)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda b: b[..., :128].contiguous(),
    "row stride": lambda b: b[0][:, 8:136],
    "misaligned start": lambda b: b[..., 1:129],
    "misaligned stride": lambda b: b.flatten()[: 4 * 129].view(4, 129)[:, :128],
    "two strides": lambda b: b[:, 1:3, 16:144],
    "two strides, misaligned": lambda b: b[:, 1:3, 3:131],
    "qkv": lambda b: b.flatten()[: 3 * 640].view(3, 640)[:, 128:384].unflatten(-1, (2, 128)),
    "three strides": lambda b: b.flatten()[: 2 * 3 * 4 * 136].view(2, 3, 4, 136)[:, :2, ::2, :128],
    "transposed": lambda b: b[:, 0, :128].t().contiguous().t(),
    "every other": lambda b: b[..., :256:2],
    "expanded": lambda b: b[:1, :1, :128].expand(4, 3, 128),
    "one row": lambda b: b[0, 0, :128],
    "one of one": lambda b: b[:1, :1, :128],
    "no rows": lambda b: b[:0, :, :128],
    "no inner rows": lambda b: b[:, :0, :128],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: str, dtype: torch.dtype, layout: str) -> None:
    x, r = (LAYOUTS[layout](random(4, 5, 264, dtype=dtype, device=device, seed=s)) for s in (1, 2))
    weights = random(130, dtype=dtype, device=device, seed=3)
    for w in (weights[:128], weights[1:129], random(256, dtype=dtype, device=device)[::2]):
        args = (w, 1e-6)
        want = portable("fused_add_rms_norm")(x, r, *args)
        same(norms.rms_norm_batch_invariant(x, *args), portable("rms_norm")(x, *args))
        same(norms.fused_add_rms_norm_batch_invariant_functional(x, r, *args), want)
        same(norms.fused_add_rms_norm_batch_invariant_functional(x, r.contiguous(), *args), want)
        if layout != "expanded":
            same(norms.fused_add_rms_norm_batch_invariant(writable(x), writable(r), *args), want)
    same(
        gelu.gelu_and_mul_sparse_batch_invariant(x, 0.5, "tanh"),
        portable("gelu_and_mul_sparse")(x, 0.5, "tanh"),
    )


def test_overlapping_rows_are_not_written(device: str) -> None:
    x = torch.randn(1, 128, device=device).expand(4, 128)
    with pytest.raises(RuntimeError, match="single memory location"):
        norms.fused_add_rms_norm_batch_invariant(x, torch.zeros(4, 128, device=device), None, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [100, 128, 4096])
def test_row_does_not_see_the_batch(device: str, dtype: torch.dtype, n: int) -> None:
    """Rows alone, in batches of 2, 3, 64, 300, beside NaN, infinity and huge numbers, in other places and layouts."""
    sizes = (2, 3, 64, 300) if n == 128 or device == "cuda" else (2, 5)
    rows = random(3, n, dtype=dtype, device=device, seed=4)
    w = random(n, dtype=dtype, device=device, seed=5)
    alone = [norms.rms_norm_batch_invariant(row[None], w, 1e-6)[0] for row in rows]
    added = [
        norms.fused_add_rms_norm_batch_invariant_functional(row[None], row[None], w, 1e-6) for row in rows
    ]
    for m, padding in itertools.product(sizes, (0, 3)):
        batch = random(m, n + padding, dtype=dtype, device=device, seed=m)[:, :n]
        batch[::3], batch[1::3] = torch.nan, torch.inf
        batch[m // 2] = torch.finfo(dtype).max
        for place, row, one, (y, total) in zip((0, m // 2, m - 1), rows, alone, added, strict=True):
            batch[place] = row
            same(norms.rms_norm_batch_invariant(batch, w, 1e-6)[place], one)
            got = norms.fused_add_rms_norm_batch_invariant_functional(batch, batch, w, 1e-6)
            same((got[0][place], got[1][place]), (y[0], total[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(device: str, dtype: torch.dtype) -> None:
    x = random(9, 300, dtype=dtype, device=device, seed=6)
    big, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf, big, tiny, -0.0)):
        x[row, 7] = value
    x[6], x[7], x[8] = -0.0, tiny, big
    check(x, torch.flip(x, (0,)), random(300, dtype=dtype, device=device, seed=7))
    same(
        gelu.gelu_and_mul_sparse_batch_invariant(x, 0.1, "none"),
        portable("gelu_and_mul_sparse")(x, 0.1, "none"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("d", [1, 100, 128, 2048, 20000])
def test_gelu(device: str, dtype: torch.dtype, approximate: str, d: int) -> None:
    x = random(3, 2 * d, dtype=dtype, device=device, seed=8, scale=2)
    for multiplier in (1.6448536269514722, -0.5):
        got = gelu.gelu_and_mul_sparse_batch_invariant(x, multiplier, approximate)
        same(got, portable("gelu_and_mul_sparse")(x, multiplier, approximate))


def test_golden_digests_of_portable() -> None:
    """The committed bits, by element-wise additions in torch."""
    assert golden.digests(golden.portable) == json.loads(GOLDEN.read_text())


def test_golden_digests_of_the_kernels(device: str) -> None:
    """The same committed bits, by the kernels."""
    module = {"gelu_and_mul_sparse": gelu}
    got = golden.digests(lambda op: getattr(module.get(op, norms), f"{op}_batch_invariant"), device)
    assert got == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", ["triton", "triton_batch_invariant"])
def test_numbers_against_float64(device: str, dtype: torch.dtype, provider: str) -> None:
    """Both providers, within the op's tolerance (its derivation is in ``ir_core.ops.layernorm``)."""
    suffix = "_batch_invariant" if provider == "triton_batch_invariant" else ""
    for n in (1, 100, 128, 4096, 20000):
        x, r = (random(4, n, dtype=dtype, device=device, seed=s) for s in (1, 2))
        w = random(n, dtype=dtype, device=device, seed=3)
        y, total = getattr(norms, f"fused_add_rms_norm{suffix}_functional")(x, r, w, 1e-6)
        s = x.double() + r.double()
        exact = s / (s.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double()
        tolerance = ir_core.ops.fused_add_rms_norm.get_tolerance(dtype)
        torch.testing.assert_close(y.double(), exact, **tolerance)
        torch.testing.assert_close(total.double(), s, **tolerance)
        again = getattr(norms, f"rms_norm{suffix}")(x, w, 1e-6, max(n // 2, 1))
        head = x.double()[:, : max(n // 2, 1)]
        exact = x.double() / (head.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double()
        torch.testing.assert_close(again.double(), exact, **tolerance)


def test_plain_gelu_agrees_with_native(device: str) -> None:
    op = ir_core.ops.gelu_and_mul_sparse
    for dtype, approximate in itertools.product(DTYPES, ("none", "tanh")):
        x = random(4, 4096, dtype=dtype, device=device, seed=9)
        want = op.impls["native"].impl_fn(x, 1.6, approximate)
        torch.testing.assert_close(
            gelu.gelu_and_mul_sparse(x, 1.6, approximate), want, **op.get_tolerance(dtype)
        )


# -- two calls in one launch --------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The programs of each launch that takes two calls."""
    seen: list[int] = []
    original = rms_pair._prepared

    def prepared(*kind: Any) -> Any:
        kernel, launch = original(*kind)

        def counted(programs: int, *values: Any) -> None:
            seen.append(programs)
            launch(programs, *values)

        return kernel, counted

    monkeypatch.setattr(rms_pair, "_prepared", prepared)
    return seen


def both(first: tuple[object, ...], second: tuple[object, ...]) -> None:
    """One launch or two: always portable's bits."""
    want = portable("rms_norm")(*first), portable("rms_norm")(*second)
    same(rms_pair.rms_norm_batch_invariant_pair(first, second), want)


def qkv(tokens: int, q: int, k: int, n: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """The q and k views of one projection."""
    whole = random(tokens, (q + 2 * k) * n, dtype=dtype, device=device, seed=tokens)
    return whole[:, : q * n].unflatten(-1, (q, n)), whole[:, q * n : (q + k) * n].unflatten(-1, (k, n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 80, 128, 1024])
def test_q_and_k_of_a_layer(device: str, dtype: torch.dtype, n: int, launches: list[int]) -> None:
    w, w2 = (random(n, dtype=dtype, device=device, seed=s) for s in (1, 2))
    for tokens, q, k in ((1, 16, 8), (3, 4, 1), (33, 2, 2)):
        x, x2 = qkv(tokens, q, k, n, dtype, device)
        both((x, w, EPS, None), (x2, w2, EPS, None))
        both((x2, w2, EPS, None), (x, w, EPS, None))
    assert len(launches) == 6


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_another_dtype(
    device: str, dtype: torch.dtype, w_dtype: torch.dtype, launches: list[int]
) -> None:
    x, x2 = qkv(5, 3, 2, 128, dtype, device)
    w, w2 = (random(128, dtype=w_dtype, device=device, seed=s) for s in (1, 2))
    both((x, w, EPS, None), (x2, w2, EPS, None))
    assert len(launches) == 1


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", ["contiguous", "qkv", "misaligned start", "no rows"])
def test_layouts_of_two_calls(device: str, first: str, second: str) -> None:
    x, x2 = (
        LAYOUTS[layout](random(4, 5, 264, dtype=torch.bfloat16, device=device, seed=s))
        for s, layout in ((1, first), (2, second))
    )
    w, w2 = (random(128, dtype=torch.bfloat16, device=device, seed=s) for s in (3, 4))
    both((x, w, EPS, None), (x2, w2, EPS, None))
    both((x, w, EPS, None), (x2, random(129, dtype=torch.bfloat16, device=device)[1:], EPS, None))


REFUSED: dict[str, Callable[[tuple[object, ...]], tuple[object, ...]]] = {
    "no weight": lambda call: (call[0], None, *call[2:]),
    "another epsilon": lambda call: (*call[:2], 1e-3, None),
    "another dtype": lambda call: (call[0].float(), *call[1:]),  # type: ignore[attr-defined]
    "another length": lambda call: (call[0][..., :64], call[1][:64], *call[2:]),  # type: ignore[index]
    "variance_size": lambda call: (*call[:3], 64),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_calls_are_two_launches(device: str, why: str, launches: list[int]) -> None:
    x, x2 = qkv(3, 4, 2, 128, torch.bfloat16, device)
    w, w2 = (random(128, dtype=torch.bfloat16, device=device, seed=s) for s in (1, 2))
    both((x, w, EPS, None), REFUSED[why]((x2, w2, EPS, None)))
    long, weight = (random(*shape, dtype=torch.bfloat16, device=device) for shape in ((2, 2048), (2048,)))
    both((long, weight, EPS, None), (long, weight, EPS, None))
    assert not launches


def test_the_bits_of_a_row_do_not_depend_on_the_other_call(device: str) -> None:
    w, w2 = (random(128, dtype=torch.bfloat16, device=device, seed=s) for s in (1, 2))
    row = random(1, 2, 128, dtype=torch.bfloat16, device=device, seed=3)
    alone = portable("rms_norm")(row, w, EPS)
    for other in (1, 2, 7, 40):
        x2 = torch.full((other, 3, 128), torch.nan, dtype=torch.bfloat16, device=device)
        first, _ = rms_pair.rms_norm_batch_invariant_pair((row, w, EPS, None), (x2, w2, EPS, None))
        _, second = rms_pair.rms_norm_batch_invariant_pair((x2, w2, EPS, None), (row, w, EPS, None))
        same((first, second), (alone, alone))


@pytest.mark.gpu
def test_two_calls_in_a_cuda_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x, x2 = qkv(8, 16, 8, 128, torch.bfloat16, "cuda")
    w, w2 = (random(128, dtype=torch.bfloat16, device="cuda", seed=s) for s in (1, 2))
    first, second = (x, w, EPS, None), (x2, w2, EPS, None)
    want = rms_pair.rms_norm_batch_invariant_pair(first, second)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = rms_pair.rms_norm_batch_invariant_pair(first, second)
        again = rms_pair.rms_norm_batch_invariant_pair((got[0], w, EPS, None), (got[1], w2, EPS, None))
    for result in (*got, *again):
        result.fill_(torch.nan)
    graph.replay()
    same(got, want)
    same(again, rms_pair.rms_norm_batch_invariant_pair((want[0], w, EPS, None), (want[1], w2, EPS, None)))


def test_numbers_of_two_calls(device: str) -> None:
    """The provider without a fixed order."""
    x, x2 = qkv(5, 4, 2, 128, torch.float16, device)
    w, w2 = (random(128, dtype=torch.float16, device=device, seed=s) for s in (1, 2))
    results = rms_pair.rms_norm_pair((x, w, EPS, None), (x2, w2, EPS, None))
    for y, rows, weight in zip(results, (x, x2), (w, w2), strict=True):
        s = rows.double()
        exact = s / (s.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
        torch.testing.assert_close(y.double(), exact, **ir_core.ops.rms_norm.get_tolerance(torch.float16))
