# SPDX-License-Identifier: Apache-2.0
"""The pack inside vLLM: the adapter, which knows no pack by name, offers it at both of its seams.

Needs vLLM, ir-vllm-adapter and its test platform beside this pack, all installed (``nox -s "vllm(0.32.0)"``).
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

pytest.importorskip("acme_kernels", reason="the example is not installed (nox -s packs)")
pytestmark = [pytest.mark.vllm, pytest.mark.interpreter]

EPS = 1e-6


@pytest.fixture(scope="module", autouse=True)
def vllm_on_a_cpu():
    """The test platform, chosen before vLLM is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IR_TESTBED", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        import vllm.config
        import vllm.ir.ops  # noqa: F401  vLLM's front end imports both before it loads plug-ins

        yield


@pytest.fixture
def attach(monkeypatch):
    """Load vLLM's plug-ins under the given environment, as its front end does."""
    import vllm.plugins

    import ir_core
    from ir_core import policy
    from ir_vllm_adapter import plugin

    def load(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        policy.reset_default(forget_changes=True)
        ir_core.refresh()
        monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
        vllm.plugins.load_general_plugins()

    yield load
    plugin.unregister()
    monkeypatch.undo()
    policy.reset_default(forget_changes=True)
    ir_core.refresh()


def config(**options):
    """A real configuration of vLLM; making it settles the priorities of the IR."""
    from vllm.config import VllmConfig

    return VllmConfig(**options)


def priorities(made):
    return asdict(made.kernel_config.ir_op_priority)


def naming(*providers):
    """What `--ir-op-priority.rms_norm=<providers>` makes of the command line."""
    from vllm.config import KernelConfig

    return KernelConfig(ir_op_priority={"rms_norm": list(providers)})


@pytest.mark.parametrize("switch", ["0", "1"])
def test_the_users_flag_names_it(attach, switch):
    attach(VLLM_BATCH_INVARIANT=switch)
    made = config(kernel_config=naming("acme"))
    import vllm.ir.ops

    op = vllm.ir.ops.rms_norm
    assert op.impls["acme"].batch_invariant
    assert priorities(made)["rms_norm"][0] == "acme"
    assert all("acme" not in names for name, names in priorities(made).items() if name != "rms_norm")

    x, weight = torch.randn(5, 64), torch.randn(64)
    with op.set_priority(priorities(made)["rms_norm"]):
        assert op.dispatch(x, weight, EPS).provider == "acme"
        torch.testing.assert_close(op(x, weight, EPS), torch.nn.functional.rms_norm(x, (64,), weight, EPS))
        assert op.dispatch(x.bfloat16(), weight.bfloat16(), EPS).provider != "acme"  # its own predicate


def test_nobody_named_it_and_it_does_not_come_first(attach):
    attach(VLLM_BATCH_INVARIANT="1")
    assert priorities(config())["rms_norm"][0] == "triton_batch_invariant"
    attach(VLLM_BATCH_INVARIANT="1", IR_PACKS="acme-kernels")
    assert "triton_batch_invariant" not in priorities(config())["rms_norm"]


@pytest.mark.parametrize("how", ["flag", "IR_PRIORITY"])
def test_the_layers_run_it(attach, how):
    from vllm.config import CompilationConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm

    from ir_vllm_adapter import counters, layer_seam

    eager = CompilationConfig(custom_ops=["all"], mode=0)
    if how == "flag":
        attach(VLLM_BATCH_INVARIANT="1")
        made = config(compilation_config=eager, kernel_config=naming("acme"))
    else:
        attach(VLLM_BATCH_INVARIANT="1", IR_PRIORITY="rms_norm=acme")
        made = config(compilation_config=eager)
    layer_seam.install()  # what a worker does before it builds the model
    with set_current_vllm_config(made):
        layer = RMSNorm(64, eps=EPS).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(5, 64)
    before = counters.CALLS["layer:rms_norm/acme"]
    together = layer(x)
    torch.testing.assert_close(together, torch.nn.functional.rms_norm(x, (64,), layer.weight, EPS))
    assert torch.equal(together, torch.cat([layer(row[None]) for row in x]))
    assert counters.CALLS["layer:rms_norm/acme"] == before + 6


def test_status_says_where_it_comes_from():
    command = [sys.executable, "-m", "ir_vllm_adapter", "status", "--json"]
    env = os.environ | {"VLLM_BATCH_INVARIANT": "1", "IR_PRIORITY": "rms_norm=acme"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = (row for row in json.loads(done.stdout)["ops"] if row["op"] == "rms_norm")
    assert row["order"][0] == row["vllm_priority"][0] == "acme"
    assert {"provider": "acme", "distribution": "acme-kernels", "version": "1.0"}.items() <= row[
        "candidates"
    ][0].items()
