# SPDX-License-Identifier: Apache-2.0
"""``batch_invariant_mode``: where it holds, how it ends, what it says of the rest, and what compiled code does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack as stack

import ir_core
from ir_core import batch_invariant_mode, ops
from ir_core.covering import known
from ir_core.covering.mode import PRESENCE, Covering
from ir_core.errors import PolicyError, UncoveredError

pytestmark = pytest.mark.usefixtures("alone")
X = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    known.forget()
    yield
    gc.collect()  # a task that has ended may wait for it
    assert stack() == []


def covered() -> bool:
    """Whether ``F.linear`` runs our op here: its float32 order is no library's, on 48 elements neither."""
    with ir_core.scope(batch_invariant=True, covers_torch=False):
        ours = ops.linear(X, WEIGHT)
    theirs = torch.einsum("mk,nk->mn", X.double(), WEIGHT.double()).float()
    got = F.linear(X, WEIGHT)
    assert not torch.equal(ours, theirs)
    return torch.equal(got, ours)


def test_it_holds_inside_the_block_alone() -> None:
    assert not ir_core.current().covering
    with batch_invariant_mode() as policy:
        assert policy.covering
        assert covered()
        assert [type(mode) for mode in stack()] == [Covering]
        with batch_invariant_mode():
            assert covered()
        assert covered()
        with ir_core.scope(batch_invariant=False):
            assert not ir_core.current().covering
    assert not ir_core.current().covering


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), batch_invariant_mode():
        1 / 0  # noqa: B018
    assert stack() == []


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(PolicyError, match="no field"):
        batch_invariant_mode(batch_invariante=True)


def test_it_decorates_functions_generators_and_coroutines() -> None:
    @batch_invariant_mode()
    def once() -> bool:
        """What it says."""
        return covered()

    @batch_invariant_mode()
    def steps() -> Iterator[bool]:
        got = yield covered()
        yield got == "sent" and covered()

    @batch_invariant_mode()
    async def later() -> bool:
        await asyncio.sleep(0)
        return covered()

    assert once()
    assert once.__doc__ == "What it says."
    made = steps()
    assert next(made)
    assert stack() == []  # the caller's code between two steps is outside
    assert made.send("sent")  # type: ignore[attr-defined]
    made.close()  # type: ignore[attr-defined]
    assert asyncio.run(later())


def test_blocks_that_overlap_end_alone() -> None:
    one, two = contextlib.ExitStack(), contextlib.ExitStack()
    one.enter_context(batch_invariant_mode())
    two.enter_context(batch_invariant_mode())
    one.close()
    assert covered()
    two.close()
    assert not ir_core.current().covering


def test_another_mode_above_it_stays() -> None:
    class Other(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

    mine = contextlib.ExitStack()
    mine.enter_context(batch_invariant_mode())
    with Other() as other:
        mine.close()
        assert stack() == [other]


def test_it_holds_in_its_thread() -> None:
    seen: list[bool] = []
    with batch_invariant_mode():
        for target in (lambda: seen.append(covered()), ir_core.bind_policy(lambda: seen.append(covered()))):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [False, True]


def test_it_holds_in_its_task() -> None:
    async def outside() -> bool:
        await asyncio.sleep(0.01)
        return ir_core.current().covering or covered()

    async def inside() -> list[bool]:
        with batch_invariant_mode():
            child = asyncio.ensure_future(outside())  # begins in what its maker is in, and outlives the block
            await asyncio.sleep(0.005)
            mine = covered()
        return [mine, await child]

    async def both() -> tuple[bool, list[bool]]:
        first, second = await asyncio.gather(outside(), inside())
        return first, second

    first, second = asyncio.run(both())
    assert not first
    assert second == [True, True]


@pytest.mark.filterwarnings("ignore:Using .torch.compile.module.:UserWarning")
def test_enable_holds_in_every_thread_that_calls_a_module() -> None:
    module = nn.Linear(48, 7, bias=False)
    module.weight = nn.Parameter(WEIGHT)
    seen: list[Tensor] = []
    with batch_invariant_mode():
        ours = F.linear(X, WEIGHT)
    with ir_core.enable(batch_invariant=True):
        assert covered()
        thread = threading.Thread(target=lambda: seen.extend((module(X).detach(), F.linear(X, WEIGHT))))
        thread.start()
        thread.join()
        with ir_core.enable(batch_invariant=True):
            assert covered()
        assert covered()
        assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(X), ours)
    assert [torch.equal(got, ours) for got in seen] == [True, True]
    assert not ir_core.current().covering
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_is_not_covered_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.rand(4)
    with caplog.at_level(logging.WARNING, "ir_core"), batch_invariant_mode():
        for _ in range(3):
            torch.special.i0(x)
            x.erfinv()
            torch.cumsum(torch.arange(4), 0)
            (x.reshape(2, 2).unsqueeze(0) * 2).to(torch.float64).max()
    named = [record.getMessage() for record in caplog.records if "cover" in record.getMessage()]
    assert len(named) == 2
    assert "special_i0" in named[0]
    assert "torch.Tensor.erfinv" in named[1]


def test_strict_refuses_what_is_not_covered() -> None:
    with batch_invariant_mode(strict=True):
        with pytest.raises(UncoveredError, match="erfinv"):
            torch.rand(4).erfinv()
        with pytest.raises(UncoveredError, match="cumsum"):
            torch.rand(4).cumsum(0)
        assert torch.arange(4).cumsum(0).tolist() == [0, 1, 3, 6]


def test_the_environment_alone_covers_nothing(environment) -> None:  # type: ignore[no-untyped-def]
    environment(VLLM_BATCH_INVARIANT="1")
    assert ir_core.current().batch_invariant
    assert not ir_core.current().covering


def chain(x: Tensor) -> Tensor:
    """Products, sums and a function: what a compiler would fuse and round elsewhere."""
    y = F.linear(x, WEIGHT.to(x.dtype))
    y = F.silu(y) * y + 1.3
    return (y / 3 - x[..., :7] * y) @ y.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_code_has_the_eager_bits_inside_and_its_own_outside(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    x = X.to(dtype)
    compiled = torch.compile(chain, fullgraph=True)
    with torch.no_grad():
        before = compiled(x)
        with batch_invariant_mode():
            inside = compiled(x)
            eager = chain(x)
        after = compiled(x)
    assert torch.equal(inside, eager)
    assert torch.equal(before, after)
    assert not torch.equal(before, inside)
    from torch._inductor import config

    assert not config.emulate_precision_casts


def test_the_gradient_of_a_row_does_not_depend_on_the_others() -> None:
    def gradient(rows: Tensor) -> Tensor:
        x = rows.clone().requires_grad_()
        y = F.silu(F.linear(x, WEIGHT))
        y.backward(torch.ones_like(y))
        assert x.grad is not None
        return x.grad

    with batch_invariant_mode():
        together = gradient(X)
        alone = torch.cat([gradient(row[None]) for row in X])
    assert torch.equal(together, alone)


def test_presence_has_one_mode() -> None:
    with batch_invariant_mode(), ir_core.enable(batch_invariant=True):
        assert len(stack()) == 1
    assert PRESENCE._enabled == 0
