# SPDX-License-Identifier: Apache-2.0
"""Audits of planted faults and of clean models: every fault is answered with its place, and nothing else is named."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import audit_models as models

import ir_core
from ir_core.auditing import audit
from ir_core.errors import AuditError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that handing work to other threads takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fault", models.FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_answered_with_its_place(fault: models.Fault) -> None:
    report = audit(models.Decoder(models.Does(fault.function)), models.ids())
    assert [found.op for found in report.findings] == [fault.op], report.explain()
    assert report.first is not None and report.first.place.module == "layers.1.fault"
    assert Path(report.first.place.file).name == "audit_models.py"
    assert report.first.varied == 1
    assert report.first.begins == (fault.begins or report.first.begins)
    assert not report.notes, report.explain()


@contextmanager
def overriding(name: str, kernel: Callable[..., Any]) -> Iterator[None]:
    """Replace one of torch's own kernels for the CPU."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the point
        library.impl(name, kernel, "CPU")
    try:
        yield
    finally:
        library._destroy()


def few(x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return right if x.shape[0] > 8 else models.other(right)


def softmax(x: torch.Tensor, dim: int, half: bool) -> torch.Tensor:
    powers = (x - x.amax(dim, True)).exp()
    return few(x, powers / powers.sum(dim, True))


def layer_norm(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return few(x, x / x.abs().amax(-1, True)), x[..., :1], x[..., :1]


TORCH = {
    "aten.silu": lambda x: few(x, x * torch.sigmoid(x)),
    "aten._softmax": softmax,
    "aten.native_layer_norm": layer_norm,
}


@pytest.mark.parametrize("name", TORCH)
def test_a_fault_in_torchs_own_kernel_is_answered(name: str) -> None:
    with overriding(name.removeprefix("aten."), TORCH[name]):
        report = audit(models.Decoder(), models.ids())
    assert {found.op for found in report.findings} == {name}, report.explain()
    assert report.first is not None
    assert report.first.place.module.startswith("layers.0")


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_floats_are_named_and_nothing_else(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(64, 256), nn.LayerNorm(256), nn.Linear(256, 256, bias), nn.SiLU(), nn.Linear(256, 64)
    )
    report = audit(model, torch.randint(0, 64, (64, 1)), rows=(1, 2, 8, 32))
    assert {found.op for found in report.findings} <= {"aten.mm", "aten.addmm"}, report.explain()


@pytest.mark.parametrize("name", models.CLEAN)
def test_a_clean_model_gives_no_finding(name: str) -> None:
    report = audit(models.Clean(models.CLEAN[name]), models.activations())
    assert not report.findings, report.explain()
    assert not report.varies, report.explain()
    assert not [note for note in report.notes if note.kind == "untold"], report.explain()
    assert report.judged > 0


@pytest.mark.parametrize("change", ["alone", "first", "last"])
def test_a_decoder_is_clean_wherever_its_batch_is(change: str) -> None:
    decoder = models.Decoder()
    if change == "last":
        report = audit(lambda ids: decoder(ids.t()), models.ids().t(), batch_dim=1)
    elif change == "first":
        report = audit(lambda ids, offset: decoder((ids + offset) % 64), (models.ids(), torch.tensor(3)))
    else:
        report = audit(decoder, {"ids": models.ids()}, rows=[1])
    assert not report.varies, report.explain()


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Leaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.ones(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = x * self.last
        self.last = self.last + 1
        return result


@dataclass(frozen=True)
class Unseen:
    """Goes around torch: numpy sees the memory."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.detach().numpy()[...] *= 1 + len(x) / 64
        return y * 2


NOTES = {
    "dropout": (nn.Dropout(0.5).train(), "random", "aten.bernoulli_"),
    "sampling": (lambda x: torch.multinomial(x[:, 0].softmax(-1), 1), "random", "aten.multinomial"),
    "batch norm": (nn.BatchNorm1d(models.TOKENS).train(), "mixes", "aten.native_batch_norm"),
    "running statistic": (nn.BatchNorm1d(models.TOKENS).train(), "state", "aten.add_"),
    "scale of the whole batch": (lambda x: x / x.abs().amax(), "mixes", "aten.amax"),
    "sum over rows": (lambda x: x.cumsum(0), "mixes", "aten.cumsum"),
    "padded to the longest": (
        lambda x: x * (torch.arange(models.HIDDEN) < (x[:, 0] > 0).sum(-1).max()),
        "mixes",
        "aten.max",
    ),
    "a number that counts": (Stateful(), "state", "aten.mul"),
    "a tensor that stays": (Leaves(), "state", ""),
    "unseen": (Unseen(), "unseen", ""),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_changes_values_without_an_operation_at_fault_is_named(name: str) -> None:
    model, kind, op = NOTES[name]
    report = audit(model, models.activations())
    assert not report.findings, report.explain()
    assert report.varies
    assert (kind, op) in {(note.kind, note.op) for note in report.notes}, report.explain()


def test_a_random_call_is_not_judged_and_the_users_stream_stays_where_it_is() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    audit(nn.Sequential(nn.Dropout(0.5)).train(), models.activations())
    assert torch.equal(torch.rand(3), expected)


def test_inputs_stay_as_they_are() -> None:
    x = models.activations()
    before = x.clone()
    audit(lambda x: x.mul_(2), x)
    assert torch.equal(x, before)


def test_inputs_that_do_not_say_how_many_rows_there_are() -> None:
    with pytest.raises(AuditError, match="how many rows"):
        audit(torch.add, (torch.ones(4, 2), torch.ones(3, 2)))
    with pytest.raises(AuditError, match="no tensor"):
        audit(torch.add, (1, 2))
    with pytest.raises(AuditError, match="No part of 1 rows"):
        audit(torch.neg, torch.ones(1, 2))
    with pytest.raises(AuditError, match="no mode"):
        audit(torch.neg, torch.ones(8, 2), mode="sideways")  # type: ignore[arg-type]


def test_what_cannot_be_told_is_said() -> None:
    report = audit(lambda x: (x[:, 0] @ x[:, 0].t()).softmax(-1) @ x[:, 0], models.activations())
    assert "untold" in {note.kind for note in report.notes} or report.varies


def last_token(x: torch.Tensor) -> torch.Tensor:
    """Indices that count rows of the batch: for the last rows alone they would point past the end."""
    lengths = (x[:, 0, 0] > 0).long() + 1
    return models.exact(x)[torch.arange(len(x)), lengths] * 2


def routed_tokens(x: torch.Tensor) -> torch.Tensor:
    """A loop over what a router chose, as mixtures of experts are written."""
    flat = x.flatten(0, 1)
    expert = (flat[:, 0] > 0).long()
    out = torch.zeros_like(flat)
    for i in range(2):
        (tokens,) = torch.where(expert == i)
        out.index_add_(0, tokens, models.norm(flat[tokens].view(-1, 1, models.HIDDEN))[:, 0])
    return out.view_as(x)


def test_indices_that_count_rows_are_never_run_for_a_part() -> None:
    report = audit(last_token, models.activations())
    assert not report.varies, report.explain()
    assert not report.notes, report.explain()


def test_rows_are_followed_through_a_router() -> None:
    report = audit(routed_tokens, models.activations())
    assert [found.op for found in report.findings] == ["planted.norm"], report.explain()
    assert {(note.kind, note.op) for note in report.notes} == {("untold", "aten.index_add_")}, (
        report.explain()
    )


def compiled(x: torch.Tensor) -> torch.Tensor:
    if x.shape[0] < 4:
        return torch.tanh(x) * 3.1 * 1.7
    return torch.tanh(x) * (3.1 * 1.7)


@pytest.mark.slow
def test_a_fused_kernel_that_is_compiled_differently_is_answered() -> None:
    torch._dynamo.reset()
    fault = models.Does(torch.compile(compiled, dynamic=False))
    report = audit(models.Decoder(fault), models.ids(), rows=(2,))
    assert [found.op for found in report.findings] == ["compiled graph"], report.explain()
    assert report.first is not None and report.first.place.module == "layers.1.fault"
    assert "cpp_fused" in report.first.cause


def test_a_transformers_qwen3_names_its_products_and_nothing_else() -> None:
    reason = "transformers is not installed; nox -s tests installs it"
    transformers = pytest.importorskip("transformers", reason=reason)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    report = audit(model, {"input_ids": torch.randint(0, 256, (16, 1))})
    assert {found.op for found in report.findings} <= {"aten.mm", "aten.addmm"}, report.explain()
    assert report.first is not None, report.explain()
    assert report.first.place.module == "model.layers.0.self_attn.q_proj"
    assert Path(report.first.place.file).name == "modeling_qwen3.py"
    assert not report.notes, report.explain()


def test_compiled_against_eager_names_the_first_kernel() -> None:
    torch._dynamo.reset()
    x = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    report = audit(lambda x: ((x * 1.3) * 1.7 + x) * 0.3, x, mode="compiled")
    assert [found.kind for found in report.findings] == ["compiled kernel"], report.explain()
    assert report.first is not None and "cpp_fused" in report.first.op
    assert "emulate_precision_casts" in report.first.cure
    assert Path(report.first.place.file).name == "test_audit.py"
    assert report.outputs[8].elements == report.first.difference.elements
    whole = audit(lambda x: x * 2 + 1, x.float().round(), mode="compiled")
    assert whole.judged == 1 and not whole.varies, whole.explain()


def test_it_is_a_function_of_the_package() -> None:
    assert ir_core.audit is audit
