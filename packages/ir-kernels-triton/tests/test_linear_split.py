# SPDX-License-Identifier: Apache-2.0
"""linear and linear_partial in the order chain16x8 have portable's bits, whatever the tile, split and layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core.ops.matmul import linear as op
from ir_core.ops.matmul_x8 import linear_partial as part
from ir_core.policy import OpPolicy
from ir_core.target import Capability, Target
from ir_kernels_triton import linear_split_config as config

pytestmark = pytest.mark.slow

HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


@pytest.fixture(params=[pytest.param(True, id="by chunks"), pytest.param(False, id="by tiles")])
def split(request, monkeypatch):
    """Whether few rows are computed by chunks, as they are; or by tiles, as many rows are, for which the interpreter
    takes its time."""
    from ir_kernels_triton import linear_split

    monkeypatch.setattr(config, "SPLIT_ROWS", config.SPLIT_ROWS if request.param else 0)
    linear_split._RUNS.clear()
    yield request.param
    linear_split._RUNS.clear()


def on_cpu(*args: object) -> list[object]:
    return [arg.cpu() if isinstance(arg, Tensor) else arg for arg in args]


def portable(*args: object) -> Tensor:
    result = op.impls["portable_x8"].impl_fn(*on_cpu(*args))
    assert isinstance(result, Tensor)
    return result


def portable_part(*args: object) -> Tensor:
    result = part.impls["portable"].impl_fn(*on_cpu(*args))
    assert isinstance(result, Tensor)
    return result


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from ir_kernels_triton.linear_split import linear_x8

    return linear_x8(x, weight, bias)


def run_part(x: Tensor, weight: Tensor, chunks: int) -> Tensor:
    from ir_kernels_triton.linear_split import linear_partial_x8

    return linear_partial_x8(x, weight, chunks)


def assert_bits(got: Tensor, want: Tensor, what: str = "") -> None:
    """Equal bits; what is no number has no bits of its own."""
    got = got.cpu()
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous(), what
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    assert same.all(), (
        f"{what}: {int((~same).sum())} of {same.numel()} outputs differ, first at {(~same).nonzero()[0].tolist()}: "
        f"{got[~same][0].item()!r}, portable has {want[~same][0].item()!r}"
    )


def operands(device: str, dtype: torch.dtype, rows: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, k).to(dtype)
    weight = (torch.randn(n, k) / math.sqrt(max(k, 1))).to(dtype)
    return x.to(device), weight.to(device), torch.randn(n).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [HALF, BF16, F32])
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 1, 1), (3, 20, 17), (2, 5, 300), (0, 4, 8), (3, 0, 8), (3, 4, 0)]
)
def test_shapes(device, split, dtype, rows, n, k):
    """Few rows by chunks and many by tiles; chunks that are short, or empty, or nothing at all."""
    x, weight, bias = operands(device, dtype, rows, n, k)
    assert_bits(run(x, weight), portable(x, weight))
    assert_bits(run(x, weight, bias), portable(x, weight, bias))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_parts(device, split, dtype, chunks):
    x, weight, _ = operands(device, dtype, 3, 12, 24 * chunks)
    assert_bits(run_part(x, weight, chunks), portable_part(x, weight, chunks))
    assert_bits(run_part(x[None, :2], weight, chunks), portable_part(x[None, :2], weight, chunks))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_layouts_do_not_change_bits(device, split, dtype):
    """Transposed, strided and misaligned operands, against contiguous ones."""
    x, weight, bias = operands(device, dtype, 5, 12, 136)
    want = portable(x, weight, bias)
    wide = torch.zeros(5, 272, dtype=dtype, device=device)
    wide[:, ::2] = x
    odd = torch.zeros(12, 137, dtype=dtype, device=device)
    odd[:, 1:] = weight
    for a in (x, wide[:, ::2]):
        for b in (weight.T.contiguous().T, odd[:, 1:]):
            assert_bits(run(a, b, bias), want, f"{a.stride()} {b.stride()}")
    assert_bits(run(x, weight, torch.stack([bias, bias], 1)[:, 0]), want)
    assert_bits(run(x[0], weight), portable(x[0], weight))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # of NumPy, for what is no number
def test_special_values(device, split):
    """Infinities that meet in the tree, sums that overflow there, cancelling chunks, and zeros with a sign."""
    x, weight, _ = operands(device, BF16, 7, 5, 128)
    x[0, 3], x[1, 3], x[1, 100], x[2, 7] = torch.inf, torch.inf, -torch.inf, torch.nan
    x[3], x[4] = 2.0**60, -0.0
    x[5, 64:] = -x[5, :64]
    weight[0], weight[1] = 2.0**64, -(2.0**64)
    weight[2, 64:] = weight[2, :64]
    want = portable(x, weight)
    assert want.isnan().any() and want.isinf().any() and (want == 0).any()
    assert_bits(run(x, weight), want)
    assert_bits(run(x[:6], weight), want[:6])
    tiny, negative = (
        torch.full((1, 1), 2.0**-100, device=device),
        torch.full((1, 1), -(2.0**-100), device=device),
    )
    assert_bits(run(tiny, negative), torch.zeros(1, 1))  # +0, which a chain of float32 would leave at -0


def test_bad_arguments(device):
    x, weight, bias = operands(device, BF16, 2, 4, 8)
    for _ in range(2):
        with pytest.raises(ValueError, match="'weight' has the shape"):
            run(x, weight[:, :7])
        with pytest.raises(ValueError, match="'bias' has the shape"):
            run(x, weight, bias[:3])
        with pytest.raises(ValueError, match="chunks is 3"):
            run_part(x, weight, 3)
        run(x, weight, bias)
    with pytest.raises(TypeError, match=r"not torch\.float64"):
        run(x.double(), weight.double())


def test_selection_takes_them_where_their_order_is_asked_for():
    card = Target("cuda:0", "cuda", capability=Capability(9, 0), batch_invariant=True)
    asked = ir_core.Policy(ops={"linear": OpPolicy(order="chain16x8")})
    for dtype, provider, partial in (
        (BF16, "triton_x8", "triton_batch_invariant"),
        (F32, "triton_x8_fp32", "triton_fp32"),
    ):
        x, w = torch.zeros(2, 128, dtype=dtype), torch.zeros(3, 128, dtype=dtype)
        assert ir_core.select(op, asked, card, (x, w, None)).provider == provider
        plain = ir_core.select(op, ir_core.Policy(batch_invariant=True), card, (x, w, None))
        assert plain.order in ("chain16", "fma_chain")
        found = ir_core.select(part, ir_core.Policy(batch_invariant=True), card, (x, w, 4))
        assert (found.provider, found.order) == (partial, "chain16x8")


SPECS = {
    "bulk": config.bulk_spec(config.BULK, "bf16", "bf16", 8, bias=True),
    "bulk part": config.bulk_spec(config.BULK, "fp16", "fp32", 4, bias=False),
    **{
        f"tile of {rows} rows, {dtype}, {'split' if split else 'whole'}": config.tile_spec(
            config.tile(rows, dtype, split=split, interpret=False),
            dtype,
            "fp32" if split else dtype,
            1 if split else 8,
            aligned=aligned,
            bias=not split,
            pdl=True,
            interpret=False,
        )
        for rows, dtype, split, aligned in (
            (8, "bf16", True, True), (64, "fp16", True, True), (8, "fp32", True, True), (200, "bf16", False, True),
            (200, "fp32", False, False), (8, "bf16", True, False),
        )
    },
    "fold": config.fold_spec("bf16", "bf16", 8, bias=True, pdl=True, interpret=False),
}  # fmt: skip


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", SPECS)
def test_compiled_for_sm90(name):
    """What the order rests on, read off the compiled code: the instruction's K, its chain, no conversion, no spills."""
    import re

    from ir_kernels_triton import compat
    from ir_kernels_triton.proof import compiled

    spec = SPECS[name]
    kernel = compat.compile_for(spec, compiled.target("sm90"))
    ptx = kernel.asm["ptx"]
    instructions = set(re.findall(r"(?:wgmma\.mma_async\.sync\.aligned|mma\.sync\.aligned)\.(\S+)", ptx))
    dtype = dict(spec.signature).get("x_ptr", dict(spec.signature).get("x", "fold"))
    if "fp32" in dtype and "tensordesc" not in dtype:
        assert not instructions and "fma.rn.f32" in ptx and ".tf32" not in ptx
    elif "fold" not in dtype:
        assert instructions and all(re.match(r"m\d+n\d+k16\.", each) for each in instructions), instructions
        assert "fma.rn.f32" not in ptx
    assert ".ftz" not in ptx and ".approx" not in ptx
    assert not re.search(r"\b(?:ld|st)\.local", ptx)
    assert compiled.waits(ptx), "an access comes before the wait for the kernel ahead"
    additions = len(re.findall(r"\badd(?:\.rn)?\.f32", ptx))
    assert additions, "the tree is not there"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 64, 65, 200])
@pytest.mark.parametrize(("n", "k"), [(1024, 2048), (40, 72), (200, 1000), (2056, 512), (128, 4096)])
def test_kernels_of_a_gpu(dtype, rows, n, k):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x, weight, bias = operands("cuda", dtype, rows, n, k)
    wanted = slice(0, 24)  # some columns: the reference takes its time
    few = slice(0, 40)
    for b in (None, bias):
        want = portable(x[few], weight[wanted], None if b is None else b[wanted])
        assert_bits(
            run(x, weight, b)[few, wanted].contiguous(), want, f"{rows} x {n} x {k}, bias {b is not None}"
        )
    for chunks in (1, 2, 4):
        want = portable_part(x[few], weight[wanted], chunks)
        assert_bits(run_part(x, weight, chunks)[few, wanted].contiguous(), want, f"{chunks} chunks")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_every_kernel_of_a_gpu_has_the_same_bits(dtype):
    """By chunks, by tiles and through descriptors, with every tile that a benchmark tries."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from ir_kernels_triton import linear_split

    x, weight, bias = operands("cuda", dtype, 130, 264, 1024)
    want = run(x, weight, bias).cpu()
    for split in (True, False):
        for even in (True, False):
            y = torch.empty(130, 264, dtype=dtype, device="cuda")
            linear_split.tile_run(x, weight, True, 8, dtype, even, split)(x, weight, bias, y)
            assert_bits(y, want, f"split {split}, aligned {even}")
    if dtype == BF16 and torch.cuda.get_device_capability()[0] == 9:
        for tile in config.BULKS:
            y = torch.empty(130, 264, dtype=dtype, device="cuda")
            linear_split.bulk_run(tile, x, weight, True, 8, dtype)(x, weight, bias, y)
            assert_bits(y, want, str(tile))
        for tile in config.SPLITS:
            y = torch.empty(130, 264, dtype=dtype, device="cuda")
            linear_split.tile_run(x, weight, True, 8, dtype, True, True, tile)(x, weight, bias, y)
            assert_bits(y, want, str(tile))
