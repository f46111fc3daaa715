# SPDX-License-Identifier: Apache-2.0
"""Policies in threads, tasks, generators and processes: none leaks into another, whatever the order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing
import os
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import fast_path, policy
from ir_core.errors import PolicyError, UnknownProviderError
from ir_core.policy import OpPolicy, Policy

pytestmark = pytest.mark.usefixtures("alone")
X = torch.zeros(2, 4)


@pytest.fixture(params=[True, False], ids=["wrapped", "direct"])
def op(request: pytest.FixtureRequest):
    """An op whose implementations 1 and 2 add that; native adds nothing."""
    ir_core.set_default_torch_wrap(request.param)

    @ir_core.register_op
    def probe(x: Tensor) -> Tensor:
        return x.clone()

    @probe.register_impl("one")
    def one(x: Tensor) -> Tensor:
        return x + 1

    @probe.register_impl("two")
    def two(x: Tensor) -> Tensor:
        return x + 2

    return probe


def runs(op) -> int:
    """Which implementation a call here runs: twice, the slow path and the fast one."""
    first, second = int(op(X)[0, 0]), int(op(X)[0, 0])
    assert first == second
    assert op.dispatch(X).provider == ("native", "one", "two")[first]
    return first


def test_nested_scopes(op):
    assert runs(op) == 0
    with op.set_priority(["one"]):
        assert runs(op) == 1
        with op.set_priority(["two"]):
            assert runs(op) == 2
            with ir_core.scope(disabled=True):
                assert runs(op) == 0
            assert runs(op) == 2
        assert runs(op) == 1
    assert runs(op) == 0


def test_a_scope_adds_to_the_one_around_it(op):
    with ir_core.scope(batch_invariant=True), op.set_priority(["one"]):
        here = ir_core.current()
        assert here.batch_invariant
        assert here.for_op("probe").prefer == ("one",)
    with ir_core.scope(Policy(strict=True)) as mine:
        assert ir_core.current() is mine == Policy(strict=True)


def test_a_scope_ends_with_an_exception(op):
    with pytest.raises(ZeroDivisionError), op.set_priority(["one"]):
        raise ZeroDivisionError
    assert runs(op) == 0
    with pytest.raises(UnknownProviderError), op.set_priority(["one"]), op.set_priority(["nope"]):
        pass
    assert runs(op) == 0
    assert policy.scoped() is None


def test_a_scope_that_cannot_be_made_leaves_nothing(op):
    with pytest.raises(PolicyError, match="no field stric"), ir_core.scope(stric=True):
        pass
    with pytest.raises(PolicyError), ir_core.scope(prefer="one"):
        pass
    assert policy.scoped() is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_overlapping_scopes_end_in_any_order(op, order):
    scopes = [op.set_priority(["one"]), op.set_priority(["two"]), ir_core.scope(disabled=True)]
    values = [1, 2, 0]
    for scope, value in zip(scopes, values, strict=True):
        scope.__enter__()
        assert runs(op) == value
    open_ones = [0, 1, 2]
    for which in order:
        scopes[which].__exit__(None, None, None)
        open_ones.remove(which)
        assert runs(op) == (values[open_ones[-1]] if open_ones else 0)
    assert policy.scoped() is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_overlapping_torch_wrap_blocks_end_in_any_order(order):
    blocks = [ir_core.enable_torch_wrap(False), ir_core.enable_torch_wrap(True)]
    for block in blocks:
        block.__enter__()
    assert policy.wrap_of(policy.here())
    for which in order:
        blocks[which].__exit__(None, None, None)
    assert policy.wrap_of(policy.here())


def test_generators_take_their_scope_with_them(op):
    def steps(name: str):
        with op.set_priority([name]):
            yield runs(op)
            yield runs(op)

    first, second = steps("one"), steps("two")
    assert next(first) == 1
    assert next(second) == 2
    first.close()  # not the innermost
    assert runs(op) == 2
    second.close()
    assert runs(op) == 0
    assert policy.scoped() is None


def test_an_exit_stack_closed_in_another_context_does_no_harm(op):
    stack = ExitStack()
    stack.enter_context(op.set_priority(["one"]))
    contextvars.Context().run(stack.pop_all().close)  # where the scope never was
    assert runs(op) == 1  # here it is still open
    policy._scoped._blocks.set(None)


def test_a_thread_starts_under_the_default(op):
    seen: list[int] = []
    with op.set_priority(["one"]):
        thread = threading.Thread(target=lambda: seen.append(runs(op)))
        thread.start()
        thread.join()
        assert runs(op) == 1
    assert seen == [0]


def test_two_threads_at_once(op):
    barrier = threading.Barrier(2, timeout=30)
    results: dict[str, list[int]] = {}

    def work(name: str) -> None:
        found = results.setdefault(name, [])
        for _ in range(20):
            barrier.wait()
            with op.set_priority([name]):
                barrier.wait()
                found.append(runs(op))
                barrier.wait()
            found.append(runs(op))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"one": [1, 0] * 20, "two": [2, 0] * 20}


def test_calls_while_the_default_changes(op):
    """Tables are dropped and made under the feet of callers; each call runs one of the two, none fails."""
    stop, wrong = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            try:
                if int(op(X)[0, 0]) not in (1, 2):
                    wrong.append("native ran")
            except Exception as error:
                wrong.append(repr(error))

    op.set_default(["one"])
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        op.set_default([("one", "two")[turn % 2]])
        assert runs(op) == 1 + turn % 2  # in this thread at once
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert runs(op) == 2


def test_asyncio_tasks(op):
    async def work(name: str, others: asyncio.Barrier) -> list[int]:
        found = [runs(op)]
        with op.set_priority([name]):
            await others.wait()
            found.append(runs(op))
            await others.wait()
        await others.wait()
        return [*found, runs(op)]

    async def main() -> list[list[int]]:
        barrier = asyncio.Barrier(2)
        return await asyncio.gather(work("one", barrier), work("two", barrier))

    assert asyncio.run(main()) == [[0, 1, 0], [0, 2, 0]]
    assert runs(op) == 0


def test_a_task_keeps_the_scope_it_was_made_in(op):
    async def later(ready: asyncio.Event) -> int:
        await ready.wait()
        return runs(op)

    async def main() -> tuple[int, int, int]:
        ready = asyncio.Event()
        with op.set_priority(["one"]):
            task = asyncio.create_task(later(ready))
            in_thread = await asyncio.to_thread(runs, op)
        ready.set()
        return await task, in_thread, runs(op)

    assert asyncio.run(main()) == (1, 1, 0)


def test_a_scope_of_a_task_does_not_reach_its_maker(op):
    async def child(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with op.set_priority(["two"]):
            entered.set()
            await leave.wait()

    async def main() -> list[int]:
        entered, leave = asyncio.Event(), asyncio.Event()
        with op.set_priority(["one"]):
            task = asyncio.create_task(child(entered, leave))
            await entered.wait()
            during = runs(op)
            leave.set()
            await task
            return [during, runs(op)]

    assert asyncio.run(main()) == [1, 1]


def test_an_async_generator_closed_by_another_task(op):
    async def steps():
        with op.set_priority(["one"]):
            yield runs(op)

    async def main() -> int:
        generator = steps()
        assert await anext(generator) == 1
        await asyncio.create_task(generator.aclose())
        return runs(op)

    assert (
        asyncio.run(main()) == 1
    )  # what the generator leaked into its caller; gone with the caller's context
    assert runs(op) == 0


def test_torch_wrap_is_scoped_too(op):
    default = policy.wrap_of(policy.here())
    seen: list[bool] = []
    with ir_core.enable_torch_wrap(not default):
        assert policy.wrap_of(policy.here()) is not default
        thread = threading.Thread(target=lambda: seen.append(policy.wrap_of(policy.here())))
        thread.start()
        thread.join()
        assert runs(op) == 0
        with op.set_priority(["one"]):
            assert runs(op) == 1
    assert seen == [default]
    assert policy.wrap_of(policy.here()) is default


def test_an_executor_does_not_take_a_scope_along(op):
    with concurrent.futures.ThreadPoolExecutor(1) as pool, op.set_priority(["one"]):
        assert pool.submit(runs, op).result() == 0
        assert pool.submit(contextvars.copy_context().run, runs, op).result() == 1
        assert pool.submit(runs, op).result() == 0


# -- the default of the process


def test_set_default_is_for_every_thread(op):
    op.set_default(["two"])
    assert runs(op) == 2
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(runs(op)))
    thread.start()
    thread.join()
    assert seen == [2]
    with op.set_priority(["one"]):
        assert runs(op) == 1
        op.set_default(["native"])
        assert runs(op) == 1
    assert runs(op) == 0


def test_defaults_survive_a_refresh_of_the_environment(op, environment):
    op.set_default(["two"])
    environment(VLLM_BATCH_INVARIANT="1")
    assert ir_core.current().batch_invariant
    assert runs(op) == 2
    policy.reset_default(forget_changes=True)
    assert ir_core.current().batch_invariant
    assert runs(op) == 1  # the mode holds without any list


def test_change_default_is_any_change(op):
    ir_core.change_default(lambda old: old.with_op("probe", OpPolicy(only=("one",))))
    assert runs(op) == 1


# -- processes


def test_spawn_starts_from_the_environment():
    rms_norm = ir_core.ops.rms_norm
    rms_norm.set_default(["portable"])
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with rms_norm.set_priority(["native"]):
        process = context.Process(target=_spawned, args=(queue,))
        process.start()
        process.join(120)
    assert process.exitcode == 0  # it would never answer
    found = queue.get()
    assert found == (Policy().to_dict(), True)


def _spawned(queue) -> None:
    queue.put((ir_core.current().to_dict(), policy.scoped() is None))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_a_copy_that_changes_nothing_here(op):
    op.set_default(["one"])
    assert runs(op) == 1
    reader, writer = os.pipe()
    with op.set_priority(["two"]):
        child = os.fork()
        if child == 0:  # no test may go on in the child, whatever happens
            try:
                inside = runs(op)
                op.set_default(["native"])
                found = [inside]
                with ir_core.scope(disabled=True):
                    found.append(runs(op))
                os.write(writer, ",".join(map(str, found)).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            assert stream.read() == "2,0"
        assert runs(op) == 2
    assert runs(op) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_selects_does_not_hang(op):
    """The locks of a thread that does not exist in the child must not stay taken there."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with fast_path._lock, policy._lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        worker = threading.Thread(target=lambda: (op.set_default(["one"]), runs(op)), daemon=True)
        worker.start()
        worker.join(20)
        os._exit(1 if worker.is_alive() else 0)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
