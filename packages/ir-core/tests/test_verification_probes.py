# SPDX-License-Identifier: Apache-2.0
"""Probes, the schedule and random cases, each by itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutants
import pytest
import torch

import ir_core
from ir_core import ops
from ir_core.verification import (
    Case,
    Certificate,
    arguments,
    layouts,
    one_call,
    orders,
    pool,
    probes,
    random_cases,
    schedule,
    verify,
)  # fmt: skip
from ir_core.verification.calls import Call, Setting
from ir_core.verification.outcome import PASSED, Failed, Skipped
from ir_core.verification.prober import Prober, evaluate
from ir_core.verification.recorder import Recorder
from ir_core.verification.schedule import Stage, Step, Steps
from ir_core.verification.session import target_for
from ir_core.verification.subject import Subject

DOCS = Path(__file__).parents[3] / "docs" / "verification.md"
CPU = target_for("cpu")


@pytest.fixture
def scratch() -> Iterator[dict[str, Any]]:
    yield mutants.register()
    mutants.unregister()


# -- the table -----------------------------------------------------------------------------------------------


def test_each_probe_is_a_record_and_the_page_says_the_same() -> None:
    page = DOCS.read_text("utf-8")
    for name, probe in probes.PROBES.items():
        assert probe.name == name and probe.calls >= 1.0
        assert all(said.endswith((".", "likelier.")) for said in (probe.checks, probe.means)), name
        assert probe.todo, name
        assert f"| `{name}` | {probe.checks} | {probe.means} |" in page, name


# -- 7: arguments that are no activation ---------------------------------------------------------------------


def test_a_kept_weight_is_found_by_other_values_in_between(scratch: dict[str, Any]) -> None:
    call = Call("float32", 40, rows=5)
    for provider, name, said in (
        ("first_weight", "weight", ("takes no notice of another weight",)),
        # Another weight may get the memory of the one before, which is as good as rewriting it.
        (
            "weight_by_address",
            "weight",
            ("weight is rewritten in its memory", "takes no notice", "stale", "with another weight"),
        ),
        ("first_epsilon", "epsilon", ("takes no notice of another epsilon",)),
    ):
        subject = Subject(scratch[f"scratch_norm/{provider}"], CPU)
        outcome = arguments.arguments(subject, call.but(statics=f"{name}#1"))
        assert isinstance(outcome, Failed) and any(part in outcome.said for part in said), outcome
    for provider in ("canonical", "keeps_weights"):
        for name in ("weight", "epsilon", ""):
            subject = Subject(scratch[f"scratch_norm/{provider}"], CPU)
            assert arguments.arguments(subject, call.but(statics=f"{name}#2")) == PASSED


def test_every_op_of_the_core_heeds_its_arguments() -> None:
    for op in (ops.rms_norm, ops.fused_add_rms_norm, ops.gelu_and_mul_sparse):
        for provider in ("native", "portable"):
            subject = Subject(op.impls[provider], CPU)
            for dtype in ("float32", "bfloat16"):
                outcome = arguments.arguments(subject, Call(dtype, 40, rows=5, statics="#1"))
                assert outcome == PASSED, (op.name, provider, outcome)


# -- 8: random cases -----------------------------------------------------------------------------------------


def drawn(impl: ir_core.IrOpImpl, number: int, seed: int = 0) -> tuple[Prober, list[Case]]:
    """A prober after so many random cases, and the cases."""
    prober = Prober(impl, CPU, seed)
    assert prober.accept(Setting("float32", 32)) and prober.accept(Setting("bfloat16", 32))
    prober.run(Case("runs", prober.call(Setting("float32", 32), rows=64)))
    seen: list[Case] = []
    run = prober.run
    prober.run = lambda case, **options: (seen.append(case), run(case, **options))[1]  # type: ignore[method-assign]
    schedule.run_alone(prober, random_cases.steps(prober, number), 120.0)
    return prober, seen


def test_random_cases_are_drawn_from_the_seed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_cases, "SECONDS", 0.02)
    impl = ops.rms_norm.impls["portable"]
    prober, one = drawn(impl, 60)
    assert not prober.found, next(iter(prober.found.values())).text()
    _, two = drawn(impl, 60)

    def static(cases: list[Case]) -> set[tuple[object, ...]]:  # rows follow what calls cost at the time
        return {(c.call.dtype, c.call.hidden, c.call.variant, c.call.values, c.call.statics) for c in cases}

    assert len(static(one) & static(two)) > 0.8 * len(static(one))
    assert static(one) != static(drawn(impl, 24, seed=1)[1])
    certificate = prober.recorder.certificate(1.0)
    assert sum(certificate.random.values()) == len(one) and "rows" in certificate.random
    assert certificate.cases == {"runs": 1}
    ranges = certificate.ranges
    assert ranges["rows"][0] < 10 and ranges["rows"][1] > 300  # more rows than any pool has
    assert ranges["columns"][0] < ranges["columns"][1] and ranges["rank"][1] == 4
    assert len(ranges["modes"]) > 2 and ranges["variants"]
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    assert "random cases" in certificate.summary()


def test_every_kind_of_memory_and_argument_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_cases, "SECONDS", 0.01)
    _, cases = drawn(ops.rms_norm.impls["portable"], 150)
    free = [layouts.Free.parse(c.call.layout) for c in cases if c.call.layout.startswith("free:")]
    for name, plain in vars(layouts.Free()).items():
        assert {getattr(layout, name) for layout in free} != {plain}, name
    assert {c.probe for c in cases} >= {"rows", "arguments", "numerics"}
    assert len({c.call.values for c in cases}) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_free_layout_holds_the_same_rows(dtype: torch.dtype) -> None:
    x, weight = torch.randn(12, 10).to(dtype), torch.randn(10)
    for text in (
        "free:rank=4",
        "free:rank=3,gap=3,turned=1",
        "free:offset=5,step=3,column=2,statics=1",
        "free:rank=4,offset=1,gap=7,step=2,turned=1,shared=1,statics=1",
    ):
        layout = layouts.Free.parse(text)
        assert str(layout) == text
        laid, beside = layout.apply([x, weight], [True, False])
        assert torch.equal(laid.reshape(12, 10), x) and torch.equal(beside, weight)
        assert laid.dim() == layout.rank
        same = laid.untyped_storage().data_ptr() == beside.untyped_storage().data_ptr()
        assert same == bool(layout.shared)
    (lone,) = layouts.Free(rank=1, offset=3).apply([x[:1]], [True])
    assert lone.shape == (10,) and lone.storage_offset() == 3
    with pytest.raises(ir_core.errors.CertificateError, match="no layout"):
        layouts.Free.parse("free:what")


def test_cancelling_values_cancel() -> None:
    made = pool.make_pool(
        ops.fused_add_rms_norm, Setting("float32", 64), 0, torch.device("cpu"), values="cancelling"
    )
    assert not made[0].double().sum(-1).any()
    assert not (made[0] + made[1])[::2].any() and (made[0] + made[1])[1::2].any()


# -- 10: passed, failed, skipped -----------------------------------------------------------------------------


def test_portable_is_asked_in_threads_where_triton_interprets() -> None:
    """``requires`` is never None: it asks nothing of the device, so nothing is interpreted."""
    interpreting = dataclasses.replace(CPU, features=CPU.features | {"triton_interpreter"})
    calls = []
    impl = ops.rms_norm.impls["portable"]
    subject = Subject(impl, interpreting)
    subject.arguments = (lambda ask: lambda call: calls.append(call) or ask(call))(subject.arguments)  # type: ignore[method-assign]
    assert one_call.threads(subject, Call("float32", 40, rows=5)) == PASSED
    assert len(calls) == 28  # four alone, and six in each of four threads


def test_a_required_probe_that_is_skipped_leaves_no_certificate(scratch: dict[str, Any]) -> None:
    op = ir_core.IrOp.registry[mutants.NORM]
    fn = scratch["scratch_norm/canonical"].impl_fn
    impl = op.register_impl("interpreted", requires="sm>=8.0 | triton_interpreter", batch_invariant=True)(fn)
    interpreting = dataclasses.replace(CPU, features=CPU.features | {"triton_interpreter"})
    prober = Prober(impl, interpreting)
    case = Case("threads", Call("float32", 40, rows=5))
    assert isinstance(evaluate(prober.subject, case), Skipped)
    prober.run(case)
    certificate = prober.recorder.certificate(1.0)
    assert certificate.verdict == "inconclusive" and certificate.cases == {}
    assert certificate.summary().startswith("skipped: threads: Triton's interpreter is not thread-safe")
    prober = Prober(impl, interpreting)
    prober.run(case, required=False)
    assert prober.recorder.certificate(1.0).verdict == "certified"


# -- 12: the schedule ----------------------------------------------------------------------------------------


class Slowed:
    """A machine on which every step takes so many times what was expected."""

    def __init__(self, times: float) -> None:
        self.now, self.times = 0.0, times

    def monotonic(self) -> float:
        return self.now

    def worker(self, steps: list[Step]) -> tuple[schedule.Worker, Steps, dict[str, list[str]]]:
        worker = type("Worker", (), {})()
        worker.recorder, worker.spent, worker.doing = Recorder(ops.rms_norm.impls["portable"], CPU), 0.0, ""
        done: dict[str, list[str]] = {"ran": [], "not": []}

        def generator() -> Steps:
            late = []
            for step in steps:
                if (yield step):
                    self.now += self.times * step.seconds
                    done["ran"].append(step.what)
                elif step.stage is Stage.PLANNED:
                    late.append(step._replace(stage=Stage.PUT_OFF))
            for step in late:
                if (yield step):
                    self.now += self.times * step.seconds
                    done["ran"].append(step.what)
                else:
                    done["not"].append(step.what)

        return worker, generator(), done


def test_cheap_required_steps_are_reached_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dear steps stand first, and each takes four times what is expected: the budget is gone before the cheap ones."""
    machine = Slowed(4.0)
    monkeypatch.setattr(schedule, "time", machine)
    dear = [Step("compiled", f"dear {i}", 1.0) for i in range(3)]
    cheap = [Step("rows", f"cheap {i}", 0.05) for i in range(50)]
    optional = [Step("memory", "optional", 0.05, required=False)]
    workers = [machine.worker([*dear, *cheap[:25], *optional, *cheap[25:]]) for _ in range(2)]
    schedule.share_time({worker: steps for worker, steps, _ in workers}, deadline=12.0, overtime=12.0)
    for _, _, done in workers:
        assert {step.what for step in cheap} <= set(done["ran"])
        assert set(done["not"]) == {step.what for step in (*dear, *optional)} - set(done["ran"])
    assert machine.now <= 24.0 + 4.0


def test_random_steps_take_the_rest_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Slowed(1.0)
    monkeypatch.setattr(schedule, "time", machine)
    planned = [Step("rows", f"planned {i}", 0.1) for i in range(10)]
    random = [Step("rows", f"random {i}", 0.1, False, Stage.RANDOM) for i in range(1000)]
    first, second = machine.worker([*planned, *random]), machine.worker([*planned, *random])
    schedule.share_time({w: steps for w, steps, _ in (first, second)}, deadline=10.0, overtime=10.0)
    for _, _, done in (first, second):
        assert done["ran"][:10] == [step.what for step in planned]
        assert 30 < len(done["ran"]) < 60  # half of ten seconds each
    assert 9.5 < machine.now <= 10.0


def test_the_whole_budget_is_used(scratch: dict[str, Any]) -> None:
    start = time.monotonic()
    impl = scratch["scratch_norm/canonical"]
    prober = Prober(impl, CPU)
    assert prober.accept(Setting("float32", 32))
    schedule.share_time({prober: random_cases.steps(prober)}, start + 3.0)
    assert 2.0 < time.monotonic() - start < 10.0
    assert not prober.refuted and sum(prober.recorder.random.values()) > 5


# -- 22: tolerances ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [mutants.SOFTMAX, mutants.LAYER_NORM])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_meaning_of_torch_functions_is_inside_its_own_bound(
    name: str, dtype: str, scratch: dict[str, Any]
) -> None:
    """No tolerance is declared: the default alone refuted these."""
    op = ir_core.IrOp.registry[name]
    for hidden, seeds in ((8, 3), (160, 3), (4096, 1)):
        for seed in range(seeds):
            call = Call(dtype, hidden, rows=33, seed=seed)
            for provider in (
                "native",
                "polynomial_softmax" if name == mutants.SOFTMAX else "two_pass_layer_norm",
            ):
                assert one_call.numerics(Subject(op.impls[provider], CPU), call) == PASSED


def test_a_failure_says_whether_the_implementation_or_the_bound_is_the_likelier_culprit(
    scratch: dict[str, Any],
) -> None:
    call = Call("float32", 160, rows=33)
    wrong = one_call.numerics(Subject(scratch["scratch_softmax/softmax_in_bfloat16"], CPU), call)
    assert isinstance(wrong, Failed)
    assert "The implementation is the likelier culprit: its error is" in wrong.said
    op = ir_core.IrOp.registry[mutants.SOFTMAX]
    op.override_tolerance(torch.float32, rtol=2.0**-26, atol=0.0)
    native = one_call.numerics(Subject(op.impls["native"], CPU), call)
    assert isinstance(native, Failed)
    assert "The bound is the likelier culprit" in native.said and "override_tolerance" in native.said


def test_numbers_are_compared_at_generated_values_only(scratch: dict[str, Any]) -> None:
    """An op's tolerance is meant for these; a case with others of the same setting asks the same."""
    subject = Subject(ops.gelu_and_mul_sparse.impls["portable"], CPU)
    call = Call("float16", 85, rows=2, variant="std_multiplier=0.0")
    for values in pool.VALUES:
        assert all(
            torch.equal(a, b) if torch.is_tensor(a) else a == b
            for a, b in zip(subject.generated(call.but(values=values)), subject.generated(call), strict=True)
        )
    assert arguments.arguments(subject, call.but(values="spread", statics="std_multiplier#4")) == PASSED


# -- orders --------------------------------------------------------------------------------------------------


def test_an_order_is_held_against_portable_element_by_element(scratch: dict[str, Any]) -> None:
    flushes = Subject(scratch["scratch_norm/flushes_subnormals"], CPU)
    plain = Call("float32", 64, rows=33)
    assert orders.order(flushes, plain) == PASSED  # usual values do not show it
    outcome = orders.order(flushes, plain.but(values="edges"))
    assert isinstance(outcome, Failed) and "in portable" in outcome.said
    assert all(
        orders.order(Subject(scratch["scratch_norm/canonical"], CPU), plain.but(values=values)) == PASSED
        for values in pool.VALUES
    )
    assert orders.order_of(scratch["scratch_norm/row_by_row"]) == ""
    assert orders.reference_of(ops.rms_norm.impls["portable"]) is None


def test_the_seed_of_a_session_is_in_the_command(scratch: dict[str, Any]) -> None:
    report = verify(
        [scratch["scratch_norm/row_parity"]],
        budget=20,
        seed=5,
        fresh_process=False,
        save=False,
        stop="first",
        random=0,
    )
    finding = report.certificates[0].finding
    assert finding is not None and finding.case["call"]["seed"] == 5


def test_what_the_op_refuses_is_no_case_of_its_implementations() -> None:
    """A weight of another dtype is no call of linear, whatever a random case drew."""
    subject = Subject(ops.linear.impls["portable"], CPU)
    refused = subject.refusal(Setting("bfloat16", 40, variant="weight=float32"))
    assert refused is not None and refused.startswith("no call of the op: linear: 'weight' is torch.float32")
    assert subject.refusal(Setting("bfloat16", 40)) is None
