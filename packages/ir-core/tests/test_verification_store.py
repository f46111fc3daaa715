# SPDX-License-Identifier: Apache-2.0
"""Certificates on disk, and what selection makes of them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

import ir_core
from ir_core import fast_path, ops, platforms, policy
from ir_core.errors import CertificateError, StrictError
from ir_core.policy import OpPolicy, Policy
from ir_core.resolve import select
from ir_core.verification import Certificate, Finding, evidence, identity, store

TARGET = platforms.target_of(torch.device("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IR_CACHE_DIR", str(tmp_path))
    evidence.refresh()
    yield tmp_path
    monkeypatch.undo()
    evidence.refresh()
    fast_path.reset_all()


def made(provider: str = "native", verdict: str = "certified", **changes: object) -> Certificate:
    impl = ops.rms_norm.impls[provider]
    finding = Finding(
        "rows", "other bits", {"probe": "rows"}, "ir-core verify ...", change="changes at 2 rows"
    )
    certificate = Certificate(
        op="rms_norm",
        provider=provider,
        distribution=impl.distribution,
        version=impl.version,
        uuid=impl.uuid(),
        device=identity.device(TARGET),
        declared=True,
        verdict=verdict,  # type: ignore[arg-type]
        findings=(finding,) if verdict == "refuted" else (),
        cases={"rows": 3},
        created="2026-11-23T12:00:00Z",
    )
    return dataclasses.replace(certificate, **changes)  # type: ignore[arg-type]


def keep(certificate: Certificate) -> Path:
    path = store.save(certificate, certificate.to_dict()["sha256"][:16])
    evidence.refresh()
    return path


def chosen(requirement: Policy, full: bool = False) -> ir_core.Selection:
    args = ops.rms_norm.apply_arg_defaults((torch.ones(2, 8), None, 1e-6))
    return select(ops.rms_norm, requirement, TARGET, args, evidence=evidence.evidence_for, full=full)


INVARIANT = Policy(batch_invariant=True, ops=(("rms_norm", OpPolicy(prefer=("native",))),))


def test_a_certificate_survives_json() -> None:
    certificate = made("native", "refuted")
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate
    assert certificate.summary() == "rows: changes at 2 rows"
    assert certificate.broken_promise


def test_a_changed_certificate_is_refused() -> None:
    data = json.loads(json.dumps(made("native", "refuted").to_dict()))
    data["verdict"] = "certified"
    with pytest.raises(CertificateError, match="changed or cut"):
        Certificate.from_dict(data)
    with pytest.raises(CertificateError, match="format"):
        Certificate.from_dict({**data, "format": 99})


def test_a_refuted_implementation_is_not_selected(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(INVARIANT).provider == "native"
    keep(made("native", "refuted"))
    selection = chosen(INVARIANT)
    assert selection.provider != "native"
    assert "refuted on this device: rows: changes at 2 rows" in selection.explain()
    with policy.scope(INVARIANT), caplog.at_level(logging.WARNING, "ir_core"):
        ops.rms_norm(torch.ones(2, 8), None, 1e-6)
    assert "refuted" in caplog.text


def test_outside_the_mode_evidence_changes_nothing() -> None:
    keep(made("native", "refuted"))
    assert chosen(Policy()).provider == "native"


def test_a_certified_native_needs_nobody_to_name_it() -> None:
    requirement = Policy(batch_invariant=True, ops=(("rms_norm", OpPolicy(deny=frozenset({"portable"}))),))
    assert chosen(requirement, full=True).chosen is None or chosen(requirement).provider != "native"
    keep(made("native"))
    native = next(c for c in chosen(requirement, full=True).candidates if c.provider == "native")
    assert native.verdict


def test_strict_takes_certified_only() -> None:
    strict = dataclasses.replace(INVARIANT, strict=True)
    with pytest.raises(StrictError, match="not certified"):
        chosen(strict)
    keep(made("native"))
    assert chosen(strict).provider == "native"


@pytest.mark.parametrize(
    "changes",
    [
        {"uuid": "0" * 64},
        {"device": {"kind": "cuda", "name": "another"}},
        {"device": {**identity.device(TARGET), "torch": "0.0"}},
        {"device": {**identity.device(TARGET), "threads": 999}},
    ],
)
def test_another_device_or_source_never_counts(changes: dict[str, object]) -> None:
    keep(made("native", "refuted", **changes))
    assert evidence.evidence_for(ops.rms_norm.impls["native"], TARGET) is None
    assert chosen(INVARIANT).provider == "native"


def test_the_newest_certificate_counts() -> None:
    keep(made("native", "refuted"))
    keep(made("native", "certified", created="2026-11-24T12:00:00Z"))
    found = evidence.evidence_for(ops.rms_norm.impls["native"], TARGET)
    assert found is not None and found.verdict == "certified"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', "\0\1\2"])
def test_a_broken_file_is_reported_once_and_passed_over(
    content: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(made("native", "refuted"))
    broken = path.with_name("native-broken.json")
    broken.write_text(content)
    evidence.refresh()
    with caplog.at_level(logging.WARNING, "ir_core"):
        assert chosen(INVARIANT).provider != "native"
        evidence.refresh()
        assert chosen(INVARIANT).provider != "native"
    assert caplog.text.count("native-broken.json") == 1


def test_no_certificates_no_noise(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> str:
        raise AssertionError("no source has to be read when there is no certificate")

    native = ops.rms_norm.impls["native"]
    monkeypatch.setattr(type(native), "uuid", fail)
    assert evidence.evidence_for(native, TARGET) is None
    monkeypatch.setenv("IR_CACHE_DIR", str(cache / "nowhere" / "at all"))
    evidence.refresh()
    assert evidence.evidence_for(native, TARGET) is None
    assert not caplog.text


def _write(arguments: tuple[str, int]) -> None:
    folder, number = arguments
    os.environ["IR_CACHE_DIR"] = folder
    for _ in range(20):
        store.save(made("native", "refuted", seed=number), "same")
        assert store.load(store.path_of("rms_norm", "native", "same")).op == "rms_norm"


def test_several_processes_write_one_file(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_write, [(str(cache), number) for number in (1, 2)])
    files = list((cache / "certificates" / "rms_norm").iterdir())
    assert [file.name for file in files] == ["native-same.json"]
    assert store.load(files[0]).seed in (1, 2)


def test_what_killed_writers_left_is_removed(cache: Path) -> None:
    path = keep(made("native", "refuted"))
    old = path.with_name(".native-other.json.abc.tmp")
    young = path.with_name(".native-another.json.abc.tmp")
    for file in (old, young):
        file.write_text("{")
    os.utime(old, (1e9, 1e9))
    keep(made("native", "refuted"))
    assert not old.exists(), "a killed writer's file stays for good"
    assert young.exists(), "another process may be writing it"
    bundle = cache / "bundle.json"
    left, others = cache / ".bundle.json.x.tmp", cache / ".other.json.x.tmp"
    for file in (left, others):
        file.write_text("{")
        os.utime(file, (1e9, 1e9))
    store.export(bundle, [])
    assert not left.exists()
    assert others.exists(), "a file of another program in a folder that is not ours"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_certificates_are_read_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(made("native", "refuted"))
    reading, go_on = threading.Event(), threading.Event()
    honest = store.load_all

    def slow() -> list[Certificate]:
        reading.set()
        go_on.wait(60)
        return list(honest())

    monkeypatch.setattr(store, "load_all", slow)
    native = ops.rms_norm.impls["native"]
    reader = threading.Thread(target=evidence.evidence_for, args=(native, TARGET))
    reader.start()
    assert reading.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        go_on.set()
        found = evidence.evidence_for(native, TARGET)
        os._exit(0 if found is not None and found.verdict == "refuted" else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    reader.join(60)
    assert status == 0, "the child hung or found nothing"


def test_what_is_not_covered_is_in_the_certificate_and_in_the_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ir_core.cli.verify_cmd import show
    from ir_core.verification import Report

    certificate = made(not_covered=("kern: reads a file (open) (line 3)",))
    assert certificate.to_dict()["not_covered"] == ["kern: reads a file (open) (line 3)"]
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate
    show(Report([certificate]))
    said = capsys.readouterr()
    assert "reads a file (open)" in " ".join((said.out + said.err).split())


def test_a_certificate_of_an_older_format_does_not_count(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(made("native", "refuted"))
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 1}))
    evidence.refresh()
    assert evidence.evidence_for(ops.rms_norm.impls["native"], TARGET) is None
    assert "has format 1, this ir-core reads" in caplog.text


HELPED = """
import torch, helper_of_evidence
def kernel(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    return helper_of_evidence.norm(x)
"""


def test_a_certificate_goes_with_the_helper_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "helper_of_evidence.py"
    helper.write_text("def norm(x): return x\n")
    (tmp_path / "kernel_of_evidence.py").write_text(HELPED)
    monkeypatch.syspath_prepend(tmp_path)
    kernel = importlib.import_module("kernel_of_evidence").kernel
    impl = ops.rms_norm.register_impl("t_helped", batch_invariant=True)(kernel)
    strict = Policy(batch_invariant=True, strict=True, ops=(("rms_norm", OpPolicy(prefer=("t_helped",))),))
    try:
        keep(made("t_helped"))
        assert chosen(strict).provider == "t_helped"
        helper.write_text("def norm(x): return x * x.shape[0]\n")
        ir_core.refresh()
        assert evidence.evidence_for(impl, TARGET) is None
        with pytest.raises(StrictError, match="not certified"):
            chosen(strict)
    finally:
        ops.rms_norm.unregister_impl("t_helped")


def test_export_and_import(tmp_path: Path) -> None:
    keep(made("native", "refuted"))
    bundle = tmp_path / "certificates.json"
    assert store.export(bundle, store.load_all()) == 1
    assert store.read_bundle(bundle)[0].verdict == "refuted"
    bundle.write_text("{}")
    with pytest.raises(CertificateError, match="no export"):
        store.read_bundle(bundle)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.folder() == tmp_path / "certificates"
    monkeypatch.delenv("IR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.folder() == Path("/somewhere/ir_core/certificates")
