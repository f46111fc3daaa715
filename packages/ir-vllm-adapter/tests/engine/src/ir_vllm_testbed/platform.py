# SPDX-License-Identifier: Apache-2.0
"""The out-of-tree platform: a CPU that keeps vLLM's GPU code paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability, PlatformEnum
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from . import pins, schemas

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class TestbedPlatform(CpuPlatform):
    """CPU tensors, Triton attention, vLLM's own compile mode.

    `_enum` is OOT, not CPU: vLLM then takes the layers' out-of-tree path and not its CPU kernels, which need the
    C extension of a CPU build.
    """

    __test__ = False
    _enum = PlatformEnum.OOT

    @classmethod
    def import_kernels(cls) -> None:
        """No C extension: only the schemas of the ops that vLLM's compile passes name."""
        schemas.define()
        pins.install()

    @classmethod
    def get_attn_backend_cls(cls, *_args: Any, **_kwargs: Any) -> str:
        if "IR_TESTBED_ATTENTION" in os.environ:
            return "ir_vllm_testbed.planted_attention.PlantedBackend"
        return AttentionBackendEnum.TRITON_ATTN.get_path()

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        return DeviceCapability(9, 0)

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """Keep the Triton kernels: they are what the testbed is for."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Keep the compile mode that was asked for; CpuPlatform would lower it to one plain Dynamo trace."""
        compilation = vllm_config.compilation_config
        mode, backend, wrap = compilation.mode, compilation.backend, compilation.ir_enable_torch_wrap
        ranges = getattr(compilation, "compile_ranges_endpoints", None)
        vllm_config.parallel_config.worker_cls = "ir_vllm_testbed.worker.TestbedWorker"
        super().check_and_update_config(vllm_config)
        compilation.mode, compilation.backend, compilation.ir_enable_torch_wrap = mode, backend, wrap
        if ranges is not None:
            compilation.compile_ranges_endpoints = ranges
        parallel = vllm_config.parallel_config
        parallel.distributed_executor_backend = "uni" if parallel.world_size == 1 else "mp"

    @classmethod
    def opaque_attention_op(cls) -> bool:
        return True


def pretend_hopper() -> None:
    """Questions that vLLM puts to torch.cuda directly get the platform's answer; no CUDA is touched."""
    torch.cuda.get_device_capability = lambda *_a, **_k: (9, 0)  # type: ignore[assignment]
    torch.accelerator.empty_host_cache = lambda *_a, **_k: None  # type: ignore[attr-defined]
