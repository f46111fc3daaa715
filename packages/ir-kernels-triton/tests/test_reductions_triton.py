# SPDX-License-Identifier: Apache-2.0
"""softmax, log_softmax, logsumexp, sum, mean and layer_norm in Triton have portable's bits, interpreted or on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops

pytestmark = pytest.mark.slow

HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
INF, NAN = float("inf"), float("nan")
NAMES = ("softmax", "log_softmax", "logsumexp", "sum", "mean", "layer_norm")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(6)


def call(name: str, provider: str, *args: Tensor | None) -> Tensor:
    op = getattr(ops, name)
    result = op.impls[provider].impl_fn(*op.apply_arg_defaults(args))
    assert isinstance(result, Tensor)
    return result


def assert_portable(name: str, *args: Tensor | None) -> Tensor:
    """The kernel's bits are those of ``portable`` on a CPU; what is no number has no bits of its own."""
    got = call(name, "triton_batch_invariant", *args)
    want = call(name, "portable", *(t if t is None else t.cpu() for t in args))
    same_bits(got, want, name)
    return got


def same_bits(got: Tensor, want: Tensor, name: str) -> None:
    assert got.dtype is want.dtype and got.shape == want.shape and got.is_contiguous()
    got, want = got.cpu(), want.cpu()
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    if not same.all():
        at = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(
            f"{name} of {tuple(want.shape)} {want.dtype}: {int((~same).sum())} of {same.numel()} results differ, first "
            f"at {at}: {got[at].item():.9g}, portable has {want[at].item():.9g}"
        )


def rows(device: str, dtype: torch.dtype, count: int, n: int, scale: float = 4.0) -> Tensor:
    return (torch.randn(count, n) * scale).to(dtype).to(device)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 24, 100, 128, 777, 1024, 2048, 2880, 4096, 8192])
def test_lengths(device, name, dtype, n):
    x = rows(device, dtype, 70 if n <= 128 else 3, n)
    assert_portable(name, x)
    if name == "layer_norm":
        w, b = rows(device, dtype, 2, n)
        assert_portable(name, x, w, b)
        assert_portable(name, x, w.float(), None)
        assert_portable(name, x, None, b.float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "n"), [(BF16, 16384), (F32, 16384), (BF16, 20001), (F32, 40000), (BF16, 151_936)]
)
def test_long_rows(device, name, dtype, n):
    x = rows(device, dtype, 2, n)
    got = assert_portable(name, x)
    same_bits(call(name, "triton_batch_invariant", x[1]), got[1], name)
    if name == "layer_norm":
        w, b = rows(device, dtype, 2, n)
        assert_portable(name, x, w, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [8, 136, 20000])
def test_layouts_and_batches(device, name, n):
    """Strided, misaligned, transposed, expanded and higher-dimensional rows; a row alone and among others."""
    count = 12 if n < 1000 else 4
    x = rows(device, BF16, count, n)
    want = assert_portable(name, x)

    def same(view: Tensor, expected: Tensor) -> None:
        same_bits(call(name, "triton_batch_invariant", view), expected, name)

    for i in (0, count - 1):
        same(x[i : i + 1], want[i : i + 1])
        same(x[i], want[i])
    same(x.flip(0), want.flip(0))
    same(x.T.contiguous().T, want)
    same(x.view(2, count // 2, n), want.view(2, count // 2, *want.shape[1:]))
    buffer = rows(device, BF16, count, n + 24)
    buffer[:, 8 : n + 8] = x
    same(buffer[:, 8 : n + 8], want)
    buffer[:, 3 : n + 3] = x
    same(buffer[:, 3 : n + 3], want)
    heads = torch.empty(2, n * 3 // 2 * 2, dtype=BF16, device=device).view(2, -1)[:, : 2 * n].view(2, 2, n)
    heads.copy_(x[:4].view(2, 2, n))
    same(heads, want[:4].view(2, 2, *want.shape[1:]))
    same(x[:1].expand(3, -1), want[:1].expand(3, *want.shape[1:]).contiguous())
    four = x.view(2, 1, count // 2, n).transpose(0, 2)
    same(four, want.view(2, 1, count // 2, *want.shape[1:]).transpose(0, 2).contiguous())


@pytest.mark.parametrize("n", [40, 20000])
def test_weights_where_they_lie(device, n):
    x, (w, b) = rows(device, BF16, 3, n), rows(device, BF16, 2, n)
    want = assert_portable("layer_norm", x, w, b)
    buffer = torch.zeros(2, n + 8, dtype=BF16, device=device)
    buffer[:, 3 : n + 3] = torch.stack([w, b])
    same_bits(call("layer_norm", "triton_batch_invariant", x, *buffer[:, 3 : n + 3]), want, "layer_norm")
    pairs = torch.stack([w, b], 1)
    same_bits(call("layer_norm", "triton_batch_invariant", x, *pairs.unbind(1)), want, "layer_norm")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [2, 200, 20000])
def test_special_values(device, name, n):
    x = rows(device, F32, 10, n)
    x[0] = -INF
    x[1, n // 2] = INF
    x[2, n - 1] = NAN
    x[3, 1:] = -INF
    x[4, 0], x[4, 1] = INF, NAN
    x[5] = 3e38
    x[6] = -200.0
    x[6, 0] = 0.0
    x[7] = 1e-42
    x[8] = -0.0
    got = assert_portable(name, x)
    same_bits(call(name, "triton_batch_invariant", x[9]), got[9], name)  # what a row holds stays in its row
    for i in range(9 if n < 1000 else 0):
        same_bits(call(name, "triton_batch_invariant", x[i]), got[i], name)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_compute(device, name):
    for shape in ((0, 8), (3, 0), (0, 0), (2, 0, 8)):
        assert_portable(name, torch.empty(shape, dtype=BF16, device=device))


def test_many_rows(device):
    """Bits of a batch against portable's: 20,000 rows on a GPU."""
    count = 20_000 if device == "cuda" else 300
    x = rows(device, F32, count, 128)
    for name in NAMES:
        assert_portable(name, x)


@pytest.mark.parametrize("name", NAMES)
def test_selected_in_batch_invariant_mode(device, name):
    op = getattr(ops, name)
    x = rows(device, BF16, 3, 64)
    with ir_core.scope(batch_invariant=True):
        assert op.dispatch(*op.apply_arg_defaults((x,))).provider == "triton_batch_invariant"
        same_bits(op(x), call(name, "portable", x.cpu()), name)
        chosen = op.dispatch(*op.apply_arg_defaults((x.double(),)))
        assert chosen.provider == "portable"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_call(device, name):
    with pytest.raises(TypeError, match="takes float16, bfloat16 and float32"):
        call(name, "triton_batch_invariant", torch.ones(2, 4, dtype=torch.float64, device=device))
    with pytest.raises(ValueError, match="at least one dimension"):
        call(name, "triton_batch_invariant", torch.tensor(1.0, device=device))
    if name == "layer_norm":
        ones = torch.ones(2, 4, device=device)
        with pytest.raises(ValueError, match=r"bias must be one row of 4 elements"):
            call(name, "triton_batch_invariant", ones, None, ones[:, 0])
