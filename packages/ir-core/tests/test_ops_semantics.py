# SPDX-License-Identifier: Apache-2.0
"""What the ops mean, written down a second time: by a float64 reference and by the rounding points."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops

pytestmark = pytest.mark.usefixtures("alone")

EPS = 1e-6
HALF, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
DTYPES = [(F32, F32), (HALF, HALF), (BF16, BF16), (BF16, F32), (HALF, F32), (F32, BF16), (BF16, HALF)]
BOTH = pytest.mark.parametrize("provider", ["native", "portable"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def implementation(op, provider: str):
    return op.impls[provider].impl_fn


def exactly_equal(a: Tensor, b: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype is b.dtype and a.shape == b.shape and torch.equal(a.view(integer), b.view(integer))


def reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, size: int | None
) -> tuple[Tensor, Tensor]:
    """In float64, nothing rounded but the inputs (and the sum's float32, which the op normalises)."""
    s = x.double() if residual is None else (x.float() + residual.float()).double()
    head = s if size is None else s[..., :size]
    y = s / torch.sqrt(head.square().mean(-1, keepdim=True) + EPS)
    return (y if weight is None else y * weight.double()), s


def allowed(op, dtype: torch.dtype, weight: Tensor | None) -> dict[str, float]:
    """The op's bound for its result, and a rounding to the weight's dtype if that is narrower."""
    bound = dict(op.get_tolerance(dtype))
    if weight is not None:
        bound = {key: max(bound[key], op.get_tolerance(weight.dtype)[key]) for key in bound}
    return bound


@BOTH
@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES)
@pytest.mark.parametrize("size", [None, 32, 1, 96, 200])
@pytest.mark.parametrize("weighted", [True, False])
def test_norms_agree_with_float64(provider, dtype, weight_dtype, size, weighted):
    x, residual = torch.randn(7, 96).to(dtype), torch.randn(7, 96).to(dtype)
    weight = torch.randn(96).to(weight_dtype) if weighted else None
    y = implementation(ops.rms_norm, provider)(x, weight, EPS, size)
    assert y.dtype is dtype
    torch.testing.assert_close(
        y.double(), reference(x, None, weight, size)[0], **allowed(ops.rms_norm, dtype, weight)
    )
    y, s = implementation(ops.fused_add_rms_norm, provider)(x, residual, weight, EPS, size)
    expected = reference(x, residual, weight, size)
    torch.testing.assert_close(y.double(), expected[0], **allowed(ops.fused_add_rms_norm, dtype, weight))
    assert exactly_equal(s, expected[1].to(dtype))  # one rounding


@BOTH
@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES)
def test_rounding_points(provider, dtype, weight_dtype):
    """The row is rounded to the weight's dtype, multiplied there, and rounded to x's; bit for bit."""
    x, weight = torch.randn(5, 64).to(dtype), torch.randn(64).to(weight_dtype)
    plain = implementation(ops.rms_norm, provider)(x.float(), None, EPS)  # float32 rows, unweighted
    product = (plain.to(weight_dtype).float() * weight.float()).to(weight_dtype)
    assert exactly_equal(implementation(ops.rms_norm, provider)(x, weight, EPS), product.to(dtype))


@BOTH
def test_the_sum_is_normalised_before_it_is_rounded(provider):
    x, residual = torch.randn(5, 64).to(BF16), torch.randn(5, 64).to(BF16)
    y, _ = implementation(ops.fused_add_rms_norm, provider)(x, residual, None, EPS)
    unrounded = implementation(ops.rms_norm, provider)(x.float() + residual.float(), None, EPS)
    assert exactly_equal(y, unrounded.to(BF16))


SHAPES = [(), (1,), (3,), (2, 3), (1, 1, 1, 4), (0,), (2, 0, 3)]


@BOTH
@pytest.mark.parametrize("leading", SHAPES)
@pytest.mark.filterwarnings("error")
def test_any_leading_dimensions(provider, leading):
    x, weight = torch.randn(*leading, 24), torch.randn(24)
    y = implementation(ops.rms_norm, provider)(x, weight, EPS)
    assert y.shape == x.shape
    rows = implementation(ops.rms_norm, provider)(x.reshape(-1, 24), weight, EPS)
    assert exactly_equal(y.reshape(-1, 24), rows)
    out = implementation(ops.fused_add_rms_norm, provider)(x, x, weight, EPS)
    assert [t.shape for t in out] == [x.shape] * 2
    assert ops.gelu_and_mul_sparse(x, 0.5).shape == (*leading, 12)
    with ir_core.scope(batch_invariant=True):
        assert ops.gelu_and_mul_sparse(x, 0.5).shape == (*leading, 12)
        assert ops.rms_norm(x, weight, EPS).shape == x.shape


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of ``x`` ([rows, n]) in other places of memory."""
    rows, n = x.shape
    return {
        "transposed": x.t().contiguous().t(),
        "every second column": torch.stack([x, -x], -1).flatten(-2)[:, ::2],
        "padded rows": torch.cat([x, x], -1)[:, :n],
        "every second row": torch.stack([x, -x], 1).flatten(0, 1)[::2],
        "not aligned": torch.cat([x.flatten()[:1], x.flatten()])[1:].view(rows, n),
        "in three dimensions": x.view(rows, 1, n).expand(rows, 1, n)[:, 0],
    }


@pytest.mark.parametrize(
    "layout", ["transposed", "every second column", "padded rows", "every second row", "not aligned"]
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_portable_has_the_same_bits_in_any_layout(layout, dtype):
    x, residual, weight = (
        torch.randn(6, 40).to(dtype),
        torch.randn(6, 40).to(dtype),
        torch.randn(40).to(dtype),
    )
    strided = layouts(x)[layout]
    assert torch.equal(strided, x)
    norm = implementation(ops.rms_norm, "portable")
    assert exactly_equal(norm(strided, weight, EPS).contiguous(), norm(x, weight, EPS))
    fused = implementation(ops.fused_add_rms_norm, "portable")
    for a, b in zip(fused(strided, residual, weight, EPS), fused(x, residual, weight, EPS), strict=True):
        assert exactly_equal(a.contiguous(), b)
    gelu = implementation(ops.gelu_and_mul_sparse, "portable")
    assert exactly_equal(gelu(strided, 0.5).contiguous(), gelu(x, 0.5))
    native = implementation(ops.rms_norm, "native")
    bound = ops.rms_norm.get_tolerance(dtype)
    torch.testing.assert_close(native(strided, weight, EPS), native(x, weight, EPS), **bound)
    expanded = x[:1].expand(6, 40)
    assert exactly_equal(norm(expanded, weight, EPS)[3:4].contiguous(), norm(x[:1], weight, EPS))


@pytest.mark.parametrize("layout", ["transposed", "permuted", "slice of a projection", "expanded"])
def test_results_are_contiguous_eagerly_and_in_the_fake(layout):
    """A kernel writes row after row; whoever views a result must not depend on which implementation ran."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = {
        "transposed": lambda: torch.randn(40, 6).t(),
        "permuted": lambda: torch.randn(2, 3, 5, 40).permute(2, 0, 1, 3),
        "slice of a projection": lambda: torch.randn(4, 3, 120)[..., :40].transpose(0, 1),
        "expanded": lambda: torch.randn(3, 1, 40).expand(3, 4, 40),
    }[layout]()
    residual, weight = torch.randn(40, *x.shape[:-1]).movedim(0, -1), torch.randn(40)
    calls = {
        ops.rms_norm: (x, weight, EPS, None),
        ops.fused_add_rms_norm: (x, residual, weight, EPS, None),
        ops.gelu_and_mul_sparse: (x, 0.5, "none"),
    }

    def results(call, args):
        found = call(*args)
        return found if isinstance(found, tuple) else (found,)

    for op, args in calls.items():
        outs = [t for impl in op.impls.values() if impl.supported for t in results(impl.func_impl_fn, args)]
        outs += results(op, args)
        with FakeTensorMode() as mode:
            outs += results(op, [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])
        assert all(out.is_contiguous() for out in outs), op


@pytest.mark.parametrize("width", [1, 2, 7, 96, 1000, 4096, 16385])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_portable_rows_alone_and_in_batches_have_the_same_bits(width, dtype):
    x, residual, weight = (torch.randn(9, width).to(dtype) for _ in range(3))
    calls = {
        "norm": lambda a, b: (ops.rms_norm(a, weight[0], EPS),),
        "fused": lambda a, b: ops.fused_add_rms_norm(a, b, weight[0], EPS, max(width // 2, 1)),
    }
    if width % 2 == 0:
        calls["gelu"] = lambda a, b: (ops.gelu_and_mul_sparse(a, 0.5, "tanh"),)
    with ir_core.scope(batch_invariant=True):
        for call in calls.values():
            whole = call(x, residual)
            for rows in ([0], [8], [3, 4], [8, 0, 5], [0, 1, 2, 3, 4, 5, 6, 7]):
                part = call(x[rows], residual[rows])
                assert all(exactly_equal(p, w[rows]) for p, w in zip(part, whole, strict=True))
            other = call(torch.cat([x[:1], torch.full_like(x[1:], float("nan"))]), residual)
            assert all(exactly_equal(o[:1], w[:1]) for o, w in zip(other, whole, strict=True))


@BOTH
def test_rows_of_no_elements_and_no_rows(provider):
    for shape in ((3, 0), (0, 4), (0, 0)):
        x = torch.zeros(shape)
        if shape[-1] or provider == "native":
            assert implementation(ops.rms_norm, provider)(x, torch.ones(shape[-1]), EPS).shape == shape
            out = implementation(ops.fused_add_rms_norm, provider)(x, x, None, EPS)
            assert [t.shape for t in out] == [shape, shape]
    y = implementation(ops.rms_norm, provider)(torch.zeros(3, 0), None, EPS)
    assert y.shape == (3, 0)


@BOTH
def test_special_values(provider):
    norm = implementation(ops.rms_norm, provider)
    assert torch.equal(norm(torch.zeros(1, 8), None, EPS), torch.zeros(1, 8))
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 8)
        x[1, 3] = bad
        y = norm(x, None, EPS)
        assert y[1].isnan().any() or (y[1] == 0).any()
        assert y[[0, 2]].isfinite().all()
    tiny = torch.full((1, 8), 1e-30)
    assert norm(tiny, None, EPS).isfinite().all()
    big = torch.full((1, 8), 3e4, dtype=HALF)
    assert torch.equal(norm(big, None, 0.0), torch.ones(1, 8, dtype=HALF))  # statistics are float32


@BOTH
@pytest.mark.parametrize(
    ("dtype", "approximate", "multiplier"),
    list(itertools.product([F32, HALF, BF16], ["none", "tanh"], [0.0, 1.5])),
)
def test_gelu_and_mul_sparse_agrees_with_float64(provider, dtype, approximate, multiplier):
    x = torch.randn(6, 64).to(dtype)
    gate, up = x.double().chunk(2, -1)
    threshold = gate.mean(-1, keepdim=True) + gate.std(-1, keepdim=True, unbiased=False) * multiplier
    expected = torch.nn.functional.gelu((gate - threshold).relu(), approximate=approximate) * up
    found = implementation(ops.gelu_and_mul_sparse, provider)(x, multiplier, approximate)
    assert found.dtype is dtype
    assert found.shape == (6, 32)
    u = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.double(), expected, rtol=8 * u, atol=16 * u
    )  # differences near the threshold


@BOTH
@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse"])
@pytest.mark.parametrize("dtype", [F32, HALF, BF16])
def test_input_generators_make_what_the_op_takes(op, provider, dtype):
    op = getattr(ops, op)
    args = op.apply_arg_defaults(op.generate_inputs(num_tokens=3, hidden_size=32, dtype=dtype))
    assert args[0].dtype is dtype
    assert args[0].shape[0] == 3
    found = implementation(op, provider)(*args)
    native = implementation(op, "native")(*args)
    found, native = (r if isinstance(r, tuple) else (r,) for r in (found, native))
    for a, b in zip(found, native, strict=True):
        torch.testing.assert_close(a, b, **{k: 2 * v for k, v in op.get_tolerance(dtype).items()})


@BOTH
@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse"])
def test_inputs_are_left_alone(op, provider):
    op = getattr(ops, op)
    args = op.generate_inputs(num_tokens=3, hidden_size=32, dtype=F32)
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    out = implementation(op, provider)(*args)
    for a, b in zip(args, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    for result in out if isinstance(out, tuple) else (out,):
        assert all(result.data_ptr() != a.data_ptr() for a in args if isinstance(a, Tensor))


def test_schemas_are_those_of_vllm_0_33():
    assert (
        ops.rms_norm.schema
        == "(Tensor x, Tensor? weight, float epsilon, SymInt? variance_size=None) -> Tensor"
    )
    assert ops.fused_add_rms_norm.schema == (
        "(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, SymInt? variance_size=None) -> (Tensor, Tensor)"
    )
    assert (
        ops.gelu_and_mul_sparse.schema == '(Tensor x, float std_multiplier, str approximate="none") -> Tensor'
    )
    assert ops.fused_add_rms_norm.allow_inplace
    assert all(op.has_reduction for op in (ops.rms_norm, ops.fused_add_rms_norm, ops.gelu_and_mul_sparse))
    assert all(
        "portable" in op.impls for op in (ops.rms_norm, ops.fused_add_rms_norm, ops.gelu_and_mul_sparse)
    )
