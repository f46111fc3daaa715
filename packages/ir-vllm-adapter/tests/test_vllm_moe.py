# SPDX-License-Identifier: Apache-2.0
"""The experts' tiles against whatever vLLM is installed: the wiring on a CPU, the check itself on a GPU."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ir_vllm_adapter import log, moe_check, moe_seam, plugin, state
from ir_vllm_adapter.attachment import ATTACHED, is_wrapped

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs an installed vLLM"),
]

E, N = 8, 64
SIZE = f"MoE tiles, {E} experts of {N}"


def found(verdict: str) -> moe_check.Found:
    return moe_check.Found(verdict, "2026-11-25T00:00:00+00:00", "what was compared")


@pytest.fixture
def experts(vllm_on_cpu: None, invariant: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """vLLM's module, its functions wrapped, with a table of tiles for this size, and a worker of a bf16 model."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    name = fused_moe.get_config_file_name(E, N, None)
    tile = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}
    (tmp_path / name).write_text(json.dumps({"1": tile, "64": tile, "512": tile | {"BLOCK_SIZE_M": 64}}))
    invariant.setenv("VLLM_TUNED_CONFIG_FOLDER", str(tmp_path))
    fused_moe.get_moe_configs.cache_clear()
    state.STATE.worker = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.bfloat16))
    moe_seam.install()
    assert log.LINES == []
    return fused_moe


def chosen(experts: Any, tokens: int, dtype: str | None = None) -> dict[str, int]:
    """What vLLM chooses for so many tokens."""
    tile: dict[str, int] = experts.try_get_optimal_moe_config((E, 2 * N, 32), (E, 32, N), 2, dtype, tokens)
    return tile


def test_the_pinned_tile_is_vllms(experts: Any) -> None:
    """The check compares with what batch-invariant mode runs; in this version too."""
    original = experts.get_default_config.__wrapped__
    assert original(5, E, N, 32, 2, None) == moe_check.PINNED


def test_certified_tiles_are_given_back(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evidence(tiles: Any, dtype: str) -> moe_check.Found:
        asked.append((tiles, dtype))
        return found("certified")

    invariant.setattr(moe_check, "evidence", evidence)
    assert [chosen(experts, rows)["BLOCK_SIZE_M"] for rows in (1, 60, 4096)] == [16, 16, 64]
    ((tiles, dtype),) = asked  # once a size, with each tile once
    assert [tile["BLOCK_SIZE_M"] for tile in tiles] == [16, 64] and dtype == "bfloat16"
    assert ATTACHED.settings[SIZE].startswith("vLLM's tuned tiles: certified 2026-11-25")


def test_without_a_table_the_default_tiles_are_asked_for(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    invariant.setenv("VLLM_TUNED_CONFIG_FOLDER", "/nowhere")
    asked: list[Any] = []
    invariant.setattr(moe_check, "evidence", lambda tiles, dtype: asked.append(tiles) or found("certified"))
    here = [chosen(experts, rows) for rows in moe_seam.ROWS]
    assert len({json.dumps(tile) for tile in here}) > 1
    assert all(tile in asked[0] for tile in here)


@pytest.mark.parametrize("verdict", ["refuted", "not checked"])
def test_without_a_certificate_the_one_tile_stays(
    experts: Any, invariant: pytest.MonkeyPatch, verdict: str
) -> None:
    invariant.setattr(moe_check, "evidence", lambda tiles, dtype: found(verdict))
    assert [chosen(experts, rows) for rows in (1, 4096)] == [moe_check.PINNED] * 2
    assert ATTACHED.settings[SIZE].startswith(f"one tile for any batch: {verdict}")
    assert any("keep vLLM's one tile: what was compared" in line for line in log.LINES)


def test_on_a_cpu_nothing_is_run(experts: Any) -> None:
    assert chosen(experts, 4096) == moe_check.PINNED
    assert "a CPU says nothing" in ATTACHED.settings[SIZE]


def test_other_dtypes_are_not_asked_about(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    def never(*_args: Any) -> Any:
        raise AssertionError("the check ran")

    invariant.setattr(moe_check, "evidence", never)
    assert chosen(experts, 4096, "fp8_w8a8") == moe_check.PINNED
    state.STATE.worker.model_config.dtype = torch.float32
    assert chosen(experts, 4096) == moe_check.PINNED
    assert "in float32 a tile may decide bits" in ATTACHED.settings[SIZE]


def test_a_check_that_fails_leaves_the_one_tile(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any) -> Any:
        raise RuntimeError("out of resources")

    invariant.setattr(moe_check, "evidence", broken)
    assert chosen(experts, 4096) == moe_check.PINNED
    assert log.LINES == ["ir-vllm-adapter could not check the experts' tiles: RuntimeError: out of resources"]


def test_while_a_graph_is_recorded_nothing_is_asked(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    invariant.setattr(moe_check, "is_capturing", lambda: True)
    invariant.setattr(moe_check, "evidence", lambda tiles, dtype: found("certified"))
    assert chosen(experts, 4096) == moe_check.PINNED
    invariant.setattr(moe_check, "is_capturing", lambda: False)
    assert chosen(experts, 4096) != moe_check.PINNED


def test_it_is_taken_back(experts: Any, invariant: pytest.MonkeyPatch) -> None:
    invariant.setattr(moe_check, "evidence", lambda tiles, dtype: found("certified"))
    assert chosen(experts, 4096) != moe_check.PINNED
    plugin.unregister()
    assert chosen(experts, 4096) == moe_check.PINNED
    assert not is_wrapped(experts.get_default_config)
    assert moe_seam._asked == {}


def test_without_the_switch_nothing_is_touched(vllm_on_cpu: None, settings: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.fused_moe import fused_moe

    plugin.register()
    moe_seam.install()
    assert not is_wrapped(fused_moe.get_moe_configs)


# -- the check -----------------------------------------------------------------------------------------------


def outputs(tile: dict[str, int], tokens: int) -> torch.Tensor:
    """A product whose sums are grouped by BLOCK_SIZE_K: what the check has to find."""
    generator = torch.Generator().manual_seed(tokens)
    terms = torch.randn(tokens, 16, 256, generator=generator)
    total = torch.zeros(tokens, 16)
    for group in terms.split(tile["BLOCK_SIZE_K"], -1):
        total = total + group.sum(-1)
    return total.to(torch.bfloat16)


def test_a_planted_dependence_on_the_tile_is_found() -> None:
    same = [{**moe_check.PINNED, "BLOCK_SIZE_M": m} for m in (16, 128)]
    assert moe_check.compare(same, outputs) == ""
    other = {**moe_check.PINNED, "BLOCK_SIZE_K": 128}
    assert moe_check.compare([*same, other], outputs).startswith("tile 64x64x128: ")
    assert moe_check.compare([{**moe_check.PINNED, "SPLIT_K": 2}], outputs) == "tile 64x64x32 splits K"


def test_the_override_of_the_tile_is_taken_back(vllm_on_cpu: None) -> None:
    from vllm.model_executor.layers.fused_moe import get_config

    before = get_config()

    def fails() -> None:
        with moe_check.using(dict(moe_check.PINNED)):
            assert get_config() == moe_check.PINNED
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert get_config() is before


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bits_of_vllms_experts_do_not_depend_on_the_tile(dtype: str) -> None:
    """On the card: vLLM's kernel over 12 tiles, on both sides of the instruction shapes."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    tiles = [
        {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k, "GROUP_SIZE_M": 1, "num_warps": w, "num_stages": 3}
        for m, n, k, w in (
            (16, 64, 64, 4), (16, 64, 128, 4), (16, 128, 64, 4), (32, 64, 64, 4), (32, 128, 128, 4),
            (64, 64, 64, 4), (64, 128, 64, 4), (64, 128, 32, 8), (128, 128, 64, 8), (128, 64, 64, 4),
            (128, 256, 64, 8), (16, 32, 256, 4),
        )
    ]  # fmt: skip
    assert "vllm" in sys.modules or find_spec("vllm")
    assert moe_check.compare(tiles, moe_check.run_of(dtype, "cuda:0")) == ""
