# SPDX-License-Identifier: Apache-2.0
"""Where the kernels of a test run: interpreted on the CPU, or compiled on a GPU.

Triton decides which when a kernel is decorated, so one process has one of the two: ``TRITON_INTERPRET=1`` or not.
"""

import pytest
import torch

from ir_core import env

INTERPRETED = env.interpreted()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreter"),
        pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """``cpu`` with interpreted kernels, ``cuda`` with compiled ones; skips what this process cannot run."""
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1 (a process of its own)")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a GPU, and TRITON_INTERPRET unset")
    return str(request.param)


@pytest.fixture
def compiler() -> None:
    """Skips where Triton interprets: there is nothing to compile then."""
    if INTERPRETED:
        pytest.skip("Triton interprets in this process")
