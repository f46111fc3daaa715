# SPDX-License-Identifier: Apache-2.0
"""AMD devices, read from the kernel driver's topology in sysfs: no library and no context.

Source of the file format: the Linux kernel's amdkfd, ``/sys/class/kfd/kfd/topology/nodes/*/properties``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ir_platform.device import Device, other_device

TOPOLOGY: Final = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True, slots=True)
class Agent:
    """One GPU of the topology: gfx name, UUID as ``rocminfo`` prints it, compute units."""

    arch: str
    uuid: str
    compute_units: int
    lds: int


def agents(topology: Path = TOPOLOGY) -> list[Agent]:
    """The GPUs that this process may use, in the driver's order. Nodes that cannot be read are not for us."""
    try:
        nodes = sorted(topology.iterdir(), key=lambda node: int(node.name))
    except (OSError, ValueError):
        return []
    found = []
    for node in nodes:
        try:
            properties = _read(node / "properties")
        except OSError:  # the container's device rules hide it
            continue
        if properties.get("gfx_target_version"):  # a CPU node has 0
            found.append(_agent(properties))
    return found


def devices(found: list[Agent], environ: Mapping[str, str]) -> list[Device]:
    """Apply ROCR_VISIBLE_DEVICES, then HIP_VISIBLE_DEVICES or its alias CUDA_VISIBLE_DEVICES."""
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"
    for name in ("ROCR_VISIBLE_DEVICES", hip):
        if name in environ:
            found = _listed(environ[name], found)
    return [
        other_device(
            f"cuda:{index}",
            "rocm",
            "amd",
            arch=agent.arch,
            properties={"multiprocessors": agent.compute_units, "shared_memory_per_block": agent.lds},
            uuid=agent.uuid,
        )
        for index, agent in enumerate(found)
    ]


def gfx_name(version: int) -> str:
    """The kernel's number as the compiler's name: 90402 is ``gfx942``, 90010 is ``gfx90a``."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _agent(properties: Mapping[str, int]) -> Agent:
    per_unit = properties.get("simd_per_cu", 0)
    return Agent(
        arch=gfx_name(properties["gfx_target_version"]),
        uuid=f"GPU-{properties.get('unique_id', 0):016x}",
        compute_units=properties.get("simd_count", 0) // per_unit if per_unit else 0,
        lds=properties.get("lds_size_in_kb", 0) * 1024,
    )


def _read(path: Path) -> dict[str, int]:
    """``name number`` lines."""
    pairs = (line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _listed(value: str, found: list[Agent]) -> list[Agent]:
    """Indices or UUIDs; an entry that names nothing, or names one again, ends the list."""
    chosen: list[Agent] = []
    for entry in map(str.strip, value.split(",")):
        by_index = found[int(entry)] if entry.isdigit() and int(entry) < len(found) else None
        by_uuid = next((agent for agent in found if entry.lower() == agent.uuid.lower()), None)
        agent = by_index or by_uuid
        if agent is None or agent in chosen:
            break
        chosen.append(agent)
    return chosen
