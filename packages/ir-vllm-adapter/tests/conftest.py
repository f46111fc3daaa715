# SPDX-License-Identifier: Apache-2.0
"""What the tests against a real vLLM share: the CPU test platform, an environment for one test, and the attaching."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def vllm_on_cpu() -> Iterator[None]:
    """The CPU test platform, chosen before vLLM is first imported, and interpreted Triton."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IR_TESTBED": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
            patch.setenv(name, value)
        import vllm.config
        import vllm.ir.ops
        import vllm.platforms

        assert vllm.platforms.current_platform.device_type == "cpu"
        yield


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Environment for one test; ir-core and the adapter forget what they read and did before and after."""
    import ir_core
    from ir_core import policy
    from ir_vllm_adapter import log, plugin, state

    monkeypatch.setenv("IR_PACKS", "ir-kernels-triton")
    monkeypatch.setattr(log, "LINES", [])
    monkeypatch.setattr(state, "STATE", state.State())
    policy.reset_default(forget_changes=True)
    ir_core.refresh()
    yield monkeypatch
    plugin.unregister()
    monkeypatch.undo()
    policy.reset_default(forget_changes=True)
    ir_core.refresh()


@pytest.fixture
def invariant(settings: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Batch-invariant mode, and the adapter attached as vLLM's plug-in loader and its front end do it."""
    from ir_core import policy
    from ir_vllm_adapter import hooks, log, plugin

    settings.setenv("VLLM_BATCH_INVARIANT", "1")
    policy.reset_default(forget_changes=True)
    plugin.register()
    hooks.attach_all()
    assert log.LINES == []
    return settings


@pytest.fixture
def hidden_ir(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM from 0.34 on, as far as it is known: no IR. vLLM's own modules of today still import theirs."""
    from ir_vllm_adapter import compat

    monkeypatch.setattr(compat, "ir_present", lambda: False)
    monkeypatch.setattr(compat, "ir_op_names", lambda: ())
