# SPDX-License-Identifier: Apache-2.0
"""Predicates see facts, never rows; every answer is recorded, and the selection rests on nothing else."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ir_core
from ir_core import facts, policy
from ir_core.errors import PredicateError
from ir_core.facts import TensorFacts
from ir_core.policy import OpPolicy, Policy

pytestmark = pytest.mark.usefixtures("alone")

PARAMS = ("x", "weight", "epsilon")


def ask(predicate, x=None, weight=None, epsilon=1e-6):
    reads: list[facts.Read] = []
    x = torch.zeros(3, 8) if x is None else x
    return facts.ask(predicate, PARAMS, ("x",), (x, weight, epsilon), reads), reads


ALLOWED = {
    "dtype": lambda x: x.dtype is torch.float32,
    "device": lambda x: x.device == torch.device("cpu"),
    "is_cpu": lambda x: x.is_cpu,
    "is_cuda": lambda x: not x.is_cuda,
    "ndim": lambda x: x.ndim == 2,
    "dim()": lambda x: x.dim() == 2,
    "len(shape)": lambda x: len(x.shape) == 2,
    "shape[-1]": lambda x: x.shape[-1] == 8,
    "shape[1]": lambda x: x.shape[1] == 8,
    "size(-1)": lambda x: x.size(-1) == 8,
    "size(dim=-1)": lambda x: x.size(dim=-1) == 8,
    "size()[-1]": lambda x: x.size()[-1] == 8,
    "element_size": lambda x: x.element_size() == 4,
    "is_floating_point": lambda x: x.is_floating_point(),
}

REFUSED = {
    "shape[0]": lambda x: x.shape[0] == 1,
    "shape[-2]": lambda x: x.shape[-2] == 1,
    "shape[:1]": lambda x: x.shape[:1],
    "iterate": lambda x: list(x.shape),
    "unpack": lambda x: (lambda rows, width: rows)(*x.shape),
    "compare": lambda x: x.shape == (3, 8),
    "compare not": lambda x: x.shape != (3, 8),
    "in": lambda x: 3 in x.shape,
    "size(0)": lambda x: x.size(0),
    "size(dim=0)": lambda x: x.size(dim=0),
    "stride(-1)": lambda x: x.stride(-1),  # the number of rows, in a transposed batch
    "stride(0)": lambda x: x.stride(0),
    "stride()": lambda x: x.stride(),
    "numel": lambda x: x.numel(),
    "nelement": lambda x: x.nelement(),
    "is_contiguous": lambda x: x.is_contiguous(),
    "data_ptr": lambda x: x.data_ptr(),
    "storage_offset": lambda x: x.storage_offset(),
    "untyped_storage": lambda x: x.untyped_storage(),
    "values": lambda x: x.sum(),
    "item": lambda x: x.item(),
    "reshape": lambda x: x.reshape(-1).shape[-1],
    "view": lambda x: x.view(-1, 8),
    "transpose": lambda x: x.T,
    "index": lambda x: x[0],
    "length": lambda x: len(x),
    "truth": lambda x: bool(x),
    "getattr": lambda x: getattr(x, "nbytes"),  # noqa: B009
    "sum of shape": lambda x: sum(x.shape),
    "torch function": lambda x: torch.numel(x),
    "numpy": lambda x: x.numpy(),
    "float": lambda x: float(x),
    "shape.numel": lambda x: x.shape.numel(),
    "rows": lambda x: [row for row in x],  # noqa: C416
    "int": lambda x: int(x),
    "torch.add": lambda x: torch.add(x, other=1),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_predicate_may_see(name: str):
    question = ALLOWED[name]
    reason, reads = ask(lambda x, weight, epsilon: bool(question(x)))
    assert reason is None
    assert len(reads) >= 3  # both Nones or not, and the fact


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_predicate_may_not_see(name: str):
    question = REFUSED[name]
    with pytest.raises(PredicateError) as caught:
        ask(lambda x, weight, epsilon: bool(question(x)))
    text = str(caught.value)
    assert "of 'x'" in text
    assert "how many rows" in text
    assert "Decide from dtype" in text
    assert isinstance(caught.value, RuntimeError)


def test_a_weight_may_be_seen_whole():
    weight = torch.zeros(4, 5, 6)
    reason, reads = ask(
        lambda x, weight, epsilon: weight.shape[0] == 4 and weight.size(-2) == 5, weight=weight
    )
    assert reason is None
    assert ("weight", "size:0", 4) in reads
    assert ("weight", "size:1", 5) in reads
    with pytest.raises(PredicateError, match="IndexError"):
        ask(lambda x, weight, epsilon: weight.shape[3] == 1, weight=weight)
    reason, reads = ask(lambda x, weight, epsilon: weight.stride(0) == 30, weight=weight)
    assert reason is None
    assert ("weight", "stride:0", 30) in reads
    with pytest.raises(PredicateError, match="stride"):
        ask(lambda x, weight, epsilon: weight.stride(), weight=weight)


def test_answers_are_those_of_the_tensor_and_are_recorded():
    x = torch.zeros(2, 3, 4, dtype=torch.float16).transpose(1, 2)
    reads: list[facts.Read] = []
    seen = TensorFacts("x", x, True, reads)
    assert seen.dtype is torch.float16
    assert seen.element_size() == 2
    assert seen.ndim == 3
    assert seen.shape[-1] == seen.size(2) == 3
    assert set(reads) == {
        ("x", "dtype", torch.float16),
        ("x", "ndim", 3),
        ("x", "last", 3),
    }
    assert repr(seen) == "TensorFacts(x)"


def test_a_scalar_is_recorded_only_if_the_predicate_names_it():
    assert ("epsilon", "value", 1e-6) in ask(lambda x, weight, epsilon: epsilon < 1)[1]
    assert not any(read[0] == "epsilon" for read in ask(lambda x, weight, epsilon: True)[1])


def test_a_predicate_that_cannot_be_looked_into_reads_every_scalar():
    def inner(x, weight, epsilon):
        return True

    @functools.wraps(inner)
    def wrapped(*args):
        return inner(*args)

    class Callable:
        def __call__(self, x, weight, epsilon):
            return True

    for predicate in (wrapped, functools.partial(inner), Callable()):
        assert ("epsilon", "value", 1e-6) in ask(predicate)[1]


def test_a_scalar_used_by_an_inner_function_is_recorded():
    def predicate(x, weight, epsilon):
        return all(epsilon > bound for bound in (0, 1e-9))

    assert ("epsilon", "value", 1e-6) in ask(predicate)[1]


def test_none_or_not_is_always_recorded():
    assert ("weight", "none", True) in ask(lambda x, weight, epsilon: True)[1]
    assert ("weight", "none", False) in ask(lambda x, weight, epsilon: True, weight=torch.zeros(1))[1]


def test_answers_of_a_predicate():
    def my_predicate(x, weight, epsilon):
        return answer

    answer: object = True
    assert ask(my_predicate)[0] is None
    answer = "no room"
    assert ask(my_predicate)[0] == "no room"
    answer = False
    assert "my_predicate refuses" in str(ask(my_predicate)[0])
    for answer in (None, 1, 0, torch.tensor(True), [], object()):  # noqa: B007  the predicate reads it
        with pytest.raises(PredicateError, match=r"must return True, False") as caught:
            ask(my_predicate)
        assert "my_predicate" in str(caught.value)


def test_a_predicate_that_raises_is_named():
    def my_predicate(x, weight, epsilon):
        raise ZeroDivisionError("oh")

    with pytest.raises(PredicateError, match=r"my_predicate raised ZeroDivisionError: oh") as caught:
        ask(my_predicate)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# -- and in a selection


@pytest.fixture
def op():
    def probe(x: Tensor, weight: Tensor | None, epsilon: float, sizes: list[int] | None = None) -> Tensor:
        return x.clone()

    return ir_core.register_op(probe)


def offer(op, predicate, provider="other"):
    def other(x: Tensor, weight: Tensor | None, epsilon: float, sizes: list[int] | None = None) -> Tensor:
        return x + 1

    op.register_impl(provider, supports_args=predicate)(other)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_predicate_that_asks_for_rows_loses_its_candidacy(op, name: str):
    question = REFUSED[name]
    offer(op, lambda x, weight, epsilon, sizes=None: bool(question(x)))
    mine = Policy(ops={"probe": OpPolicy(prefer=("other",))})
    outcome = ir_core.select(
        op, mine, ir_core.Target(device="cpu", kind="cpu"), (torch.zeros(3, 8), None, 0.0, None)
    )
    assert outcome.provider == "native"
    assert "its predicate is broken" in outcome.candidates[0].reason


def test_supports_args_is_asked_of_facts_too(op):
    offer(op, lambda x, weight, epsilon, sizes=None: x.shape[-1] == 8)
    impl = op.impls["other"]
    assert not impl.supports_all_args
    assert impl.supports_args(torch.zeros(3, 8), None, epsilon=0.0)
    assert not impl.supports_args(torch.zeros(8, 3), None, 0.0)
    offer(op, lambda x, weight, epsilon, sizes=None: x.shape[0] == 8, "broken")
    with pytest.raises(PredicateError, match=r"probe/broken: A predicate may not read"):
        op.impls["broken"].supports_args(torch.zeros(3, 8), None, 0.0)


def test_a_list_is_compared_by_its_contents(op):
    offer(op, lambda x, weight, epsilon, sizes=None: sizes is not None and sizes[0] == 1)
    x, sizes = torch.zeros(2), [1, 2]
    with op.set_priority(["other"]), ir_core.enable_torch_wrap(False):
        assert op(x, None, 0.0, sizes)[0] == 1
        assert op(x, None, 0.0, sizes)[0] == 1
        sizes[0] = 3
        assert op(x, None, 0.0, sizes)[0] == 0
        assert op(x, None, 0.0, [1, 9])[0] == 1
        assert op(x, None, 0.0)[0] == 0
        assert op(x, None, 0.0, [1])[0] == 1


layouts = st.sampled_from(["contiguous", "padded", "every second", "offset"])


def lay_out(rows: int, width: int, layout: str) -> Tensor:
    if layout == "contiguous":
        return torch.zeros(rows, width)
    if layout == "padded":
        return torch.zeros(rows, width + 3)[:, :width]
    if layout == "every second":
        return torch.zeros(rows * 2, width)[::2]
    return torch.zeros(rows * width + 1)[1:].view(rows, width)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 33), min_size=2, max_size=4),
    width=st.integers(1, 17),
    how=st.lists(layouts, min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    pick=st.sampled_from(sorted(ALLOWED)),
)
def test_a_selection_does_not_depend_on_rows_or_their_layout(rows, width, how, dtype, pick):
    """Whatever an accepted predicate asks, calls that differ in rows and row layout only get the same answers."""
    question = ALLOWED[pick]
    answers = {
        ask(lambda x, weight, epsilon: bool(question(x)), lay_out(n, width, layout).to(dtype))[0]
        for n in rows
        for layout in how
    }
    assert len(answers) == 1


def test_a_broken_predicate_is_reported_once(op, caplog: pytest.LogCaptureFixture):
    offer(op, lambda x, weight, epsilon, sizes=None: 1 / 0)
    with caplog.at_level(logging.WARNING, "ir_core"), op.set_priority(["other"]):
        for rows in range(3):
            op(torch.zeros(rows, 8), None, 0.0)
    assert [r.levelname for r in caplog.records if "predicate is broken" in r.getMessage()] == ["WARNING"]
    policy.reset_default()
