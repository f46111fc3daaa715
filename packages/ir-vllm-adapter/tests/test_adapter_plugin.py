# SPDX-License-Identifier: Apache-2.0
"""The plug-in function as a guest: what it does where vLLM is absent, too old, new or broken, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import types
from importlib.metadata import PackageNotFoundError, entry_points

import pytest

from ir_vllm_adapter import compat, log, plugin
from ir_vllm_adapter.attachment import Attachment


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "ATTACHED", Attachment())
    monkeypatch.setattr(log, "LINES", [])


def pretend(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def answer(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr(compat, "version", answer)


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        (None, "absent"),
        ("0.19.2", "too old"),
        ("0.8.5.post1", "too old"),
        ("0.20.0", "tested"),
        ("0.25.1", "untested"),
        ("0.26.0", "tested"),
        ("0.32.0", "tested"),
        ("0.33.0rc2.dev17+g0123abc", "tested"),
        ("0.34.0", "untested"),
        ("1.0.0", "untested"),
        ("nightly", "untested"),
    ],
)
def test_versions_and_what_is_said_of_them(
    monkeypatch: pytest.MonkeyPatch, version: str | None, verdict: str
) -> None:
    pretend(monkeypatch, version)
    host = compat.host()
    assert host.verdict == verdict
    assert host.supported == (verdict in ("tested", "untested"))
    assert (host.line == "") == (verdict == "tested")


@pytest.mark.parametrize(("version", "says"), [(None, "not installed"), ("0.19.0", "older than 0.20")])
def test_absent_and_too_old_are_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str | None, says: str
) -> None:
    pretend(monkeypatch, version)
    plugin.register()
    plugin.register()
    assert len(log.LINES) == 1
    assert says in log.LINES[0]
    assert len(caplog.records) == 1


@pytest.fixture
def half_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM whose metadata is there and whose configuration cannot be imported."""
    pretend(monkeypatch, "0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))


@pytest.mark.usefixtures("half_broken")
def test_half_broken_vllm_is_one_line() -> None:
    plugin.register()
    assert len(log.LINES) == 1
    assert "could not attach to vLLM: ModuleNotFoundError" in log.LINES[0]


@pytest.mark.usefixtures("half_broken")
def test_strict_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_STRICT", "1")
    with pytest.raises(ModuleNotFoundError):
        plugin.register()


def test_disabled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_core

    pretend(monkeypatch, "0.32.0")
    monkeypatch.setenv("IR_DISABLE", "1")
    ir_core.refresh()
    try:
        plugin.register()
    finally:
        monkeypatch.delenv("IR_DISABLE")
        ir_core.refresh()
    assert log.LINES == ["IR_DISABLE is set: ir-vllm-adapter does nothing."]


def test_a_malformed_variable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_core
    from ir_core import policy

    pretend(monkeypatch, "0.32.0")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "maybe")
    monkeypatch.setattr(policy, "_default", None)
    plugin.register()
    monkeypatch.delenv("VLLM_BATCH_INVARIANT")
    ir_core.refresh()
    assert len(log.LINES) == 1
    assert "VLLM_BATCH_INVARIANT='maybe'" in log.LINES[0]


def test_the_entry_point_is_the_function() -> None:
    (point,) = (p for p in entry_points(group="vllm.general_plugins") if p.name == "ir_vllm_adapter")
    assert point.load() is plugin.register


def test_importing_it_imports_no_host() -> None:
    code = "import sys, ir_vllm_adapter.plugin; print([m for m in ('torch', 'vllm', 'ir_core') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_without_vllm_it_costs_milliseconds_and_no_thread() -> None:
    """Including the import of the package; torch is imported by vLLM before it calls plug-ins."""
    code = textwrap.dedent(
        """
        import threading, time, torch
        threads, start = threading.active_count(), time.perf_counter()
        import ir_vllm_adapter
        ir_vllm_adapter.register()
        print((time.perf_counter() - start) * 1e3, threading.active_count() - threads, torch.cuda.is_initialized())
        """
    )
    start = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert time.monotonic() - start < 120
    assert float(out[0]) < 1000  # bound for a loaded machine; a few milliseconds when it is idle
    assert out[1:] == ["0", "False"]
