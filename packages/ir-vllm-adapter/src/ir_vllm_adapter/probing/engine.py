# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine in this process, for a probe: the configuration that is asked for, few layers, made weights.

One process, because the probes look into the worker; hence no tensor, pipeline or data parallelism.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ir_vllm_adapter import compat, log, plugin, state
from ir_vllm_adapter.errors import AdapterError
from ir_vllm_adapter.probing import few_layers

PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True)
class Wanted:
    """Which engine to start.

    Args:
        folder: the model's folder.
        options: further arguments of ``vllm.LLM``.
        all_layers: load all layers, not few of each kind.
        load_format: as vLLM's; "": the folder's weights where it has any and all layers are loaded, else made ones.
    """

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    all_layers: bool = False
    load_format: str = ""

    @property
    def made_weights(self) -> bool:
        """Whether the weights are made here."""
        if self.load_format:
            return self.load_format == "dummy"
        return not self.all_layers or not any(True for p in WEIGHTS for _ in self.folder.glob(p))


@contextlib.contextmanager
def start(wanted: Wanted) -> Iterator[Any]:
    """A ``vllm.LLM`` with its worker in this process (``state.STATE.worker``).

    Raises:
        ModelError: the folder is none, or has no usable ``config.json``.
        AdapterError: there is no vLLM that the adapter knows, or several processes are asked for.
    """
    config = check(wanted)
    # vLLM reads it when its modules are imported: the worker has to be in this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    state.STATE.collecting = True
    plugin.register()
    from vllm import LLM

    options: dict[str, Any] = {"skip_tokenizer_init": True, "disable_log_stats": True, "seed": 0}
    if not wanted.all_layers and (changed := few_layers.overrides(config)):
        options["hf_overrides"] = changed
    if wanted.made_weights:
        options["load_format"] = "dummy"
    elif wanted.load_format:
        options["load_format"] = wanted.load_format
    llm = LLM(model=str(wanted.folder), **(options | wanted.options))
    try:
        if state.STATE.worker is None:
            raise AdapterError(
                "The engine's worker is not in this process, or the adapter is not active in it.",
                why=f"VLLM_PLUGINS={os.environ.get('VLLM_PLUGINS')!r}, IR_DISABLE={os.environ.get('IR_DISABLE')!r}.",
                fix="Let VLLM_PLUGINS name ir_vllm_adapter, unset IR_DISABLE, choose an executor of one process.",
            )
        if wanted.made_weights:
            make_weights(state.STATE.worker.model_runner.get_model())
        yield llm
    finally:
        state.STATE.collecting = False
        del llm


def check(wanted: Wanted) -> dict[str, Any]:
    """Whether the engine can be asked for here; the model's configuration.

    Raises:
        ModelError, AdapterError: as :func:`start`.
    """
    config = few_layers.read(wanted.folder)
    _check(wanted.options)
    return config


def _check(options: dict[str, Any]) -> None:
    host = compat.host()
    if not host.supported:
        raise AdapterError(
            "There is no vLLM here that the adapter knows.",
            why=host.line or f"vLLM {host.version}",
            fix="Install a supported vLLM in this environment (docs/vllm.md names the versions).",
        )
    for name in PARALLEL:
        if (size := options.get(name, 1)) != 1:
            raise AdapterError(
                f"{name}={size} asks for several processes, and this command looks into one.",
                why="Each rank runs the same kernels on its shard; only the all-reduce is between them.",
                fix=f"Leave {name} out. The all-reduce stays not checked.",
            )


def make_weights(model: Any) -> None:
    """Values that depend on a parameter's name and shape alone, and keep activations near unit size.

    vLLM's dummy weights are within 1e-3 of zero: all logits are then nearly equal, and what differs is small.
    Parameters of quantised layers (integers, 8-bit floats, scales) keep what vLLM gave them.
    """
    import torch

    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32) or "scale" in name:
            continue
        generator = torch.Generator(device=parameter.device).manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(
            parameter.shape, generator=generator, dtype=torch.float32, device=parameter.device
        )
        if parameter.dim() > 1:
            values *= parameter.shape[-1] ** -0.5
        else:
            values = 1.0 + 0.1 * values
        parameter.data.copy_(values)
    log.logger().debug("the probe's engine has made weights")


def model_name(folder: Path) -> str:
    """How a report names the model: its architecture, not a path of this machine."""
    names = few_layers.read(folder).get("architectures") or [folder.name]
    return str(names[0])
