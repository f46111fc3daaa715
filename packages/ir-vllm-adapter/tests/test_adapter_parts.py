# SPDX-License-Identifier: Apache-2.0
"""The parts of a forward pass, what is known of them, and what IR_STRICT=1 asks: without vLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ir_core.verification import evidence as certificates
from ir_core.verification import identity, store
from ir_core.verification.certificate import Certificate, Finding, Verdict
from ir_vllm_adapter import code, evidence, kinds, parts, state, status, worker
from ir_vllm_adapter.errors import RefusedError
from ir_vllm_adapter.parts import Part
from ir_vllm_adapter.standing import target_here

SETTING = {"vllm": "0.32.0", "tensor_parallel": 1}


def part(kind: str = "attention", runs: str = "TRITON_ATTN", **more: Any) -> Part:
    made = Part(kind, runs, "vLLM", "vLLM 0.32.0", 2, configuration=dict(SETTING), uuid="a" * 64)
    return replace(made, **more)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("IR_CACHE_DIR", str(tmp_path))
    certificates.refresh()
    yield
    certificates.refresh()


def keep(of: Part, verdict: Verdict, **more: Any) -> None:
    target = target_here()
    finding = Finding("growing chunk", "rows differ", {}, "", "3 of 64 elements", "changes at 10 tokens")
    made = Certificate(
        op=of.name, provider=of.runs, distribution="vllm", version="0.32.0", uuid=of.uuid,
        device=identity.device(target), declared=True, verdict=verdict, created="2026-11-25T07:00:00Z",
        findings=(finding,) if verdict == "refuted" else (), cases={"alone": 4}, **more,
    )  # fmt: skip
    store.save(made, identity.key_of(of.name, of.runs, of.uuid, target))
    certificates.refresh()


def test_without_a_certificate_a_part_is_not_checked() -> None:
    found = evidence.look_up(part(), target_here())
    assert (found.verdict, found.answered_for) == ("not checked", False)


@pytest.mark.parametrize(("verdict", "answered"), [("certified", True), ("refuted", False)])
def test_a_certificate_of_this_code_and_device_counts(verdict: Verdict, answered: bool) -> None:
    keep(part(), verdict)
    found = evidence.look_up(part(), target_here())
    assert (found.verdict, found.date[:10], found.answered_for) == (verdict, "2026-11-25", answered)
    if verdict == "refuted":
        assert "growing chunk: changes at 10 tokens" in found.detail


def test_an_inconclusive_certificate_says_what_it_lacks_and_answers_for_nothing() -> None:
    keep(part(), "inconclusive", skipped=("no request was cut into chunks",))
    found = evidence.look_up(part(), target_here())
    assert (found.verdict, found.detail) == ("not checked", "inconclusive: no request was cut into chunks")


@pytest.mark.parametrize("change", [{"uuid": "b" * 64}, {"runs": "FLASH_ATTN (FA3)"}, {"kind": "linear"}])
def test_a_certificate_of_something_else_does_not_count(change: dict[str, Any]) -> None:
    keep(part(), "certified")
    assert evidence.look_up(replace(part(), **change), target_here()).verdict == "not checked"


def test_a_certificate_of_another_device_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(part(), "certified")
    here = identity.device(target_here())
    monkeypatch.setattr(identity, "device", lambda target: here | {"name": "another"})
    assert evidence.look_up(part(), target_here()).verdict == "not checked"


GPU, CPU = SimpleNamespace(kind="cuda"), SimpleNamespace(kind="cpu")


@pytest.mark.parametrize(
    ("of", "target", "exempt"),
    [
        (part("embedding", "F.embedding"), CPU, True),
        (part("activation", "SiluAndMul.forward_cuda"), GPU, True),
        (part("activation", "SiluAndMul.forward_native"), CPU, False),  # vectors and tails of a loop differ there
        (part("activation", "GeluAndMulSparse.forward_cuda"), GPU, False),  # it has a standard deviation in it
        (part("rotary", "RotaryEmbedding.forward_cuda"), GPU, True),
        (part("norm", "RMSNorm.forward_cuda"), GPU, False),
        (part("linear", "linear_batch_invariant"), GPU, False),
        (part("attention"), GPU, False),
        (part("graph", "Inductor"), GPU, False),
        (part("all-reduce", "CudaCommunicator.all_reduce", configuration={"tensor_parallel": 2}), GPU, True),
        (part("all-reduce", "CudaCommunicator.all_reduce", configuration={"tensor_parallel": 4}), GPU, False),
        (part("norm", "portable", by="ir-core", op="rms_norm"), GPU, True),
        (part("norm", "triton_batch_invariant", by="ir-core", op="rms_norm"), GPU, False),
    ],
)  # fmt: skip
def test_what_needs_no_certificate(of: Part, target: Any, exempt: bool) -> None:
    assert bool(evidence.by_construction(of, target)) is exempt


def test_strict_names_every_part_that_is_not_answered_for() -> None:
    known = [
        part(verdict="certified"),
        part("moe", "TritonExperts", verdict="refuted", detail="neighbours: changes at 33 tokens"),
        part("linear", "linear_batch_invariant"),
    ]
    with pytest.raises(RefusedError) as caught:
        evidence.require(known)
    assert caught.value.why.splitlines() == [
        "moe: TritonExperts (vLLM 0.32.0) is refuted: neighbours: changes at 33 tokens",
        "linear: linear_batch_invariant (vLLM 0.32.0) is not checked",
    ]
    assert "python -m ir_vllm_adapter verify" in caught.value.fix
    evidence.require(known[:1])


@pytest.mark.parametrize("collecting", [False, True])
def test_the_start_ends_with_strict_and_not_while_evidence_is_made(
    monkeypatch: pytest.MonkeyPatch, collecting: bool
) -> None:
    made = state.State(parts=[part()], collecting=collecting)
    monkeypatch.setattr(state, "STATE", made)
    monkeypatch.setenv("IR_STRICT", "1")
    monkeypatch.setattr(worker, "ATTACHED", SimpleNamespace(layers={}))
    from ir_core import policy

    with policy.scope(batch_invariant=True):
        if collecting:
            worker._announce(SimpleNamespace(rank=1))
        else:
            with pytest.raises(RefusedError, match="not known to be batch-invariant"):
                worker._announce(SimpleNamespace(rank=1))  # on every rank, not on the one that prints


def test_the_table_and_the_exceptions_name_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(part(), "refuted")
    monkeypatch.setattr(state, "STATE", state.State(parts=[part(), part("linear", "linear_batch_invariant")]))
    from ir_core import policy

    with policy.scope(batch_invariant=True):
        data = status.collect()
    text = status.render(data).splitlines()
    line = " ".join(next(line for line in text if "TRITON_ATTN" in line).split())
    said = "refuted 2026-11-25: growing chunk: changes at 10 tokens"
    assert line == f"attention TRITON_ATTN (vLLM 0.32.0) 2 - {said}"
    assert next(line for line in text if "linear_batch_invariant" in line).endswith("not checked")
    assert any(
        line.startswith("not batch-invariant: attention TRITON_ATTN: refuted on this device") for line in text
    )
    assert [row["kind"] for row in data["parts"]] == ["attention", "linear"]


# -- what a module runs ------------------------------------------------------------------------------------


def fake(name: str, *bases: str, **attributes: Any) -> Any:
    """A module whose class has the names that vLLM's has."""
    base: type = torch.nn.Module
    for each in reversed(bases):
        base = type(each, (base,), {})
    made = type(name, (base,), {})()
    for attribute, value in attributes.items():
        object.__setattr__(made, attribute, value)
    return made


def test_modules_are_told_apart_by_their_classes() -> None:
    backend = SimpleNamespace(get_name=lambda: "FLASH_ATTN")
    impl = SimpleNamespace(num_heads=4, num_kv_heads=2, head_size=64, vllm_flash_attn_version=3)
    attention = kinds.of(fake("Attention", attn_backend=backend, impl=impl))
    assert attention is not None
    assert (attention.kind, attention.runs, attention.shape["num_kv_heads"]) == (
        "attention",
        "FLASH_ATTN (FA3)",
        2,
    )

    experts = type("TritonExperts", (), {})()
    method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=experts))
    moe = kinds.of(fake("MoERunner", "MoERunnerInterface", _quant_method=method))
    assert moe is not None
    assert (moe.kind, moe.runs) == ("moe", "TritonExperts")

    norm = kinds.of(fake("RMSNormGated"))
    assert norm is not None
    assert (norm.kind, norm.runs) == ("norm", "RMSNormGated.forward")

    quantised = kinds.of(
        fake("QKVParallelLinear", "LinearBase", quant_method=type("Fp8LinearMethod", (), {})())
    )
    assert quantised is not None
    assert (quantised.kind, quantised.runs) == ("linear", "Fp8LinearMethod")

    mixer = fake("MambaMixer")
    mixer.register_parameter("A", torch.nn.Parameter(torch.ones(2)))
    other = kinds.of(mixer)
    assert other is not None
    assert other.kind == "other"  # unknown, and said so: never passed over in silence
    assert kinds.of(fake("Qwen3DecoderLayer")) is None


def test_a_seam_may_claim_modules_for_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.CLAIMS, "linear", lambda module: "linear")
    found = kinds.of(fake("RowParallelLinear", "LinearBase", quant_method=type("Fp8LinearMethod", (), {})()))
    assert found is not None
    assert found.ops == ("linear",)


def test_a_digest_covers_code_outside_of_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> int:
        return 1

    assert code.digest("attention") == code.digest("attention")
    assert code.digest("attention") != code.digest("attention", (other,))


def test_kinds_of_the_table_have_places_for_their_code() -> None:
    assert {*parts.FLOWS} <= {*code.PLACES}
