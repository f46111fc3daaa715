# SPDX-License-Identifier: Apache-2.0
"""linear has the bits of its order's reference, in the interpreter and on a GPU, whatever the tile and the layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ir_core.ops.matmul import linear as op
from ir_kernels_triton import linear_config

HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def portable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    args = [None if t is None else t.cpu() for t in (x, weight, bias)]
    result = op.impls["portable"].impl_fn(*args)
    assert isinstance(result, Tensor)
    return result


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from ir_kernels_triton.linear import linear_batch_invariant

    return linear_batch_invariant(x, weight, bias)


def assert_bits(got: Tensor, want: Tensor) -> None:
    """Equal bits; what is no number has no bits of its own."""
    got = got.cpu()
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    assert same.all(), (
        f"{int((~same).sum())} of {same.numel()} outputs differ, first at {(~same).nonzero()[0].tolist()}"
    )


def operands(device: str, dtype: torch.dtype, rows: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, k).to(dtype)
    weight = (torch.randn(n, k) / math.sqrt(max(k, 1))).to(dtype)
    return x.to(device), weight.to(device), torch.randn(n).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 1, 1), (3, 20, 17), (17, 5, 40), (2, 16, 64), (5, 18, 8)])
def test_small_shapes(device, dtype, rows, n, k):
    x, weight, bias = operands(device, dtype, rows, n, k)
    assert_bits(run(x, weight), portable(x, weight))
    assert_bits(run(x, weight, bias), portable(x, weight, bias))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(("rows", "n", "k"), [(0, 4, 8), (3, 0, 8), (3, 4, 0)])
def test_nothing_to_add_or_to_write(device, dtype, rows, n, k):
    x, weight, bias = operands(device, dtype, rows, n, k)
    assert_bits(run(x, weight), portable(x, weight))
    assert_bits(run(x, weight, bias), portable(x, weight, bias))


def test_ranks(device):
    x, weight, _ = operands(device, BF16, 6, 7, 16)
    want = portable(x, weight)
    assert_bits(run(x.view(2, 3, 16), weight), want.view(2, 3, 7))
    assert_bits(run(x[0], weight), want[0])


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_layouts_do_not_change_bits(device, dtype):
    """Transposed, strided, misaligned and overlapping operands, against contiguous ones."""
    x, weight, bias = operands(device, dtype, 5, 12, 24)
    want = portable(x, weight, bias)
    wide = torch.zeros(5, 50, dtype=dtype, device=device)
    wide[:, 1:49:2] = x
    odd = torch.zeros(12, 25, dtype=dtype, device=device)
    odd[:, 1:] = weight
    for a in (x, x.T.contiguous().T, wide[:, 1:49:2]):
        for b in (weight, weight.T.contiguous().T, odd[:, 1:]):
            assert_bits(run(a, b, bias), want)
    spread = torch.stack([bias, bias], 1)[:, 0]
    assert_bits(run(x, weight, spread), want)
    assert_bits(run(x[:1].expand(4, -1), weight), portable(x[:1].expand(4, -1), weight))


def special(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows that meet every rule of the order: subnormal, overflowing, cancelling, infinite, and no numbers at all."""
    low = -14 if dtype == HALF else -126
    exponents = [
        (low - 8, low + 2),
        (-3, 3),
        (12, 15) if dtype == HALF else (58, 64),
        (low // 2 - 6, low // 2),
    ]
    x = torch.cat(
        [torch.randn(2, 48) * torch.exp2(torch.randint(a, b, (2, 48)).float()) for a, b in exponents]
    )
    weight = torch.cat(
        [torch.randn(2, 48) * torch.exp2(torch.randint(a, b, (2, 48)).float()) for a, b in exponents]
    )
    x, weight = torch.cat([x, torch.randn(6, 48)]), torch.cat([weight, torch.randn(5, 48)])
    x[8, 3], x[9, 5], x[10, 7] = torch.inf, -torch.inf, torch.nan
    x[11, 16:32] = -x[11, :16]
    x[12] = 0.0
    x[13] = -0.0
    weight[8, 3], weight[9, 5] = 0.0, torch.inf
    weight[10, 16:32] = weight[10, :16]
    return x.to(dtype), weight.to(dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # of NumPy, for what is no number
@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_special_values(device, dtype):
    x, weight = special(dtype)
    want = portable(x, weight)
    assert want.isnan().any() and want.isinf().any()
    assert_bits(run(x.to(device), weight.to(device)), want)


def test_bad_arguments(device):
    x, weight, bias = operands(device, BF16, 2, 4, 8)
    with pytest.raises(ValueError, match="'weight' has the shape"):
        run(x, weight[:, :7])
    with pytest.raises(ValueError, match=r"'weight' is torch\.float32"):
        run(x, weight.float())
    with pytest.raises(ValueError, match="'bias' has the shape"):
        run(x, weight, bias[:3])
    run(x, weight, bias)
    with pytest.raises(ValueError, match="'bias' has the shape"):
        run(x, weight, bias[:3])  # after a call that was right: the kind of call is known by then
    with pytest.raises(TypeError, match=r"not torch\.float64"):
        run(x.double(), weight.double())


def test_every_choice_fits_the_processor():
    """Shared memory, and no more steps ahead than K has; for shapes of models and odd ones."""
    for n in (1, 16, 100, 1024, 2048, 4096, 6144, 11008, 24576, 151936):
        for k in (8, 64, 72, 200, 256, 1000, 1024, 2048, 3072, 4096, 12288, 65536):
            for rows in (1, 2, 8, 9, 16, 17, 33, 64):
                choice = linear_config.stream(rows, n, k)
                assert choice.shared <= linear_config.SHARED_BYTES
                assert choice.BT * choice.programs(rows, n) // -(-n // choice.R) >= rows
                if choice.WHOLE:
                    assert k == choice.STAGES * choice.BK
                else:
                    assert choice.STAGES >= 3
                chosen = linear_config.choose(rows, n, k)
                assert isinstance(chosen, linear_config.Stream) or n % 8 == 0
                bulk = linear_config.bulk(rows, n)
                assert bulk.programs(rows, n) <= bulk.each * linear_config.PROCESSORS
                assert bulk.shared * bulk.each <= linear_config.SHARED_BYTES
    assert linear_config.choose(65, 100, 64) is None  # no row of 200 bytes has a descriptor
    for rows, n, k in linear_config.MEASURED:
        for few in (rows - 63, rows):
            chosen = linear_config.choose(few, n, k)
            assert chosen is linear_config.MEASURED[rows, n, k]
            assert chosen.shared <= linear_config.SHARED_BYTES


@pytest.mark.gpu
def test_measured_choices_on_a_gpu():
    """What is chosen for a shape by name, with as many rows as it goes for and fewer, against plain tiles."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from ir_kernels_triton.linear import tile_run

    shapes = {
        *linear_config.MEASURED,
        (64, 4096, 1024),
        (64, 1024, 2048),
        (512, 6144, 1024),
        (64, 24576, 512),
    }
    for rows, n, k in sorted(shapes):
        for few in (rows - 31, rows):
            x, weight, bias = operands("cuda", BF16, few, n, k)
            want = torch.empty(few, n, dtype=BF16, device="cuda")
            tile_run(x, weight, True, True)(x, weight, bias, want)
            got = run(x, weight, bias)
            assert torch.equal(got.view(torch.int16), want.view(torch.int16)), (few, n, k)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64, 65, 200])
@pytest.mark.parametrize(("n", "k"), [(1024, 2048), (40, 72), (200, 1000), (2056, 512), (72, 8)])
def test_kernels_of_a_gpu(dtype, rows, n, k):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x, weight, bias = operands("cuda", dtype, rows, n, k)
    wanted = slice(0, 48)  # some columns: the reference takes its time
    for b in (None, bias):
        want = portable(x, weight[wanted], None if b is None else b[wanted])
        assert_bits(run(x, weight, b)[:, wanted].contiguous(), want)


@pytest.mark.gpu
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("more", [0, 64])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("flatten", [False, True])
def test_every_form_of_the_kernel_for_many_rows(swap, more, halves, flatten):
    """Tiles in two parts, transposed, stored in halves; tiles that hang over the edges, and several a program."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from ir_kernels_triton.linear import bulk_run

    choice = linear_config.Bulk(128, 128, 64, 3, 8, flatten, halves, 8, more, swap)
    for rows, n, k in ((1000, 2056, 264), (130, 200, 72), (3000, 1800, 64)):
        x, weight, bias = operands("cuda", BF16, rows, n, k)
        y, wanted = torch.empty(rows, n, dtype=BF16, device="cuda"), slice(n - 70, n)
        some = torch.cat([torch.arange(3), torch.arange(rows - 3, rows)])
        for b in (None, bias):
            bulk_run(choice, x, weight, b is not None)(x, weight, x if b is None else b, y)
            want = portable(x[some], weight[wanted], None if b is None else b[wanted])
            assert_bits(y[some][:, wanted].contiguous(), want)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "k"), [(1024, 2048), (6144, 1024), (4096, 4096), (264, 136), (1000, 1024), (513, 512)]
)
def test_cublas_has_the_same_bits_at_every_number_of_rows(n, k):
    """Also where the library alone varies: those plans are not taken."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from ir_kernels_triton.cublas import linear_chain16

    x, weight, bias = operands("cuda", BF16, 700, n, k)
    want = run(x, weight), run(x, weight, bias)
    for rows in (1, 16, 32, 33, 48, 64, 100, 128, 250, 256, 511, 512, 700):
        for b, whole in ((None, want[0]), (bias, want[1])):
            for _ in range(2):  # the first call chooses
                assert_bits(linear_chain16(x[:rows], weight, b), whole[:rows].cpu())


@pytest.mark.gpu
def test_cublas_is_not_chosen_in_a_capture():
    """A kind of call that is first seen in a capture runs the Triton kernels, and may be looked at later."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from ir_kernels_triton import cublas

    x, weight, _ = operands("cuda", BF16, 96, 768, 512)
    want = run(x, weight)
    before = dict(cublas._CHOSEN)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cublas.linear_chain16(x, weight)
    graph.replay()
    assert_bits(y, want.cpu())
    assert before == cublas._CHOSEN
