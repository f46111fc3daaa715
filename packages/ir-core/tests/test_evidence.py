# SPDX-License-Identifier: Apache-2.0
"""What a certificate is about, and when it counts: exactly the same sources, software and device."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from importlib_metadata import PackageNotFoundError, version

from ir_core import ops, platforms, sources
from ir_core.selection import Evidence
from ir_core.target import Capability, Target
from ir_core.verification import Certificate, evidence, identity, store

CPU = platforms.target_of(torch.device("cpu"))
GPU = Target("cuda:0", "cuda", name="NVIDIA H100 80GB HBM3", capability=Capability(9, 0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IR_CACHE_DIR", str(tmp_path))
    evidence.refresh()
    yield tmp_path
    monkeypatch.undo()
    evidence.refresh()


def keep(provider: str = "native", name: str = "a", **changes: Any) -> Certificate:
    """Write a certificate of an implementation of rms_norm for this CPU."""
    impl = ops.rms_norm.impls[provider]
    made = Certificate(
        op="rms_norm",
        provider=provider,
        distribution=impl.distribution,
        version=impl.version,
        uuid=impl.uuid(),
        device=identity.device(CPU),
        declared=True,
        verdict="certified",
        findings=(),
        cases={"rows": 3},
        created="2026-11-23T12:00:00Z",
    )
    made = dataclasses.replace(made, **changes)
    store.save(made, name)
    evidence.refresh()
    return made


# -- the device and the software ---------------------------------------------------------------------------------


def test_a_cpu_is_its_model_its_instructions_and_its_threads() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    found = identity.device(CPU)
    assert found["kind"] == "cpu" and found["sm"] is None and found["arch"] == CPU.arch
    assert found["name"] in cpuinfo
    assert found["isa"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == torch.get_num_threads()
    assert found["interpreter"] is ("triton_interpreter" in CPU.features)
    interpreting = dataclasses.replace(CPU, features=CPU.features ^ {"triton_interpreter"})
    assert identity.device(interpreting)["interpreter"] is not found["interpreter"]


def test_a_gpu_is_its_name_and_its_capability() -> None:
    found = identity.device(GPU)
    assert found == {
        "kind": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "sm": "9.0",
        "arch": None,
        **identity.software(),
    }
    assert identity.device(dataclasses.replace(GPU, device="cuda:3", uuid="GPU-1")) == found


def test_the_software_is_what_decides_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    found = {
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or torch.version.hip or "",
    }
    assert identity.software() == found
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert identity.software()["cuda"] == "6.4"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert identity.software()["cuda"] == "13.0"
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert identity.software()["cuda"] == ""


def test_a_key_is_of_the_op_the_provider_the_sources_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    native, portable = (ops.rms_norm.impls[name] for name in ("native", "portable"))
    key = identity.key(native, CPU)
    assert key == identity.key(native, CPU) and len(key) == 16 and int(key, 16) >= 0
    assert identity.key(native, GPU) != key
    monkeypatch.setattr(type(native), "uuid", lambda self: "same")
    others = {
        identity.key(native, CPU),
        identity.key(portable, CPU),
        identity.key(ops.fused_add_rms_norm.impls["native"], CPU),
    }
    assert len(others) == 3 and key not in others


# -- when it counts ----------------------------------------------------------------------------------------------


def test_what_selection_is_told() -> None:
    native = ops.rms_norm.impls["native"]
    keep(order="tree")
    found = evidence.evidence_for(native, CPU)
    assert found == Evidence(
        "certified",
        "bits of the order 'tree', so batch-invariant: 3 planned and 0 random cases, 0 settings "
        "(verified 2026-11-23T12:00:00Z)",
        "tree",
    )
    keep(order="")
    found = evidence.evidence_for(native, CPU)
    assert found is not None and found.order is None
    assert evidence.evidence_for(ops.rms_norm.impls["portable"], CPU) is None
    assert evidence.evidence_for(ops.fused_add_rms_norm.impls["native"], CPU) is None
    assert evidence.evidence_for(native, GPU) is None


@pytest.mark.parametrize("changes", [{"uuid": "another"}, {"device": {"kind": "cpu"}}])
def test_another_source_or_device_never_counts(changes: dict[str, Any]) -> None:
    keep(**changes)
    assert evidence.certificate_for(ops.rms_norm.impls["native"], CPU) is None


def test_all_certificates_of_one_implementation_are_known_and_the_newest_counts() -> None:
    newest = keep(name="b", created="2026-11-25T12:00:00Z")
    keep(name="a")
    keep(name="c", created="2026-11-24T12:00:00Z")
    assert evidence.certificate_for(ops.rms_norm.impls["native"], CPU) == newest


def test_the_folder_is_read_once_until_it_is_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    native = ops.rms_norm.impls["native"]
    assert evidence.evidence_for(native, CPU) is None
    certificate = keep()
    store.path_of("rms_norm", "native", "a").unlink()
    evidence.refresh()
    assert evidence.evidence_for(native, CPU) is None
    store.save(certificate, "a")
    assert evidence.evidence_for(native, CPU) is None
    forgotten: list[bool] = []
    monkeypatch.setattr(sources, "refresh", lambda: forgotten.append(True))
    evidence.refresh()
    assert forgotten and evidence.evidence_for(native, CPU) is not None


def test_a_folder_that_cannot_be_read_stops_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep()

    def fail() -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(store, "load_all", fail)
    for _ in range(2):
        assert evidence.evidence_for(ops.rms_norm.impls["native"], CPU) is None
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "Certificates cannot be read and do not count: the disk is gone"
    ]


def test_a_device_that_cannot_be_described_stops_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep()

    def fail(target: Target) -> dict[str, Any]:
        raise OSError("no such device")

    monkeypatch.setattr(identity, "device", fail)
    native = ops.rms_norm.impls["native"]
    assert evidence.evidence_for(native, CPU) is None
    assert caplog.messages == [f"The certificate of {native.label} cannot be used: no such device"]
