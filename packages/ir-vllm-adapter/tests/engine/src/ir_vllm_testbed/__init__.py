# SPDX-License-Identifier: Apache-2.0
"""Test-only: the real vLLM engine on a CPU machine, its Triton kernels interpreted.

What is vLLM's own here: the scheduler, the paged KV cache, chunked prefill, prefix caching, the Triton attention
kernel, the sampler, torch.compile with vLLM's passes, the IR and its lowering pass, the layer classes. What is ours
and why is in `platform` (no C extension on such a machine) and `pins` (what interpreting makes batch-dependent).
"""

from __future__ import annotations

import json
import multiprocessing
import os


def platform_plugin() -> str | None:
    """Class path of the test platform if IR_TESTBED=1, else None: an installed testbed does nothing by itself."""
    if os.environ.get("IR_TESTBED") != "1":
        return None
    # vLLM asks this before it loads anything else of a worker: here a rank can get an environment of its own.
    if multiprocessing.current_process().name == "VllmWorker-1":
        os.environ.update(json.loads(os.environ.get("IR_TESTBED_RANK_1", "{}")))
    return "ir_vllm_testbed.platform.TestbedPlatform"
