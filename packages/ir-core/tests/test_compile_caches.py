# SPDX-License-Identifier: Apache-2.0
"""Warm FX-graph and AOTAutograd caches never serve a graph that was lowered under other circumstances."""

import functools
import json
import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import json, torch, ir_core
from ir_core import ops
import marker_impls
from torch._dynamo.utils import counters

for name in ("plain", "steady"):
    ops.rms_norm.register_impl(name, batch_invariant=name == "steady")(getattr(marker_impls, name))
compiled = ir_core.compile(lambda x: ops.rms_norm(x, None, 1e-6) * 2, fullgraph=True)
with torch.no_grad():
    value = compiled(torch.zeros(4, 32))[0, 0].item()
print(json.dumps({"value": value, "hits": counters["inductor"]["fxgraph_cache_hit"]
                  + counters["aot_autograd"]["autograd_cache_hit"]}))
"""

IMPLS = """
import torch

def plain(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    return x + {plain}

def steady(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    return x + {steady}
"""


GRADIENTS = """
import json, torch, ir_core
import marker_op
from torch._dynamo.utils import counters

compiled = ir_core.compile(lambda x: marker_op.op(x).sum(), fullgraph=True)
x = torch.ones(4, 8, requires_grad=True)
compiled(x).backward()
print(json.dumps({"value": x.grad[0, 0].item(), "hits": counters["inductor"]["fxgraph_cache_hit"]
                  + counters["aot_autograd"]["autograd_cache_hit"]}))
"""

OP = """
import torch, ir_core
import marker_backward

def marker_scaled(x: torch.Tensor) -> torch.Tensor:
    return x * 2

op = ir_core.register_op(marker_scaled)
op.register_backward(marker_backward.backward)
"""

BACKWARD = """
def backward(args, grads):
    return (grads[0] * {factor},)
"""

CERTIFY = """
from ir_core import ops, platforms
from ir_core.verification import Certificate, identity, store
import marker_impls, torch

impl = ops.rms_norm.register_impl("steady", batch_invariant=True)(marker_impls.steady)
target = platforms.target_of(torch.device("cpu"))
store.save(Certificate("rms_norm", "steady", "", "", impl.uuid(), identity.device(target), True, "refuted"), "key")
"""


@pytest.fixture
def run(tmp_path):
    """Run a program in a process of its own; all of them share the compile caches and the certificates."""

    def run(program=PROGRAM, **environment):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("IR_", "VLLM_"))}
        env |= {
            "PYTHONPATH": str(tmp_path),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",  # the source changes within the clock's tick
            "IR_CACHE_DIR": str(tmp_path / "certificates"),
            "OMP_NUM_THREADS": "2",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((done.stdout.splitlines() or ["null"])[-1])

    return run


@pytest.mark.slow
def test_switching_mode_or_source_is_never_served_stale(tmp_path, run):
    impls = tmp_path / "marker_impls.py"
    run = functools.partial(run, IR_PRIORITY="rms_norm=plain,steady")
    impls.write_text(IMPLS.format(plain=1, steady=2))
    assert run()["value"] == 2.0
    warm = run()
    assert warm["value"] == 2.0
    assert warm["hits"] > 0, "the caches are not in use: this test would prove nothing"
    assert run(VLLM_BATCH_INVARIANT="1")["value"] == 4.0
    impls.write_text(IMPLS.format(plain=5, steady=2))
    assert run()["value"] == 10.0


@pytest.mark.slow
def test_a_certificate_that_appears_between_two_processes_counts(tmp_path, run):
    (tmp_path / "marker_impls.py").write_text(IMPLS.format(plain=1, steady=2))
    run = functools.partial(run, IR_PRIORITY="rms_norm=steady", VLLM_BATCH_INVARIANT="1")
    assert run()["value"] == 4.0
    assert run()["hits"] > 0, "the caches are not in use: this test would prove nothing"
    run(CERTIFY)
    assert run()["value"] == 0.0, "the graph with the refuted implementation came from the cache"


@pytest.mark.slow
def test_a_backward_in_another_module_counts(tmp_path, run):
    backward = tmp_path / "marker_backward.py"
    (tmp_path / "marker_op.py").write_text(OP)
    backward.write_text(BACKWARD.format(factor=2))
    assert run(GRADIENTS)["value"] == 2.0
    assert run(GRADIENTS)["hits"] > 0, "the caches are not in use: this test would prove nothing"
    backward.write_text(BACKWARD.format(factor=10))
    assert run(GRADIENTS)["value"] == 10.0


def test_the_key_covers_the_backward_and_the_fake_function():
    import torch

    import ir_core
    from ir_core.lowering.cache_key import cache_key

    def keyed_op(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    op = ir_core.register_op(keyed_op)
    try:
        keys = [cache_key(ir_core.Policy())]
        for factor in (1, 5):
            op.register_backward(lambda args, grads, factor=factor: (grads[0] * factor,))
            keys.append(cache_key(ir_core.Policy()))
        for size in (1, 2):
            op.register_fake(lambda x, size=size: x.new_empty(size))
            keys.append(cache_key(ir_core.Policy()))
        assert len(set(keys)) == 5
        assert cache_key(ir_core.Policy()) == keys[-1]
    finally:
        op.unregister()
