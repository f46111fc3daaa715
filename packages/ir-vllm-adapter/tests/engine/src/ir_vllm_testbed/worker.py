# SPDX-License-Identifier: Apache-2.0
"""The worker of the test platform: vLLM's CPU worker without its C extension."""

from __future__ import annotations

import contextlib
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from . import models, plants
from .platform import pretend_hopper

# Tokens scheduled for each request, one list a forward pass: evidence of chunking and of prefix-cache hits.
PASSES: list[list[int]] = []


class TestbedWorker(CPUWorker):
    """CPUWorker, except that NUMA binding (a C op) is left out."""

    __test__ = False

    def __init__(
        self,
        vllm_config: Any,
        local_rank: int,
        rank: int,
        distributed_init_method: str,
        is_driver_worker: bool = False,
    ) -> None:
        pretend_hopper()
        self.requested_cpu_memory = 1 << 32  # bytes; only read when kv_cache_memory_bytes is not given
        Worker.__init__(
            self, vllm_config, local_rank, rank, distributed_init_method, is_driver_worker=is_driver_worker
        )
        self.parallel_config.disable_custom_all_reduce = True

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        models.randomize(self.model_runner.get_model())
        plants.install(self.model_runner.get_model())

    def execute_model(self, scheduler_output: Any) -> Any:
        if scheduler_output.total_num_scheduled_tokens:
            PASSES.append(list(scheduler_output.num_scheduled_tokens.values()))
        return super().execute_model(scheduler_output)

    def testbed_report(self) -> dict[str, Any]:
        """What this rank would run and has run; for `LLM.collective_rpc`."""
        from ir_vllm_adapter import agreement, status

        return {"ballot": agreement.ballot(), "adapter": dict(status.collect())}

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        return contextlib.nullcontext()
