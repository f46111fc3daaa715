# SPDX-License-Identifier: Apache-2.0
"""Warm FX-graph and AOTAutograd caches never serve a graph that was lowered under other circumstances."""

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


@pytest.mark.slow
def test_switching_mode_or_source_is_never_served_stale(tmp_path):
    impls = tmp_path / "marker_impls.py"

    def run(**environment):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("IR_", "VLLM_"))}
        env |= {
            "PYTHONPATH": str(tmp_path),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",  # the source changes within the clock's tick
            "IR_PRIORITY": "rms_norm=plain,steady",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    impls.write_text(IMPLS.format(plain=1, steady=2))
    assert run()["value"] == 2.0
    warm = run()
    assert warm["value"] == 2.0
    assert warm["hits"] > 0, "the caches are not in use: this test would prove nothing"
    assert run(VLLM_BATCH_INVARIANT="1")["value"] == 4.0
    impls.write_text(IMPLS.format(plain=5, steady=2))
    assert run()["value"] == 10.0
