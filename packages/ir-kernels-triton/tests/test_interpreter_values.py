# SPDX-License-Identifier: Apache-2.0
"""Whatever value of TRITON_INTERPRET makes Triton interpret: the kernels know it, and the bits are portable's."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch, ir_core
from ir_core import ops

torch.manual_seed(0)
x, weight = torch.randn(4, 256, dtype=torch.bfloat16), torch.randn(256, dtype=torch.bfloat16)
args = (x, weight, 1e-6)
with ir_core.scope(batch_invariant=True):
    assert ops.rms_norm.dispatch(*args).provider == "triton_batch_invariant"
    ran = ops.rms_norm(*args)
gate = ops.gelu_and_mul_sparse.apply_arg_defaults((x, 0.5))
impls = ops.gelu_and_mul_sparse.impls
pairs = [(ran, ops.rms_norm.impls["portable"].impl_fn(*args, None)),
         (impls["triton_batch_invariant"].func_impl_fn(*gate), impls["portable"].func_impl_fn(*gate))]
print([int((one.view(torch.int16) != other.view(torch.int16)).sum()) for one, other in pairs])
"""


@pytest.mark.parametrize("value", ["true", "yes", "On", "y", "1"])
def test_the_bits_are_portables(value: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IR_", "VLLM_"))} | {
        "TRITON_INTERPRET": value
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[0,", "0]"]
