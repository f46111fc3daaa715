# SPDX-License-Identifier: Apache-2.0
"""How many layers show each kind of layer, and what is said of a folder that is no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ir_vllm_adapter import __main__ as command
from ir_vllm_adapter.errors import ModelError
from ir_vllm_adapter.probing import few_layers


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 28}, 2),  # the first layer's norm has no residual, so two
        ({"num_hidden_layers": 1}, 1),
        ({"num_hidden_layers": 61, "first_k_dense_replace": 3}, 4),
        ({"num_hidden_layers": 48, "decoder_sparse_step": 1, "mlp_only_layers": []}, 2),
        ({"num_hidden_layers": 48, "mlp_only_layers": [0, 1, 2]}, 4),
        ({"num_hidden_layers": 6, "layer_types": ["a", "a", "a", "b", "a", "a"]}, 4),
        ({"num_hidden_layers": 62, "sliding_window_pattern": 6}, 6),
        ({"num_hidden_layers": 3, "full_attention_interval": 4}, 3),
    ],
)
def test_each_kind_of_layer_is_there(config: dict[str, Any], expected: int) -> None:
    assert few_layers.count(config) == expected


def test_lists_with_an_entry_a_layer_are_cut() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["s", "f", "s", "f"],
        "max_window_layers": 4,
        "eos": [1, 2],
    }
    assert few_layers.overrides(config) == {
        "num_hidden_layers": 2,
        "layer_types": ["s", "f"],
        "max_window_layers": 2,
    }
    assert few_layers.overrides({"text_config": config}) == {"text_config": few_layers.overrides(config)}
    assert few_layers.overrides({"num_hidden_layers": 2}) == {}


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        few_layers.read(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        few_layers.read(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        few_layers.read(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="holds no JSON object"):
        few_layers.read(tmp_path)


def test_the_command_says_it_on_stderr_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["status", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "has no config.json" in err


def test_values_of_engine_arguments_are_json_or_text() -> None:
    options = command._parser().parse_args(
        ["status", "m", "-e", "block_size=16", "-e", "dtype=float32", "-e", "x=true"]
    )
    assert dict(options.engine) == {"block_size": 16, "dtype": "float32", "x": True}
    with pytest.raises(SystemExit):
        command._parser().parse_args(["status", "m", "-e", "dtype"])
