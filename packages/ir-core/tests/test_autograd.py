# SPDX-License-Identifier: Apache-2.0
"""Gradients: those of the native implementation, and never at the cost of the forward's bits."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ir_core
from ir_core import ops

pytestmark = pytest.mark.usefixtures("alone")

EPS = 1e-6
WRAPS = pytest.mark.parametrize("wrap", [True, False], ids=["wrapped", "direct"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def wave():
    """float64 op with two outputs, an optional tensor and a scalar; ``rough`` rounds its forward."""

    @ir_core.register_op
    def wave(x: Tensor, y: Tensor, weight: Tensor | None, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        out = torch.sin(x * scale) * y
        return (out if weight is None else out * weight), x * y * y

    @wave.register_impl("rough")
    def rough(x: Tensor, y: Tensor, weight: Tensor | None, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        out = torch.sin(x * scale) * y
        return ((out if weight is None else out * weight) * 1024).round() / 1024, x * y * y

    return wave


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@WRAPS
@pytest.mark.parametrize("provider", ["native", "same"])
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_and_gradients_of_gradients(wave, wrap: bool, provider: str, weighted: bool):
    @wave.register_impl("same")
    def same(x: Tensor, y: Tensor, weight: Tensor | None, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # what torch records inside does not matter
            return wave.impls["native"].impl_fn(x, y, weight, scale)

    inputs = (double(3, 4), double(3, 4), double(4) if weighted else None)
    with wave.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            assert gradcheck(wave, inputs)
            assert gradgradcheck(wave, inputs)
        assert gradcheck(lambda x, y, w: wave(y=y, x=x, weight=w, scale=0.5), inputs)


@WRAPS
def test_only_what_is_wanted(wave, wrap: bool):
    x, y, weight = double(3, 4), double(3, 4), double(4)
    with wave.set_priority(["rough"]), ir_core.enable_torch_wrap(wrap):
        for wanted in ((x,), (y,), (weight,), (x, weight)):
            args = [t if any(t is w for w in wanted) else t.detach() for t in (x, y, weight)]
            expected = torch.autograd.grad(wave.impls["native"].impl_fn(*args)[0].sum(), wanted)
            found = torch.autograd.grad(wave(*args)[0].sum(), wanted)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        second = wave(x, y, weight)[1]
        found = torch.autograd.grad(second.sum(), (x, weight), allow_unused=True)
        assert torch.equal(found[0], y.detach() ** 2)
        assert found[1] is None
        out = wave(x.detach(), y.detach(), None)
        assert not out[0].requires_grad


@WRAPS
def test_a_leaf_used_twice_and_a_tensor_passed_twice(wave, wrap: bool):
    x = double(3, 4)
    with wave.set_priority(["rough"]), ir_core.enable_torch_wrap(wrap):
        found = torch.autograd.grad(wave(x, x, None)[1].sum() + wave(x, x, None)[1].sum(), x)[0]
    assert torch.allclose(found, 6 * x.detach() ** 2)


@WRAPS
def test_a_registered_backward_is_used(wrap: bool):
    seen: list[tuple] = []

    @ir_core.register_op
    def twice(x: Tensor, y: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
        return x * k, y * k

    @twice.register_impl("other")
    def other(x: Tensor, y: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
        return x * k, y * k

    @twice.register_backward
    def backward(args, grads):
        seen.append((len(args), args[2], grads[1]))
        return torch.full_like(args[0], 7.0), None, None

    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with twice.set_priority(["other"]), ir_core.enable_torch_wrap(wrap):
        twice(x, y, 3)[0].sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 7.0))
    assert y.grad is None
    assert seen == [(3, 3, None)]


# -- the project's ops

MIXED = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


def bits(t: Tensor) -> Tensor:
    return t.detach().view({2: torch.int16, 4: torch.int32}[t.element_size()])


def calls_of(name: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple:
    x = torch.randn(5, 48, dtype=dtype, requires_grad=True)
    if name == "gelu_and_mul_sparse":
        return x, 1.0, "tanh"
    weight = torch.randn(48, dtype=weight_dtype, requires_grad=True)
    if name == "rms_norm":
        return x, weight, EPS
    return x, torch.randn(5, 48, dtype=dtype, requires_grad=True), weight, EPS


@WRAPS
@pytest.mark.parametrize("name", ["rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse"])
@pytest.mark.parametrize(("dtype", "weight_dtype"), MIXED)
@pytest.mark.parametrize("provider", ["native", "portable"])
def test_the_backward_is_that_of_native_and_the_forward_keeps_its_bits(
    name, dtype, weight_dtype, provider, wrap
):
    op = getattr(ops, name)
    args = calls_of(name, dtype, weight_dtype)
    leaves = [a for a in args if isinstance(a, Tensor)]
    native = op.impls["native"].impl_fn(*args)
    native = native if isinstance(native, tuple) else (native,)
    seeds = [torch.randn_like(out) for out in native]
    expected = torch.autograd.grad(native, leaves, seeds)
    with op.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            with torch.no_grad():
                silent = op(*args)
            recorded = op(*args)
            silent = silent if isinstance(silent, tuple) else (silent,)
            recorded = recorded if isinstance(recorded, tuple) else (recorded,)
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(silent, recorded, strict=True))
            assert all(out.requires_grad for out in recorded)
            found = torch.autograd.grad(recorded, leaves, seeds)
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found, expected, strict=True))


def test_batch_invariant_mode_differentiates_too():
    x = torch.randn(3, 32, requires_grad=True)
    with ir_core.scope(batch_invariant=True):
        out = ops.rms_norm(x, None, EPS)
        alone = ops.rms_norm(x[:1], None, EPS)
    assert torch.equal(bits(out[:1]), bits(alone))
    assert torch.equal(out.detach(), ops.rms_norm.impls["portable"].impl_fn(x.detach(), None, EPS))
    out.sum().backward()
    assert x.grad is not None


@WRAPS
def test_with_gradients_a_call_goes_through_the_torch_op(wrap: bool, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(3, 32, requires_grad=True)
    with ops.rms_norm.set_priority(["portable"]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            assert "_Backward" in type(ops.rms_norm(x, None, EPS).grad_fn).__name__
        assert ops.rms_norm(x.detach(), None, EPS).grad_fn is None


@pytest.fixture
def pair():
    @ir_core.register_op(allow_inplace=True)
    def pair(x: Tensor, x_other: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return x * x_other * w, x_other * x_other

    @pair.register_impl("in_place", inplace=True)
    def in_place(x: Tensor, x_other: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(x_other).mul_(w)
        x_other.mul_(x_other)
        return x, x_other

    return pair


@WRAPS
@pytest.mark.parametrize("provider", ["native", "in_place"])
def test_donated_inputs_survive_until_the_backward(pair, wrap: bool, provider: str):
    a, b, w = double(2, 3), double(2, 3), double(3)
    expected = torch.autograd.grad(pair.impls["native"].impl_fn(a, b, w)[0].sum(), (a, b, w))
    with pair.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            x, x_other = a * 1, b * 1
            out = pair.maybe_inplace(x, x_other, w)
            found = torch.autograd.grad(out[0].sum(), (a, b, w))
            assert all(torch.allclose(f, e) for f, e in zip(found, expected, strict=True))
        assert gradcheck(lambda *args: pair.maybe_inplace(*(t * 1 for t in args)), (a, b, w))
        with torch.no_grad():  # nothing to record: donated
            x = torch.ones(2, 3, dtype=torch.float64)
            out = pair.maybe_inplace(x, torch.ones_like(x), w)
            assert (out[0].data_ptr() == x.data_ptr()) is (provider == "in_place")


@WRAPS
def test_a_leaf_may_be_donated_and_is_not_written(pair, wrap: bool):
    a, b, w = double(2, 3), double(2, 3), double(3)
    before = a.detach().clone()
    with pair.set_priority(["in_place"]), ir_core.enable_torch_wrap(wrap):
        pair.maybe_inplace(a, b, w)[0].sum().backward()
    assert torch.equal(a.detach(), before)
    assert a.grad is not None


@WRAPS
def test_a_weight_that_learns_over_data_that_does_not(pair, wrap: bool):
    x, x_other = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    expected = (x * x_other).sum(0)
    w = double(3)
    with pair.set_priority(["in_place"]), ir_core.enable_torch_wrap(wrap):
        pair.maybe_inplace(x, x_other, w)[0].sum().backward()
    assert torch.allclose(w.grad, expected)


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)
        self.weight = torch.nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        residual = x * 1
        x = ops.gelu_and_mul_sparse(self.up(ops.rms_norm(x, self.weight, EPS)), 0.5)
        x, residual = ops.fused_add_rms_norm(x, residual, self.weight, EPS)
        return x + residual


@WRAPS
@pytest.mark.parametrize("invariant", [False, True], ids=["any", "batch-invariant"])
def test_a_compiled_training_step_is_the_eager_one(wrap: bool, invariant: bool):
    """``aot_eager`` traces forward and backward and runs them op by op, so the bits must be those of eager."""
    layer = Layer(16)
    x = torch.randn(4, 16)

    def step(run) -> list[Tensor]:
        layer.zero_grad()
        out = run(x)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in layer.parameters())]

    torch._dynamo.reset()
    with ir_core.scope(batch_invariant=invariant), ir_core.enable_torch_wrap(wrap):
        eager = step(layer)
        compiled = step(torch.compile(layer, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    assert torch.equal(eager[0], compiled[0])
    for a, b in zip(eager[1:], compiled[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_saved_tensors_may_be_packed(wave):
    """Activation checkpointing and offloading go through the hooks."""
    from torch.utils.checkpoint import checkpoint

    x, y = double(3, 4), double(3, 4)
    with wave.set_priority(["rough"]):
        expected = torch.autograd.grad(wave(x, y, None)[0].sum(), x)[0]
        found = torch.autograd.grad(checkpoint(wave, x, y, None, use_reentrant=False)[0].sum(), x)[0]
        with torch.autograd.graph.save_on_cpu():
            offloaded = torch.autograd.grad(wave(x, y, None)[0].sum(), x)[0]
    assert torch.equal(found, expected)
    assert torch.equal(offloaded, expected)


def test_changing_an_input_before_the_backward_is_noticed(wave):
    x = double(3, 4) * 1
    with wave.set_priority(["rough"]):
        out = wave(x, x, None)[0].sum()
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def _cubes(op, *rest):
    """A function of x and weight whose second derivatives are not zero."""

    def of(x: Tensor, weight: Tensor) -> Tensor:
        results = op(x.clone(), *rest, weight, EPS)
        return sum((result**3).sum() for result in (results if isinstance(results, tuple) else (results,)))

    return of


@pytest.mark.parametrize("name", ["rms_norm", "fused_add_rms_norm", "fused_add_rms_norm.maybe_inplace"])
@pytest.mark.parametrize("provider", ["portable", "native"])
def test_torch_func(name: str, provider: str):
    """Every transform and their compositions give what they give for the native implementation as plain torch code."""
    func = torch.func
    op = getattr(ops, name.partition(".")[0])
    rest = () if name == "rms_norm" else (torch.randn(3, 6),)
    called = op.maybe_inplace if "." in name else op
    ours, plain = _cubes(called, *rest), _cubes(op.impls["native"].impl_fn, *rest)
    x, v, weight = torch.randn(3, 6), torch.randn(3, 6), torch.randn(6)
    xs, weights = torch.randn(3, 4, 6), torch.randn(4, 6)
    transforms = {
        "grad": lambda f: func.grad(f, argnums=(0, 1))(x, weight),
        "jvp": lambda f: func.jvp(f, (x, weight), (v, v[0])),
        "jvp of one": lambda f: func.jvp(lambda w: f(x, w), (weight,), (v[0],)),
        "jacrev": lambda f: func.jacrev(f)(x, weight),
        "jacfwd": lambda f: func.jacfwd(f)(x, weight),
        "hessian": lambda f: func.hessian(f)(x, weight),
        "grad of grad": lambda f: func.grad(lambda x: (func.grad(f)(x, weight) * v).sum())(x),
        "grad of jvp": lambda f: func.grad(lambda x: func.jvp(lambda x: f(x, weight), (x,), (v,))[1])(x),
        "vmap": lambda f: func.vmap(f, (1, None))(xs, weight),
        "vmap of both": lambda f: func.vmap(f, (1, 0))(xs, weights),
        "vmap of grad": lambda f: func.vmap(func.grad(f), (1, 0))(xs, weights),
    }
    if rest:  # samples of x beside one residual for all of them
        del transforms["vmap"], transforms["vmap of both"], transforms["vmap of grad"]
        transforms["vmap"] = lambda f: func.vmap(f, (0, None))(xs.movedim(1, 0), weight)
        transforms["vmap of grad"] = lambda f: func.vmap(func.grad(f), (None, 0))(x, weights)
    with op.set_priority([provider]):
        for what, transform in transforms.items():
            torch.testing.assert_close(
                transform(ours),
                transform(plain),
                rtol=1e-3,
                atol=1e-3,
                msg=lambda m, what=what: f"{what}: {m}",
            )


def test_forward_mode_runs_what_is_selected(wave):
    """The value has the selected implementation's bits, the tangent is that of the native implementation."""
    from torch.autograd import forward_ad

    x, y, t = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    with wave.set_priority(["rough"]), forward_ad.dual_level():
        out, product = map(forward_ad.unpack_dual, wave(forward_ad.make_dual(x, t), y, None))
    assert torch.equal(out.primal, wave.impls["rough"].impl_fn(x, y, None)[0])
    torch.testing.assert_close(out.tangent, 2 * torch.cos(2 * x) * y * t)
    torch.testing.assert_close(product.tangent, t * y * y)


def test_vmap_is_one_call():
    rows: list[torch.Size] = []

    @ops.rms_norm.register_impl("counting")
    def counting(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        rows.append(x.shape)
        return ops.rms_norm.impls["native"].impl_fn(x, weight, epsilon, variance_size)

    try:
        with ops.rms_norm.set_priority(["counting"]):
            torch.func.vmap(lambda x: ops.rms_norm(x, None, EPS), 1)(torch.randn(3, 5, 8))
    finally:
        ops.rms_norm.unregister_impl("counting")
    assert rows == [torch.Size([5, 3, 8])]


@pytest.mark.parametrize("elsewhere", ["after the scope", "in another thread", "in another scope"])
def test_a_backward_runs_under_the_policy_of_its_forward(op_of_policies, elsewhere):
    """torch runs the backward of a GPU in a thread of its own, which no scope reaches."""
    op, seen = op_of_policies
    x = torch.ones(2, 4, requires_grad=True)
    with ir_core.scope(batch_invariant=True):
        y = op(x).sum()
    if elsewhere == "in another thread":
        thread = threading.Thread(target=y.backward)
        thread.start()
        thread.join()
    elif elsewhere == "in another scope":
        with ir_core.scope(batch_invariant=False, strict=True):
            y.backward()
    else:
        y.backward()
    assert [(p.batch_invariant, p.strict) for p in seen] == [(True, False)]
    assert not ir_core.current().batch_invariant


@pytest.fixture
def op_of_policies():
    """An op, and the policies that its backwards ran under."""
    seen = []

    @ir_core.register_op(name="op_of_policies", has_reduction=False)
    def op(x: Tensor) -> Tensor:
        return x * 2

    @op.register_backward
    def backward(args, grads):
        seen.append(ir_core.current())
        return (grads[0] * 2,)

    yield op, seen
    op.unregister()
