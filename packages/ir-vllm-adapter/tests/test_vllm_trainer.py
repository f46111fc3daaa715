# SPDX-License-Identifier: Apache-2.0
"""The example of a trainer that computes the rollout's bits: the real engine, a real model, real steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "rollout_and_trainer" / "run.py"


def _installed() -> bool:
    try:
        version("ir-vllm-testbed")
        version("transformers")
        return version("vllm") == "0.32.0"
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not _installed(), reason="needs vLLM 0.32.0, transformers and the testbed (tests/engine)"
    ),
]


@pytest.mark.parametrize(("dtype", "steps"), [("float32", 2), ("bfloat16", 5)])
def test_every_logprob_of_the_trainer_is_the_engines(tmp_path: Path, dtype: str, steps: int) -> None:
    """Exact: no difference after any step. Plain vLLM and plain PyTorch: differences, so that the test can fail."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(EXAMPLE), "--dtype", dtype, "--steps", str(steps), "--json", str(result)]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    found = json.loads(result.read_text())
    exact, plain = found["exact"]["steps"], found["plain"]["steps"]
    assert [row["differ"] for row in exact] == [0] * steps
    assert all(row["tokens"] == 48 and row["kl"] == 0.0 for row in exact)
    assert sum(row["differ"] for row in plain) > 0
    assert all(row["largest"] < 0.1 for row in plain)  # plain is right, only not equal
