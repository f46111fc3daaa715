# SPDX-License-Identifier: Apache-2.0
"""attention has the bits of its order's reference, in the interpreter and on a GPU, however it is launched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core.errors import ArgumentError
from ir_core.ops.scaled_dot_product import attention as op
from ir_kernels_triton import attention_config
from ir_kernels_triton.attention_config import Choice, Shape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # of NumPy, for what is no number
]

HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


def portable(*args: Tensor, **options: Any) -> Tensor:
    """The reference, on the CPU."""
    moved = {name: t.cpu() if isinstance(t, Tensor) else t for name, t in options.items()}
    result = op.impls["portable"].impl_fn(*(t.cpu() for t in args), **moved)
    assert isinstance(result, Tensor)
    return result


def run(*args: Tensor, choice: Choice | None = None, **options: Any) -> Tensor:
    from ir_kernels_triton.attention import attend

    return attend(*args, **options, choice=choice)


def assert_bits(got: Tensor, want: Tensor, what: object = "") -> None:
    """Equal bits; what is no number has no bits of its own."""
    got, want = got.cpu(), want.cpu()
    assert got.shape == want.shape and got.dtype == want.dtype
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    got, want = got.contiguous(), want.contiguous()
    same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    if not same.all():
        first = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(
            f"{what} {int((~same).sum())} of {same.numel()} outputs differ, first at {list(first)}: "
            f"{got[first].item()!r}, wanted {want[first].item()!r}; rows {(~same).any(-1).nonzero()[:8].tolist()}"
        )


def operands(device, dtype, b=1, h=2, g=1, m=2, n=70, d=16, c=None, scale=1.0) -> list[Tensor]:
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, d if c is None else c)
    return [(torch.randn(shape) * scale).to(dtype).to(device) for shape in shapes]


OPTIONS: dict[str, dict[str, Any]] = {
    "all keys": {},
    "causal": {"causal": True, "scale": -0.3},
    "no scale": {"scale": 0.0},
    "lengths": {"key_lengths": torch.tensor([65])},
    "short lengths": {"key_lengths": torch.tensor([0], dtype=torch.int32), "causal": True},
    "mask": {"mask": torch.arange(70).remainder(3) > 0},
}


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    return {name: t.to(device) if isinstance(t, Tensor) else t for name, t in options.items()}


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(device, dtype, options):
    args = operands(device, dtype)
    assert_bits(run(*args, **on(device, options)), portable(*args, **options))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("parts", [False, True], ids=["one pass", "parts"])
def test_parts_of_512_keys(device, dtype, parts):
    """Closed and merged one after the other, or side by side; rows that end in different parts."""
    args = operands(device, dtype, h=1, m=3, n=514, d=8)
    assert_bits(run(*args, causal=True, choice=Choice(16, 4, 1, parts)), portable(*args, causal=True))


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize(("h", "g", "m", "d", "c"), [(6, 2, 7, 24, 20), (4, 4, 1, 80, 96), (5, 1, 4, 1, 3)])
def test_heads_and_sizes(device, dtype, h, g, m, d, c):
    args = operands(device, dtype, b=2, h=h, g=g, m=m, n=9, d=d, c=c)
    mask = torch.rand(2, h, m, 9) > 0.4
    lengths = torch.tensor([4, 9])
    got = run(*args, mask=mask.to(device), key_lengths=lengths.to(device))
    assert_bits(got, portable(*args, mask=mask, key_lengths=lengths))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_layouts_do_not_change_bits(device, dtype):
    q, k, v = operands(device, dtype, b=2, m=3, n=20)
    want = portable(q, k, v)
    spread = [torch.stack([t, t], -1)[..., 0] for t in (q, k, v)]
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    odd = [torch.nn.functional.pad(t, (1, 0))[..., 1:] for t in (q, k, v)]
    for args in (spread, turned, odd, [t.unsqueeze(1) for t in (q, k, v)]):
        assert_bits(run(*args), want.reshape((*args[0].shape[:-1], 16)))
    assert_bits(run(q, k[:1].expand(2, -1, -1, -1), v), portable(q, k[:1].expand(2, -1, -1, -1), v))


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
def test_special_values(device, dtype):
    """Scores that are infinite or no numbers, values that are infinite, subnormal ones, and memory behind the end."""
    q, k, v = operands(device, dtype, h=1, m=7, n=80)
    q[0, 0, 1, 3], q[0, 0, 2, 3], q[0, 0, 3, 3] = torch.nan, torch.inf, -torch.inf
    q[0, 0, 4] *= 200
    q[0, 0, 5] = 0.0
    v[0, 0, 3, 2], v[0, 0, 5, 3] = torch.inf, -torch.inf
    v[0, 0, :, 4] *= torch.finfo(dtype).tiny
    k[0, 0, 77:], v[0, 0, 77:] = torch.nan, torch.nan
    lengths = torch.tensor([77])
    want = portable(q, k, v, key_lengths=lengths)
    assert want.isnan().any() and want.isinf().any() and want.isfinite().any()
    assert_bits(run(q, k, v, key_lengths=lengths.to(device)), want)


@pytest.mark.parametrize(("b", "m", "n"), [(0, 1, 3), (1, 0, 3), (1, 2, 0)])
def test_nothing_to_attend_to(device, b, m, n):
    args = operands(device, BF16, b=b, m=m, n=n)
    assert_bits(run(*args), portable(*args))


def test_heads_of_no_elements_average_the_values(device):
    q, k, v = operands(device, BF16, d=0, c=4, n=5)
    assert_bits(run(q, k, v, scale=1.0), portable(q, k, v, scale=1.0))


def test_bad_arguments(device):
    q, k, v = operands(device, BF16)
    with pytest.raises(ArgumentError, match="'key' is"):
        run(q, k.float(), v)
    with pytest.raises(ArgumentError, match="heads"):
        run(q, torch.cat([k, k, k], 1), torch.cat([v, v, v], 1))
    with pytest.raises(TypeError, match="float64"):
        run(q.double(), k.double(), v.double())


def test_selected_in_batch_invariant_mode(device):
    args = operands(device, BF16)
    with ir_core.scope(batch_invariant=True):
        for dtype, provider in ((BF16, "triton_batch_invariant"), (F32, "triton_fp32")):
            assert op.dispatch(*(t.to(dtype) for t in args)).provider == provider
        assert op.dispatch(*operands(device, BF16, d=264)).provider == "portable"
        assert_bits(op(*args, causal=True), portable(*args, causal=True))


def test_every_choice_fits_the_processor():
    for dtype in ("bf16", "fp16", "fp32"):
        for d in (16, 64, 80, 96, 128, 192, 256):
            shape = Shape(dtype, d, d, 4, True, False, None, True)
            for rows in (1, 4, 16, 17, 64, 65, 8192):
                for keys in (1, 512, 513, 8192):
                    for matrices in (1, 8, 64, 512):
                        choice = attention_config.choose(shape, rows, keys, matrices)
                        assert attention_config.shared(shape, choice) <= attention_config.SHARED_BYTES
                        assert choice.BM in (16, 64, 128) and not (choice.parts and keys <= 512)


def test_the_quickest_measured_launch_is_chosen():
    """Of the tuning run on an H100: 32 or 16 heads of 128 in 8 groups, bf16."""
    shape = Shape("bf16", 128, 128, 4, True, False, None, True)
    for rows, keys, matrices, want in (
        (2048 * 4, 2048, 8, Choice(64, 4, 2, False)),
        (512 * 4, 4096, 8, Choice(64, 4, 2, False)),
        (4, 512, 64, Choice(16, 4, 3, False)),
        (4, 512, 512, Choice(16, 4, 2, False)),
        (4, 8192, 64, Choice(16, 4, 2, True)),
        (4, 8192, 512, Choice(16, 4, 2, False)),
    ):
        assert attention_config.choose(shape, rows, keys, matrices) == want


# -- compiled -----------------------------------------------------------------------------------------------------


def choices(dtype: torch.dtype, d: int) -> list[Choice]:
    """Launches that must agree: narrow and wide, few and many warps, one pass and parts."""
    if dtype == F32:
        found = [Choice(16, 4, 1, False), Choice(16, 4, 2, True)]
    else:
        found = [
            Choice(bm, warps, stages, parts)
            for bm, warps, stages in (
                (16, 1, 2),
                (16, 2, 2),
                (16, 4, 3),
                (32, 4, 2),
                (64, 4, 2),
                (64, 8, 2),
                (128, 8, 3),
            )
            for parts in (False, True)
        ]
    shape = Shape("fp32" if dtype == F32 else "bf16", d, d, 1, False, False, None, True)
    return [attention_config.fitting(shape, choice) for choice in found]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize("d", [64, 80, 96, 128, 192, 256])
def test_compiled_kernels_have_the_bits_of_the_reference(dtype, d):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    args = operands("cuda", dtype, b=1, h=2, g=1, m=5, n=600, d=d)
    want = portable(*args, causal=True)
    for choice in choices(dtype, d):
        assert_bits(run(*args, causal=True, choice=choice), want, choice)
    assert_bits(run(*args, causal=True), want, "as chosen")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_prefill_chunks_and_single_queries_agree(dtype, spread):
    """A prompt of 1100 tokens at once, in chunks, one by one, in a batch with padding, by every launch."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    n = 1100
    q, k, v = operands("cuda", dtype, b=2, h=8, g=2, m=n, n=n, d=128, scale=spread)
    whole = run(q, k, v, causal=True)
    some = slice(1090, 1093)
    assert_bits(
        whole[:1, :, some],
        portable(q[:1, :, some], k[:1, :, :1093], v[:1, :, :1093], causal=True),
        "portable",
    )
    for choice in choices(dtype, 128):
        assert_bits(run(q, k, v, causal=True, choice=choice), whole, choice)
        for begin, end in ((0, 1), (3, 70), (500, 1012), (1024, 1025), (1099, 1100)):
            part = run(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], causal=True, choice=choice)
            assert_bits(part, whole[:, :, begin:end], (choice, begin, end))
    for at in range(0, n, 61):
        single = run(q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1])
        assert_bits(single, whole[:, :, at : at + 1], ("single", at))
        cached = run(q[:, :, at : at + 1], k, v, key_lengths=torch.tensor([at + 1], device="cuda"))
        assert_bits(cached, whole[:, :, at : at + 1], ("cached", at))
    lengths = torch.tensor([1100, 777], device="cuda")
    padded = run(q, k, v, causal=True, key_lengths=lengths)
    alone = run(q[1:, :, :777], k[1:, :, :777], v[1:, :, :777], causal=True)
    assert_bits(padded[:1], whole[:1], "padded, whole")
    assert_bits(padded[1:, :, :777], alone, "padded, short")
    assert_bits(run(q[1:], k[1:], v[1:], causal=True), whole[1:], "alone")


@pytest.mark.gpu
def test_values_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    q, k, v = operands("cuda", BF16, b=2, h=8, g=2, m=700, n=1500, d=128)
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), *(t.double().repeat_interleave(4, 1) for t in (k, v))
    )
    assert (run(q, k, v).double() - exact).abs().max() < 2e-3


@pytest.mark.gpu
def test_masks_and_special_values_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    q, k, v = operands("cuda", BF16, b=2, h=4, g=2, m=40, n=900, d=64)
    mask = torch.rand(2, 4, 40, 900) > 0.5
    mask[0, 0, 3], mask[0, 1, 4, :600] = False, False
    q[0, 0, 5, 5], q[1, 2, 7, 1] = torch.nan, torch.inf
    want = portable(q, k, v, mask=mask, causal=True)
    for choice in choices(BF16, 64):
        assert_bits(run(q, k, v, mask=mask.cuda(), causal=True, choice=choice), want, choice)


@pytest.mark.gpu
def test_gradients_on_a_gpu():
    """Those of a sequence do not depend on the batch, and are those of a CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")

    def of(args: list[Tensor], g: Tensor) -> list[Tensor]:
        some = [t.clone().requires_grad_() for t in args]
        with ir_core.scope(batch_invariant=True):
            op(*some, causal=True).backward(g)
        return [t.grad for t in some if t.grad is not None]

    args = operands("cuda", BF16, b=3, h=4, g=2, m=70, n=70, d=16)
    g = torch.randn(3, 4, 70, 16, device="cuda").bfloat16()
    together = of(args, g)
    alone = of([t[1:2] for t in args], g[1:2])
    on_cpu = of([t.cpu() for t in args], g.cpu())
    for a, b, c in zip(together, alone, on_cpu, strict=True):
        assert_bits(a[1:2], b, "alone")
        assert_bits(a, c, "on a CPU")
