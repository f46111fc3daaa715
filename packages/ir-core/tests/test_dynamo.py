# SPDX-License-Identifier: Apache-2.0
"""Dynamo traces a call without a break, through the torch op and straight to the implementation."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, fx

import ir_core
from ir_core import ops, torch_library
from ir_core.errors import SelectionError

pytestmark = pytest.mark.usefixtures("alone")
EPS = 1e-6
WRAPS = pytest.mark.parametrize("wrap", [True, False], ids=["wrapped", "direct"])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps what Dynamo traced and runs it as it is."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Tensor]):
        self.graphs.append(module)
        return module.forward

    @property
    def targets(self) -> list[str]:
        return [str(n.target) for g in self.graphs for n in g.graph.nodes if n.op == "call_function"]


def norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return ops.rms_norm(x, weight, EPS) + 1


@WRAPS
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("provider", ["native", "portable"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_graph(wrap: bool, warm: bool, provider: str, weighted: bool):
    x, weight = torch.randn(3, 32), torch.randn(32) if weighted else None
    backend = Graphs()
    with ir_core.enable_torch_wrap(wrap), ops.rms_norm.set_priority([provider]):
        if warm:  # the fast path is traced then
            norm(x, weight)
        compiled = torch.compile(norm, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x, weight), norm(x, weight))
    assert len(backend.graphs) == 1
    assert ("ir_core.rms_norm.default" in backend.targets) is wrap


@WRAPS
def test_keyword_arguments_and_defaults(wrap: bool):
    x = torch.randn(3, 32)

    def call(x: Tensor) -> Tensor:
        return ops.rms_norm(weight=None, x=x, epsilon=EPS) + ops.rms_norm(x, None, EPS, variance_size=16)

    with ir_core.enable_torch_wrap(wrap):
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), call(x))


@WRAPS
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_in_place(wrap: bool, warm: bool):
    weight = torch.randn(32)

    def call(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.fused_add_rms_norm.maybe_inplace(x, residual, weight=weight, epsilon=EPS)

    x, residual = torch.randn(3, 32), torch.randn(3, 32)
    with ir_core.enable_torch_wrap(wrap):
        if warm:
            call(x, residual)
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        found, expected = compiled(x.clone(), residual.clone()), call(x, residual)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def adding(n: int):
    def impl(x: Tensor) -> Tensor:
        return x + n

    return impl


@WRAPS
def test_a_predicate_is_asked_while_tracing(wrap: bool):
    op = ir_core.register_op(adding(0), name="probe")
    op.register_impl("wide", supports_args=lambda x: x.shape[-1] >= 8)(adding(1))
    op.register_impl("half", supports_args=lambda x: x.dtype is torch.float16)(adding(2))
    with ir_core.enable_torch_wrap(wrap), op.set_priority(["wide", "half"]):
        compiled = torch.compile(lambda x: op(x), backend="eager", fullgraph=True, dynamic=False)
        for x in (
            torch.zeros(2, 16),
            torch.zeros(2, 4),
            torch.zeros(4, dtype=torch.float16),
            torch.zeros(1, 16),
        ):
            for _ in range(2):
                assert torch.equal(compiled(x), op(x))


@WRAPS
def test_an_opaque_implementation_is_one_op_in_the_graph(wrap: bool):
    op = ir_core.register_op(adding(0), name="probe")

    @op.register_impl("sealed", opaque=True)
    def sealed(x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() + 3)

    for warm in (False, True):
        torch._dynamo.reset()
        backend = Graphs()
        with ir_core.enable_torch_wrap(wrap), op.set_priority(["sealed"]):
            if warm:
                op(torch.zeros(2))
            compiled = torch.compile(lambda x: op(x) * 1, backend=backend, fullgraph=True)
            assert compiled(torch.zeros(2))[0] == 3
        assert str(op.torch_op if wrap else torch_library.of(op).provider("sealed")) in backend.targets


@WRAPS
def test_in_batch_invariant_mode_every_implementation_is_one_op(wrap: bool):
    backend = Graphs()
    x = torch.randn(3, 32)
    with ir_core.enable_torch_wrap(wrap), ir_core.scope(batch_invariant=True):
        compiled = torch.compile(norm, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x, None), norm(x, None))
    assert ("ir_core.rms_norm.default" if wrap else "ir_core.rms_norm.portable") in backend.targets


@WRAPS
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_the_number_of_rows_stays_dynamic(wrap: bool, warm: bool):
    if warm:
        norm(torch.zeros(2, 32), None)
    counter = torch._dynamo.testing.CompileCounter()
    with ir_core.enable_torch_wrap(wrap), ops.rms_norm.set_priority(["native"]):
        compiled = torch.compile(norm, backend=counter, fullgraph=True, dynamic=True)
        for rows in (2, 3, 7, 33):
            x = torch.randn(rows, 32)
            assert torch.equal(compiled(x, None), norm(x, None))
        assert counter.frame_count == 1
        assert torch.equal(compiled(x, None), norm(x, None))


@WRAPS
def test_integers_that_dynamo_makes_symbols(wrap: bool):
    op = ir_core.register_op(scaled, name="probe")
    op.register_impl("positive", supports_args=lambda x, n: n > 0)(scaled)
    with ir_core.enable_torch_wrap(wrap), op.set_priority(["positive"]):
        compiled = torch.compile(lambda x, n: op(x, n), backend="eager", fullgraph=True, dynamic=True)
        for n in (5, -5, 0, 7):
            assert compiled(torch.ones(2), n)[0] == n
        assert op(torch.tensor(1.0), 2) == 2


def scaled(x: Tensor, n: int) -> Tensor:
    return x * n


@WRAPS
def test_no_dimensions(wrap: bool):
    op = ir_core.register_op(adding(0), name="probe")
    op.register_impl("flat", supports_args=lambda x: x.ndim == 0)(adding(1))
    with ir_core.enable_torch_wrap(wrap), op.set_priority(["flat"]):
        assert torch.compile(lambda x: op(x), backend="eager", fullgraph=True)(torch.tensor(1.0)) == 2


@WRAPS
def test_no_implementation_is_an_error_of_the_trace(wrap: bool):
    op = ir_core.register_op(adding(0), name="probe")
    op.register_impl("never", supports_args=lambda x: "never")(adding(1))
    only = ir_core.Policy(ops={"probe": ir_core.OpPolicy(only=("never",))})
    with ir_core.enable_torch_wrap(wrap), ir_core.scope(only):
        compiled = torch.compile(lambda x: op(x), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="never") as caught:
            compiled(torch.zeros(2))
    chain, error = [], caught.value
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    assert any(isinstance(e, SelectionError) for e in chain) or "No implementation" in str(caught.value)


@WRAPS
def test_export(wrap: bool):
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.rms_norm(x, None, EPS)

    x = torch.randn(3, 32)
    with ir_core.enable_torch_wrap(wrap):
        program = torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}})
    held = [str(n.target) for n in program.graph.nodes]
    assert ("ir_core.rms_norm.default" in held) is wrap
    y = torch.randn(9, 32)
    assert torch.equal(program.module()(y), ops.rms_norm(y, None, EPS))


@WRAPS
def test_the_registered_ops_stand_torchs_own_check(wrap: bool):
    x, weight = torch.randn(3, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    with ir_core.enable_torch_wrap(wrap):
        torch.library.opcheck(ops.rms_norm.torch_op, (x, weight, EPS))
        torch.library.opcheck(ops.fused_add_rms_norm.torch_op, (x, x.detach(), weight, EPS))
        torch.library.opcheck(ops.gelu_and_mul_sparse.torch_op, (x, 0.5))
