# SPDX-License-Identifier: Apache-2.0
"""Record what NVML and the CUDA runtime say of this machine, as a fixture.

    python packages/ir-platform/tests/record_nvml.py H200

writes ``tests/fixtures/recorded_H200.json``, which ``test_a_recording_of_a_real_machine`` replays from then
on: the answer made of NVML must be the one that the CUDA runtime gave. Needs torch with CUDA. UUIDs are
replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pynvml

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def hidden(uuid: str) -> str:
    """Another UUID of the same form, the same at every call."""
    prefix, digest = uuid[:4], hashlib.sha256(uuid.encode()).hexdigest()
    return f"{prefix}{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


def instance(handle: Any) -> dict[str, Any]:
    return {
        "uuid": hidden(pynvml.nvmlDeviceGetUUID(handle)),
        "name": pynvml.nvmlDeviceGetName(handle),
        "gpu_instance": pynvml.nvmlDeviceGetGpuInstanceId(handle),
        "compute_instance": pynvml.nvmlDeviceGetComputeInstanceId(handle),
        "multiprocessors": pynvml.nvmlDeviceGetAttributes(handle).multiprocessorCount,
        "memory": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    }


def mig(handle: Any) -> dict[str, Any] | None:
    try:
        enabled = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError_NotSupported:
        return None
    instances: list[dict[str, Any] | None] = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if enabled else 0):
        try:
            instances.append(instance(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        except pynvml.NVMLError_NotFound:
            instances.append(None)
    return {"enabled": enabled, "instances": instances}


def card(handle: Any) -> dict[str, Any]:
    bus_id = pynvml.nvmlDeviceGetPciInfo(handle).busId
    return {
        "name": pynvml.nvmlDeviceGetName(handle),
        "uuid": hidden(pynvml.nvmlDeviceGetUUID(handle)),
        "bus_id": bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        "capability": list(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "cores": pynvml.nvmlDeviceGetNumGpuCores(handle),
        "clock": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        "mig": mig(handle),
    }


def nvml() -> dict[str, Any]:
    """Cards in NVML's order."""
    pynvml.nvmlInit()
    try:
        count = pynvml.nvmlDeviceGetCount()
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
            "cards": [card(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)],
        }
    finally:
        pynvml.nvmlShutdown()


def cuda_runtime() -> list[dict[str, Any]]:
    """The same facts from the runtime, which creates a context."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "shared_memory_per_block": properties.shared_memory_per_block_optin,
        }
        for properties in found
    ]


def record() -> dict[str, Any]:
    """Everything, as the fixture holds it. Variables that name UUIDs are refused: UUIDs are replaced."""
    environment = {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ}
    if "-" in environment.get("CUDA_VISIBLE_DEVICES", ""):
        sys.exit("Unset CUDA_VISIBLE_DEVICES, or give it indices: a recording replaces UUIDs.")
    return {"environment": environment, **nvml(), "cuda_runtime": cuda_runtime()}


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].replace("-", "").isalnum():
        sys.exit(__doc__)
    path = FIXTURES / f"recorded_{sys.argv[1]}.json"
    path.write_text(json.dumps(record(), indent=2) + "\n", encoding="utf-8")
    print(path)
