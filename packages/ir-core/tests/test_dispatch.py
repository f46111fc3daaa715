# SPDX-License-Identifier: Apache-2.0
"""Call: the fast path runs what a fresh selection would choose, for every combination of facts."""

from __future__ import annotations

import functools
import itertools
import logging
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ir_core
from ir_core import fast_path, policy, resolve, torch_library
from ir_core.errors import SchemaError, SelectionError
from ir_core.policy import OpPolicy, Policy

pytestmark = pytest.mark.usefixtures("alone")

PROVIDERS = ("half_only", "wide", "weighted", "scaled", "vector", "five_wide")


def body(
    x: Tensor, weight: Tensor | None, scale: float = 1.0, size: int | None = None, mode: str = "none"
) -> Tensor:
    return x.clone()


def make_op(name: str = "probe", **kwargs) -> ir_core.IrOp:
    """An op with one implementation for each kind of fact; implementation n adds n."""
    op = ir_core.register_op(body, name=name, **kwargs)
    predicates = {
        "half_only": lambda x, weight, scale=1.0, size=None, mode="none": x.dtype is torch.float16,
        "wide": lambda x, weight, scale=1.0, size=None, mode="none": x.shape[-1] >= 8 and x.ndim > 1,
        "weighted": lambda x, weight, scale=1.0, size=None, mode="none": (
            weight is not None and weight.dtype is x.dtype and weight.shape[0] == 4
        ),
        "scaled": lambda x, weight, scale=1.0, size=None, mode="none": scale > 1,
        "vector": lambda x, weight, scale=1.0, size=None, mode="none": (
            mode == "vector" and (size is None or size < 3)
        ),
        "five_wide": lambda x, weight, scale=1.0, size=None, mode="none": x.ndim > 0 and x.shape[-1] == 5,
    }
    for number, provider in enumerate(PROVIDERS, 1):
        op.register_impl(provider, supports_args=predicates[provider])(_adding(number))
    return op


def _adding(number: int):
    def impl(
        x: Tensor, weight: Tensor | None, scale: float = 1.0, size: int | None = None, mode: str = "none"
    ) -> Tensor:
        return x + number

    return impl


def ran(result: Tensor) -> str:
    return ("native", *PROVIDERS)[int(result.reshape(-1)[0])]


calls = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        "shape": st.sampled_from([(4,), (1, 4), (3, 4), (2, 8), (2, 2, 8), (5, 16), (1,)]),
        "transposed": st.booleans(),
        "weight": st.sampled_from([None, (4, torch.float32), (4, torch.float16), (8, torch.float32)]),
        "scale": st.sampled_from([0.5, 1.0, 2.0]),
        "size": st.sampled_from([None, 1, 4]),
        "mode": st.sampled_from(["none", "vector"]),
    }
)


def arguments(call) -> tuple:
    x = torch.zeros(call["shape"], dtype=call["dtype"])
    if call["transposed"] and x.ndim > 1:
        x = x.transpose(-1, -2)
    weight = call["weight"] and torch.zeros(call["weight"][0], dtype=call["weight"][1])
    return x, weight, call["scale"], call["size"], call["mode"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    many=st.lists(calls, min_size=3, max_size=10),
    order=st.permutations(PROVIDERS),
    wrap=st.booleans(),
    scoped=st.booleans(),
)
def test_the_fast_path_chooses_as_a_selection_would(many, order, wrap, scoped):
    if "probe" not in ir_core.IrOp.registry:
        make_op()
    op = ir_core.IrOp.registry["probe"]
    asked = Policy(ops={"probe": OpPolicy(prefer=tuple(order))})
    target = ir_core.Target(device="cpu", kind="cpu")
    expected = [ir_core.select(op, asked, target, arguments(call)).provider for call in many]
    policy.reset_default(forget_changes=True)
    if not scoped:
        op.set_default(order)
    with ir_core.enable_torch_wrap(wrap), ir_core.scope(asked if scoped else policy.default()):
        for _ in range(2):  # the slow path, and the fast one after all of them
            found = [ran(op(*arguments(call))) for call in many]
            assert found == expected
            assert [op.dispatch(*arguments(call)).provider for call in many] == expected


@pytest.mark.parametrize("wrap", [True, False])
def test_every_way_to_pass_an_argument(wrap: bool):
    op = make_op()
    x, w = torch.zeros(2, 4), torch.zeros(4)
    with op.set_priority(["scaled", "vector"]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            assert ran(op(x, w)) == "native"
            assert ran(op(x, None, 2.0)) == "scaled"
            assert ran(op(x=x, weight=None, scale=2.0)) == "scaled"
            assert ran(op(x, mode="vector", weight=w)) == "vector"
            assert ran(op(x, w, 1.0, 4, "vector")) == "native"
            assert ran(op(x, w, size=2, mode="vector")) == "vector"
            assert op.dispatch(x, weight=w, mode="vector").provider == "vector"
    with ir_core.enable_torch_wrap(False):
        for args, kwargs in (
            ((x,), {}),
            ((x, w, 1.0, None, "none", 1), {}),
            ((x, w), {"x": x}),
            ((x, w), {"nope": 1}),
        ):
            with pytest.raises(TypeError):
                op(*args, **kwargs)


@pytest.mark.parametrize("wrap", [True, False])
def test_more_shapes_than_are_remembered(wrap: bool):
    op = make_op()
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            for width in range(1, fast_path.MAX_ENTRIES + 20):
                assert ran(op(torch.zeros(2, width), None)) == ("wide" if width >= 8 else "native")
        kept = [len(entries) for c in fast_path.callees(op) for entries in c.entries.values() if entries]
        assert kept
        assert all(number <= fast_path.MAX_ENTRIES for number in kept)


def test_the_number_of_rows_is_not_part_of_what_is_remembered():
    op = make_op()
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(False):
        for rows in (1, 2, 0, 33):
            op(torch.zeros(rows, 16), None)
        assert entries(op) == 1


def entries(op) -> int:
    """How many selections are remembered."""
    return sum(len(kept) for callee in fast_path.callees(op) for kept in callee.entries.values())


def selections(op, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list that every later selection for ``op`` is added to."""
    made: list[str] = []
    original = resolve.resolve

    def counted(of, *args, **kwargs):
        chosen, impl = original(of, *args, **kwargs)
        made.append(impl.provider)
        return chosen, impl

    monkeypatch.setattr(resolve, "resolve", counted)
    return made


@pytest.mark.parametrize("wrap", [True, False])
def test_equal_facts_are_selected_for_once_and_again_after_a_change(
    wrap: bool, monkeypatch: pytest.MonkeyPatch
):
    op = make_op()
    ir_core.set_default_torch_wrap(wrap)
    x = torch.zeros(2, 16)
    op(x, None)  # discovery, once
    made = selections(op, monkeypatch)

    def again(expected: str) -> None:
        made.clear()
        for _ in range(3):
            assert ran(op(x, None)) == expected
        assert made == [expected]

    op.set_default(["wide"])
    again("wide")
    op.set_default(["native"])
    again("native")
    op.set_default(["half_only", "wide"])
    again("wide")
    op.unregister_impl("half_only")
    op.register_impl("half_only")(_adding(1))
    again("half_only")
    op.unregister_impl("half_only")
    op.set_default(["wide"])
    again("wide")
    policy.reset_default()
    again("wide")
    ir_core.refresh()
    again("wide")
    ir_core.set_default_torch_wrap(wrap)
    again("wide")


def test_one_op_does_not_disturb_another(monkeypatch: pytest.MonkeyPatch):
    op, other = make_op(), make_op("other_probe")
    x = torch.zeros(2, 16)
    op(x, None)
    other(x, None)
    made = selections(op, monkeypatch)
    other.register_impl("more")(_adding(1))
    op(x, None)
    assert made == []


def test_policies_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch):
    op = make_op()
    x = torch.zeros(2, 16)
    op(x, None)
    made = selections(op, monkeypatch)
    for _ in range(3):
        with op.set_priority(["wide"]):
            assert ran(op(x, None)) == "wide"
        assert ran(op(x, None)) == "native"
    assert made.count("wide") == 1


def test_torch_wrap_decides_whether_torch_sees_the_op():
    op = make_op()
    x = torch.zeros(2, 16)

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    for wrap in (True, False, True):
        names: list[str] = []
        with ir_core.enable_torch_wrap(wrap), Seen():
            op(x, None)
        assert (str(op.torch_op) in names) is wrap


# -- in place


def pair(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    return x * scale, x_other * scale


@pytest.fixture
def pair_op():
    op = ir_core.register_op(pair, allow_inplace=True)

    @op.register_impl("in_place", inplace=True)
    def in_place(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return x.mul_(scale), x_other.mul_(scale)

    @op.register_impl("fresh")
    def fresh(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return x * scale, x_other * scale

    return op


CALLS = [
    lambda f, a, b: f(a, b),
    lambda f, a, b: f(a, b, 2.0),
    lambda f, a, b: f(a, x_other=b),
    lambda f, a, b: f(x_other=b, x=a),
    lambda f, a, b: f(scale=2.0, x_other=b, x=a),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrap", [True, False])
def test_the_functional_overload_leaves_its_inputs_alone(pair_op, wrap: bool, call):
    for provider in ("in_place", "fresh", "native"):
        with pair_op.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
            for _ in range(2):
                a, b = torch.ones(3), torch.ones(3)
                out = call(pair_op, a, b)
                assert all(torch.equal(t, torch.full((3,), 2.0)) for t in out)
                assert torch.equal(a, torch.ones(3))
                assert torch.equal(b, torch.ones(3))
                assert out[0].data_ptr() != a.data_ptr()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrap", [True, False])
def test_the_donating_overload_may_reuse_its_inputs(pair_op, wrap: bool, call):
    for provider in ("in_place", "fresh", "native"):
        with pair_op.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
            for _ in range(2):
                a, b = torch.ones(3), torch.ones(3)
                out = call(pair_op.maybe_inplace, a, b)
                assert all(torch.equal(t, torch.full((3,), 2.0)) for t in out)
                assert (out[0] is a) == (provider == "in_place") or wrap
                assert (out[0].data_ptr() == a.data_ptr()) is (provider == "in_place")


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("provider", ["in_place", "native"])
def test_one_tensor_cannot_be_donated_twice(pair_op, wrap: bool, provider: str):
    with pair_op.set_priority([provider]), ir_core.enable_torch_wrap(wrap):
        if wrap:  # later calls too; straight to the implementation only the first of its kind is looked at
            pair_op.maybe_inplace(torch.ones(3), torch.ones(3))
        for _ in range(2):
            a = torch.ones(3)
            with pytest.raises(
                ir_core.IrError, match=r"donated to pair\.maybe_inplace as 'x' and as 'x_other'"
            ):
                pair_op.maybe_inplace(a, a)
            assert torch.equal(a, torch.ones(3))
        pair_op(a, a)


def test_func_impl_fn_copies_whatever_way_the_arguments_come(pair_op):
    impl = pair_op.impls["in_place"]
    for call in CALLS:
        a, b = torch.ones(3), torch.ones(3)
        call(impl.func_impl_fn, a, b)
        assert torch.equal(a, b)
        assert a[0] == 1


def test_a_functional_form_is_called_where_inputs_must_stay():
    op, called = ir_core.ops.fused_add_rms_norm, []
    portable = op.impls["portable"].impl_fn

    def made(name: str):
        def function(
            x: torch.Tensor,
            x_residual: torch.Tensor,
            weight: torch.Tensor | None,
            epsilon: float,
            variance_size: int | None = None,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            called.append((name, x))
            return portable(x, x_residual, weight, epsilon, variance_size)

        return function

    form, donating = made("functional"), made("donating")
    with pytest.raises(SchemaError, match="functional form beside it"):
        op.register_impl("t_two_forms", functional=form)(donating)
    op.register_impl("t_two_forms", inplace=True, functional=form)(donating)
    try:
        x, r = torch.ones(2, 4), torch.ones(2, 4)
        for wrap in (True, False):
            with op.set_priority(["t_two_forms"]), ir_core.enable_torch_wrap(wrap):
                op(x, r, None, 1e-6)
                op(x, r, None, 1e-6)
                op.maybe_inplace(x, r, None, 1e-6)
        torch_library.of(op).provider("t_two_forms")(x, r, None, 1e-6)
        assert [name for name, _ in called] == ["functional", "functional", "donating"] * 2 + ["functional"]
        assert all(given is x for _, given in called)
    finally:
        op.unregister_impl("t_two_forms")


def test_the_torch_ops_of_an_implementation(pair_op):
    overload = torch_library.of(pair_op).provider("in_place")
    a, b = torch.ones(3), torch.ones(3)
    assert overload(a, b, 3.0)[0][0] == 3
    assert a[0] == 1
    assert torch_library.of(pair_op).provider("in_place", inplace=True)(a, b, 3.0) is None
    assert a[0] == b[0] == 3
    assert repr(pair_op.maybe_inplace) == "IrOp('pair').maybe_inplace"
    assert pair_op.maybe_inplace.torch_op._overloadname == "maybe_inplace"
    torch.library.opcheck(overload, (a, b, 3.0), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(pair_op.torch_op, (a, b, 3.0), test_utils=("test_schema", "test_faketensor"))


def test_a_sloppy_in_place_implementation_still_has_its_results_where_they_belong():
    op = ir_core.register_op(pair, name="sloppy_pair", allow_inplace=True)

    @op.register_impl("sloppy", inplace=True)
    def sloppy(x: Tensor, x_other: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return x * scale, x_other.mul_(scale)  # one new, one reused

    a, b = torch.ones(3), torch.ones(3)
    torch_library.of(op).provider("sloppy", inplace=True)(a, b)
    assert a[0] == b[0] == 2


def test_expanded_activations_are_copied_before_they_are_written(pair_op):
    a = torch.ones(1, 3).expand(4, 3)
    with pair_op.set_priority(["in_place"]):
        for wrap in (True, False):
            with ir_core.enable_torch_wrap(wrap):
                out, _ = pair_op(a, a)
                assert torch.equal(out, torch.full((4, 3), 2.0))


# -- tensors of other kinds


@pytest.mark.parametrize("wrap", [True, False])
def test_meta_tensors(wrap: bool):
    """They have shapes and no data: no kernel runs on them, however well their facts fit."""
    op = make_op()
    op.unregister_impl("wide")

    @op.register_impl("wide", opaque=True)
    def wide(
        x: Tensor, weight: Tensor | None, scale: float = 1.0, size: int | None = None, mode: str = "none"
    ) -> Tensor:
        return torch.from_numpy(x.numpy() + 2)

    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            out = op(torch.zeros(2, 16, device="meta"), None)
            assert out.device.type == "meta"
            assert out.shape == (2, 16)
            assert ran(op(torch.zeros(2, 16), None)) == "wide"
        assert op(torch.zeros(2, 16, device="meta", requires_grad=True), None).requires_grad


@pytest.mark.parametrize("wrap", [True, False])
def test_fake_tensors_leave_nothing_behind(wrap: bool):
    op = make_op()
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        with FakeTensorMode():
            out = op(torch.zeros(2, 16, dtype=torch.bfloat16), None)
            assert out.shape == (2, 16)
            assert out.dtype is torch.bfloat16
        assert not entries(op)
        assert ran(op(torch.zeros(2, 16), None)) == "wide"
        with FakeTensorMode():
            assert op(torch.zeros(2, 16), None).shape == (2, 16)


def test_fake_uses_native_or_what_is_registered():
    op = make_op()
    with FakeTensorMode():
        assert op(torch.zeros(3, 16), None).shape == (3, 16)
    op.register_fake(lambda x, *rest: x.new_empty(7, 7))
    with FakeTensorMode():
        assert op(torch.zeros(3, 16), None).shape == (7, 7)
    for wrap in (True, False):
        with ir_core.enable_torch_wrap(wrap):
            assert op(torch.zeros(3, 16, device="meta"), None).shape == (7, 7)
    assert op(torch.zeros(3, 16), None).shape == (3, 16)


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradient_modes(wrap: bool, mode):
    op = make_op()
    plain, learned = torch.zeros(2, 16), torch.zeros(2, 16, requires_grad=True)
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        for x, _ in itertools.product((plain, learned), range(2)):
            with mode():
                out = op(x, None)
            assert ran(out.detach()) == "wide"
            assert out.requires_grad is (x.requires_grad and mode is torch.enable_grad)
        with torch.inference_mode():
            inference = torch.zeros(2, 16)
            assert op(inference, None).is_inference()
        assert ran(op(inference, None)) == "wide"


class Loud(torch.Tensor):
    """A subclass with a torch function; it sees every torch op that its instances go into."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("wrap", [True, False])
def test_subclasses(wrap: bool):
    op = make_op()
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        for _ in range(2):
            out = op(torch.zeros(2, 16).as_subclass(Loud), None)
            assert isinstance(out, Loud)
            assert ran(out.as_subclass(Tensor)) == "wide"
        parameter = torch.nn.Parameter(torch.zeros(2, 16))
        assert ran(op(parameter, None).detach()) == "wide"


@pytest.mark.parametrize("wrap", [True, False])
def test_a_subclass_with_torch_dispatch_gets_the_op(wrap: bool):
    from torch.testing._internal.two_tensor import TwoTensor

    op = make_op()
    x = TwoTensor(torch.zeros(2, 16), torch.zeros(2, 16))
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(wrap):
        out = op(x, None)
    assert isinstance(out, TwoTensor)
    assert ran(out.a) == ran(out.b) == "wide"


def test_zero_dimensions_and_no_elements():
    op = make_op()
    with op.set_priority(["wide", "five_wide"]), ir_core.enable_torch_wrap(False):
        for _ in range(2):
            assert op(torch.zeros(()), None).shape == ()
            assert op(torch.zeros(0, 16), None).shape == (0, 16)
            assert op(torch.zeros(0), None).shape == (0,)


# -- what is logged


def test_a_fallback_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture):
    op = make_op("logged_probe")
    with caplog.at_level(logging.INFO, "ir_core"), op.set_priority(["half_only"]):
        for _ in range(3):
            op(torch.zeros(2, 16), None)
            op(torch.zeros(2, 16, dtype=torch.float16), None)
    messages = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert [level for level, text in messages] == ["WARNING", "INFO"]
    assert "logged_probe runs native on cpu. half_only: " in messages[0][1]
    assert "half_only refuses" in messages[0][1] or "refuses these arguments" in messages[0][1]
    assert messages[1][1] == "logged_probe runs half_only on cpu"


def test_falling_to_portable_is_said(caplog: pytest.LogCaptureFixture):
    def reduce(x: Tensor) -> Tensor:
        return x.clone()

    op = ir_core.register_op(reduce, name="slow_probe", has_reduction=True)
    op._register_builtin("portable", batch_invariant=True)(reduce)
    op.register_impl("quick", batch_invariant=True, supports_args=lambda x: "only on Sundays")(reduce)
    with caplog.at_level(logging.WARNING, "ir_core"), ir_core.scope(batch_invariant=True):
        op(torch.zeros(2))
    assert "slow_probe runs portable on cpu. quick: only on Sundays" in caplog.text


def test_an_error_of_an_implementation_is_its_own():
    op = make_op()

    @op.register_impl("broken")
    def broken(
        x: Tensor, weight: Tensor | None, scale: float = 1.0, size: int | None = None, mode: str = "none"
    ) -> Tensor:
        raise ZeroDivisionError("mine")

    for wrap in (True, False):
        with op.set_priority(["broken"]), ir_core.enable_torch_wrap(wrap):
            for _ in range(2):
                with pytest.raises(ZeroDivisionError, match="mine"):
                    op(torch.zeros(2), None)


def test_an_op_without_tensors():
    @ir_core.register_op
    def filled(size: int, value: float = 1.0) -> Tensor:
        return torch.full((size,), value)

    for wrap in (True, False):
        with ir_core.enable_torch_wrap(wrap):
            assert filled(3).tolist() == [1.0] * 3
            assert filled(size=2, value=2.0).tolist() == [2.0] * 2


def test_an_op_without_an_acceptable_implementation_keeps_failing():
    op = make_op()
    with ir_core.scope(Policy(ops={"probe": OpPolicy(only=("half_only",))})):
        for _ in range(2):
            with pytest.raises(SelectionError):
                op(torch.zeros(2, 4), None)
            assert ran(op(torch.zeros(2, 4, dtype=torch.float16), None)) == "half_only"


def test_an_op_called_by_an_implementation_of_another():
    inner = make_op()

    @ir_core.register_op
    def outer(x: Tensor) -> Tensor:
        return inner(x, None)

    x = torch.zeros(2, 16)
    for wrap in (True, False):
        with ir_core.enable_torch_wrap(wrap), inner.set_priority(["wide"]):
            assert ran(outer(x)) == "wide"
        assert ran(outer(x)) == "native"


def test_a_selection_is_not_reused_for_an_equal_value_of_another_type():
    """1 == 1.0 == True, and a predicate may tell them apart."""

    @ir_core.register_op
    def typed(x: Tensor, scale: float, sizes: list[int]) -> Tensor:
        return x * scale

    def whole(x: Tensor, scale: float, sizes: list[int]) -> bool:
        return type(scale) is int and all(type(size) is int for size in sizes)

    @typed.register_impl("whole", supports_args=whole)
    def whole_impl(x: Tensor, scale: float, sizes: list[int]) -> Tensor:
        return x * scale

    x = torch.ones(3)
    ran = []
    for impl in typed.impls.values():
        impl._code["impl"] = functools.partial(
            lambda run, name, *args: ran.append(name) or run(*args), impl.impl_fn, impl.provider
        )
    with typed.set_priority(["whole"]), ir_core.enable_torch_wrap(False):
        for scale, sizes in ((1, [1]), (1.0, [1]), (1, [1.0]), (True, [1]), (1, [True]), (1, [1])) * 2:
            typed(x, scale, sizes)
    assert ran == ["whole", "native", "native", "native", "native", "whole"] * 2


# -- what is remembered, and can be read


@pytest.mark.parametrize("wrap", [True, False])
def test_a_first_selection_is_not_lost(wrap: bool, monkeypatch: pytest.MonkeyPatch):
    """Packs are read and the environment too by the first call; what it selects is remembered all the same."""
    op = make_op()
    ir_core.set_default_torch_wrap(wrap)
    ir_core.refresh()
    made = selections(op, monkeypatch)
    counts = []
    for _ in range(4):
        op(torch.zeros(2, 16), None)
        counts.append(len(made))
    assert counts == [1, 1, 1, 1]


def test_a_selection_that_a_change_overtook_is_made_again(monkeypatch: pytest.MonkeyPatch):
    op = make_op()
    ir_core.set_default_torch_wrap(False)
    op.set_default(["wide"])
    original, times = resolve.resolve, []

    def overtaken(of, *args, **kwargs):
        found = original(of, *args, **kwargs)
        times.append(1)
        if len(times) == 1:
            op.set_default(["five_wide", "native"])
        return found

    monkeypatch.setattr(resolve, "resolve", overtaken)
    for _ in range(3):
        assert ran(op(torch.zeros(2, 16), None)) == "native"
    assert len(times) == 2


def test_the_generated_functions_can_be_read():
    op = make_op()
    with op.set_priority(["wide"]), ir_core.enable_torch_wrap(False):
        op(torch.zeros(2, 16), None)
        text = op.source()
    assert "def ir_probe(_ir_self, x, weight, scale=" in text
    assert "x.shape[-1] == _ir_c" in text
    tests = [line for line in op.source().splitlines() if "x.shape[-1] ==" in line]
    assert tests and all("first0" in line for line in tests)  # outside of the scope nothing was selected


def test_a_new_scope_does_not_compile_anything_again():
    """Dynamo guards on the code that it finds for a call."""
    op = make_op()
    with op.set_priority(["wide"]):
        op(torch.zeros(2, 16), None)
    before = type(op).__call__.__code__
    for provider in ("half_only", "weighted"):
        with op.set_priority([provider]):
            op(torch.zeros(2, 16), None)
    assert type(op).__call__.__code__ is before


def test_the_first_scope_is_answered_without_another_call_until_dynamo_traced_one():
    op = make_op()
    ir_core.set_default_torch_wrap(False)
    callee = fast_path.callees(op)[0]
    with op.set_priority(["wide"]):
        assert ran(op(torch.zeros(2, 16), None)) == "wide"
        within = callee.scoped
        callee.scoped = None  # what would be asked for the function of the scope
        callee.function.__globals__["_ir_scoped"] = None
        assert ran(op(torch.zeros(2, 16), None)) == "wide"
        callee.scoped = callee.function.__globals__["_ir_scoped"] = within
        with op.set_priority(["half_only"]):  # another scope, and the first again
            assert ran(op(torch.zeros(2, 16, dtype=torch.float16), None)) == "half_only"
        assert ran(op(torch.zeros(2, 16), None)) == "wide"
        with ir_core.scope(disabled=True):
            assert ran(op(torch.zeros(2, 16), None)) == "native"
        compiled = torch.compile(lambda x: op(x, None), backend="eager", fullgraph=True)
        compiled(torch.zeros(2, 16))
        code = type(op).__call__.__code__
        assert ran(op(torch.zeros(2, 16, dtype=torch.float16), None)) == "wide"
        assert type(op).__call__.__code__ is code
    ir_core.refresh()
    assert not callee.traced and callee.first is None


def test_more_scopes_than_are_remembered():
    op = make_op()
    for number in range(fast_path.MAX_SCOPES + 10):
        with op.set_priority(["wide"]), ir_core.scope(vouched={f"op_{number}"}):
            assert ran(op(torch.zeros(2, 16), None)) == "wide"
    assert all(len(callee.scoped) <= fast_path.MAX_SCOPES for callee in fast_path.callees(op))


# -- small things of compatibility


def test_a_name_twice_in_a_priority_says_what_once_does():
    op = make_op()
    with op.set_priority(["native", "native"]):
        assert op.get_priority() == ["native"]
    with op.set_priority(["half_only", "wide", "half_only"]):
        assert op.get_priority() == ["half_only", "wide", "native"]


def test_an_op_that_is_gone_breaks_no_other():
    """A default or a scope that names it stays valid."""
    op, other = make_op(), make_op("other_probe")
    op.set_default(["wide"])
    with op.set_priority(["wide"]):
        op.unregister()
        assert ran(other(torch.zeros(2, 16), None)) == "native"
    assert ran(other(torch.zeros(2, 16), None)) == "native"
    ir_core.refresh()
    assert ran(other(torch.zeros(2, 16), None)) == "native"
    assert ran(make_op()(torch.zeros(2, 16), None)) == "wide"  # it counts again when the op comes back


def test_every_answer_to_what_runs_here_is_the_same(monkeypatch: pytest.MonkeyPatch):
    """With a refuting certificate, ``select`` and ``get_priority`` do not name what a call does not run."""
    from ir_core.verification import evidence

    op, x = ir_core.ops.rms_norm, torch.zeros(2, 16)
    args = (x, None, 1e-6, None)
    op.register_impl("t_refuted", batch_invariant=True)(op.impls["portable"].impl_fn)
    monkeypatch.setattr(
        evidence,
        "certificate_for",
        lambda impl, target: _Certificate() if impl.provider == "t_refuted" else None,
    )
    monkeypatch.setattr(evidence, "_certificates", lambda: {("rms_norm", "t_refuted"): [1]})
    target = ir_core.Target(device="cpu", kind="cpu", batch_invariant=True)
    try:
        with ir_core.scope(batch_invariant=True), op.set_priority(["t_refuted"]):
            assert op.dispatch(*args).provider == "portable"
            assert ir_core.select(op, ir_core.current(), target, args).provider == "portable"
            assert op.get_priority() == ["portable"]
    finally:
        op.unregister_impl("t_refuted")


class _Certificate:
    verdict, created, order = "refuted", "today", ""

    def summary(self) -> str:
        return "rows differ"
