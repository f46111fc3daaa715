# SPDX-License-Identifier: Apache-2.0
"""How many layers of a model show each kind of layer that it has: what a probe loads instead of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ir_vllm_adapter.errors import ModelError

_PERIODS: Final = ("decoder_sparse_step", "sliding_window_pattern", "moe_layer_freq", "interleave_moe_layer_step",
                   "full_attention_interval", "attn_layer_period", "expert_layer_period")  # fmt: skip
"""Names that configurations use for "every so many layers is another one"."""
_STARTS: Final = (
    "first_k_dense_replace",
    "moe_layer_start_index",
    "attn_layer_offset",
    "expert_layer_offset",
)
"""Names for "before this layer it is another one"."""


def read(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder.

    Raises:
        ModelError: there is no such folder, no ``config.json`` in it, or that is no JSON object.
    """
    if not folder.is_dir():
        raise ModelError(
            f"There is no folder {folder}.",
            why="A model is given as a folder on this machine: nothing is downloaded.",
            fix="Name a folder with a config.json; weights may be missing.",
        )
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no config.json.",
            why="vLLM reads a model's architecture and sizes from it.",
            fix="Name the folder that holds the model itself, not one above it.",
        )
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}.", fix="Repair it, or copy the model again."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object.", fix="Repair it, or copy the model again.")
    return found


def overrides(config: dict[str, Any]) -> dict[str, Any]:
    """What to override in a configuration so that the model has one layer of each kind at least; {} for all layers."""
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    total = text.get("num_hidden_layers")
    if not isinstance(total, int):
        return {}
    few = count(text)
    if few >= total:
        return {}
    changed: dict[str, Any] = {"num_hidden_layers": few}
    for name, value in text.items():
        if isinstance(value, list) and len(value) == total:  # one entry a layer
            changed[name] = value[:few]
    if isinstance(text.get("max_window_layers"), int):
        changed["max_window_layers"] = min(text["max_window_layers"], few)
    return changed if text is config else {"text_config": changed}


def count(config: dict[str, Any]) -> int:
    """The smallest number of first layers that has every kind of layer, and two where all are alike.

    Two, since a first layer's norm has no residual and the others' have.
    """
    total = int(config["num_hidden_layers"])
    few = 2
    for name in _PERIODS:
        if isinstance(value := config.get(name), int):
            few = max(few, value)
    for name in _STARTS:
        if isinstance(value := config.get(name), int):
            few = max(few, value + 1)
    for name, value in config.items():
        if name.endswith(("layer_types", "layers_block_type")) and isinstance(value, list):
            kinds = {str(kind) for kind in value}
            few = max(few, next(n for n in range(len(value) + 1) if {str(k) for k in value[:n]} == kinds))
    if isinstance(dense := config.get("mlp_only_layers"), list) and dense:
        few = max(few, next(n for n in range(total + 1) if n not in dense) + 1)
    return min(few, total)
