# SPDX-License-Identifier: Apache-2.0
"""A compiled graph never runs under another policy than its own: that one gets its own graph, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops, policy_guard

pytestmark = pytest.mark.usefixtures("alone")
EPS = 1e-6
ONE, TWO = ir_core.Policy(prefer=("one",)), ir_core.Policy(prefer=("two",))
MANY = pytest.mark.parametrize("wrap", [True, False], ids=["wrapped", "direct"])


def one(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    return x + 1


def two(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    return x + 2


@pytest.fixture(autouse=True)
def markers() -> Iterator[None]:
    """Implementations whose results say which of them ran."""
    torch._dynamo.reset()
    ops.rms_norm.register_impl("one")(one)
    ops.rms_norm.register_impl("two")(two)
    yield
    torch._dynamo.reset()


def norm(x: Tensor) -> Tensor:
    return ops.rms_norm(x, None, EPS) * 1


def plain(function: Callable[..., Tensor], **kwargs: object) -> Callable[..., Tensor]:
    return torch.compile(function, backend="eager", fullgraph=True, **kwargs)


def lowered(function: Callable[..., Tensor], **kwargs: object) -> Callable[..., Tensor]:
    return ir_core.compile(function, backend="eager", fullgraph=True, **kwargs)


def inductor(function: Callable[..., Tensor], **kwargs: object) -> Callable[..., Tensor]:
    return ir_core.compile(function, fullgraph=True, **kwargs)


COMPILERS = pytest.mark.parametrize("make", [plain, lowered, inductor])


def marker(function: Callable[..., Tensor], policy: ir_core.Policy | None = None) -> float:
    """The number that the implementation which ran added to zero."""
    with torch.no_grad(), contextlib.nullcontext() if policy is None else ir_core.scope(policy):
        return function(torch.zeros(4, 32)).max().item()


@MANY
@COMPILERS
def test_another_policy_gets_its_own_graph_and_the_first_keeps_its(make, wrap: bool):
    with ir_core.enable_torch_wrap(wrap):
        compiled = make(norm)
        assert [marker(compiled, each) for each in (ONE, TWO, ONE, TWO)] == [1, 2, 1, 2]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert [marker(compiled, each) for each in (TWO, ONE)] == [2, 1]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@COMPILERS
def test_an_equal_policy_takes_the_graph_that_is_there(make):
    compiled = make(norm)
    assert marker(compiled, ONE) == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert marker(compiled, ir_core.Policy(prefer=("one",))) == 1
        with ir_core.scope(ir_core.Policy(strict=True)), ir_core.scope(ONE):
            assert marker(compiled) == 1


@MANY
@pytest.mark.parametrize("strict", [False, True])
def test_batch_invariant_mode_and_back(wrap: bool, strict: bool):
    ops.rms_norm.set_default(["one"])
    with ir_core.enable_torch_wrap(wrap):
        compiled = lowered(norm)
        x = torch.randn(4, 32)
        variant, invariant = x + 1, ops.rms_norm.impls["portable"].impl_fn(x, None, EPS)
        for _ in range(2):
            assert torch.equal(compiled(x), variant)
            with ir_core.scope(batch_invariant=True, ops={}):
                assert torch.equal(compiled(x), invariant)
            with ir_core.scope(ONE, strict=strict):
                assert torch.equal(compiled(x), variant)


@MANY
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@COMPILERS
def test_the_default_of_the_process_is_guarded_too(make, wrap: bool, warm: bool):
    ir_core.set_default_torch_wrap(wrap)
    compiled = make(norm)
    for name, expected in (("one", 1), ("two", 2), ("one", 1)):
        ops.rms_norm.set_default([name])
        if warm:
            norm(torch.zeros(4, 32))
        assert marker(compiled) == expected
    assert [marker(compiled, TWO), marker(compiled)] == [2, 1]


@COMPILERS
@pytest.mark.parametrize(
    "forbid",
    [
        lambda: torch._dynamo.config.patch(error_on_recompile=True),
        lambda: torch.compiler.set_stance("fail_on_recompile"),
    ],
    ids=["error_on_recompile", "fail_on_recompile"],
)
def test_where_recompiling_is_off_another_policy_raises_and_the_reason_names_it(make, forbid):
    with ir_core.enable_torch_wrap(make is not plain):
        compiled = make(norm)
        assert marker(compiled, ONE) == 1
        with forbid():
            assert marker(compiled, ONE) == 1
            with pytest.raises(Exception, match="policy in force is no longer") as caught:
                marker(compiled, TWO)
        assert "prefer=('one',)" in str(caught.value)


def test_beyond_the_recompile_limit_the_policy_still_holds():
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled = ir_core.compile(norm, backend="eager")
        assert [marker(compiled, each) for each in (ONE, TWO, ONE, TWO)] == [1, 2, 1, 2]


@MANY
def test_threads_each_have_their_own(wrap: bool):
    with ir_core.enable_torch_wrap(wrap):
        compiled = lowered(norm)
        assert [marker(compiled, ONE), marker(compiled, TWO)] == [1, 2]
    start = threading.Barrier(4)

    def run(number: int) -> set[float]:
        with ir_core.enable_torch_wrap(wrap), ir_core.scope((ONE, TWO)[number % 2]):
            start.wait()
            return {marker(compiled) for _ in range(300)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [{1}, {2}, {1}, {2}]
    assert marker(compiled) == 0  # outside of every scope: native of zeros


def test_tasks_of_one_thread_each_have_their_own():
    compiled = lowered(norm)

    async def run(policy: ir_core.Policy) -> set[float]:
        found = set()
        with ir_core.scope(policy):
            for _ in range(50):
                found.add(marker(compiled))
                await asyncio.sleep(0)
        return found

    async def main() -> list[set[float]]:
        return await asyncio.gather(run(ONE), run(TWO), run(ONE))

    assert asyncio.run(main()) == [{1}, {2}, {1}]


def test_nested_scopes():
    compiled = lowered(norm)
    with ir_core.scope(ONE):
        with ir_core.scope(TWO):
            assert marker(compiled) == 2
        assert marker(compiled) == 1
    assert marker(compiled) == 0  # native of zeros


def test_the_backward_has_the_policy_of_its_forward():
    seen = []
    passes = ir_core.lowering.Passes()
    compiled = torch.compile(norm, backend=ir_core.lowering.eager_backend(passes))
    for policy in (ONE, TWO):
        x = torch.zeros(4, 32, requires_grad=True)
        with ir_core.scope(policy):
            y = compiled(x)
        y.sum().backward()
        seen.append(y.max().item())
        assert {node.selection.policy for report in passes.reports for node in report.nodes} == {policy}
        passes.reports.clear()
    assert seen == [1, 2]


@pytest.mark.parametrize("make", [lowered, inductor])
def test_a_filter_of_guards_leaves_that_of_the_policy(make):
    offered = []

    def drop(entries):
        offered.extend(entry.guard_type for entry in entries)
        return [False] * len(entries)

    compiled = make(norm, options={"guard_filter_fn": drop})
    assert [marker(compiled, each) for each in (ONE, TWO, ONE)] == [1, 2, 1]
    assert policy_guard.GUARD_TYPE in offered


@pytest.mark.parametrize("module", [False, True])
@MANY
def test_a_policy_that_is_given_holds_inside_every_call(wrap: bool, module: bool):
    class Norm(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = ops.rms_norm(x, None, EPS)
            torch._dynamo.graph_break()
            return y + 10 * ops.rms_norm(x, None, EPS)

    with ir_core.enable_torch_wrap(wrap):
        function = Norm() if module else Norm().forward
        compiled = ir_core.compile(function, backend="eager", policy=ONE)
        assert marker(compiled) == marker(compiled, TWO) == 11
        assert marker(function, TWO) == 22
        assert bool(ir_core.lowering.reports(compiled)) is wrap
        if module:
            assert isinstance(compiled, torch.nn.Module) and list(compiled.state_dict()) == []
