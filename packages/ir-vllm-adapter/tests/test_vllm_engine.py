# SPDX-License-Identifier: Apache-2.0
"""The real engine of vLLM 0.32.0 on a CPU: the same prompts in other company give the same bits, or the test fails.

Each run is a process of its own (``ir_vllm_testbed.run``), made once and shared by the tests that ask for it. Norms and
products are ir-core's; the one thing that is pinned is said in ``ir_vllm_testbed.pins``; the rest is vLLM's own.
IR_ENGINE_JOBS runs so many at a time (default 2).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pytest

INVARIANT = "triton_batch_invariant"
# linear runs portable, which is fast in float32 at these sizes; interpreted, its kernel takes minutes a scenario, and
# one short run shows that it has the same bits.
PORTABLE = {"IR_PRIORITY": "linear=portable"}
OURS = {"VLLM_BATCH_INVARIANT": "1", "IR_PACKS": "ir-kernels-triton"} | PORTABLE
PLANTED = {"VLLM_BATCH_INVARIANT": "1", "IR_PACKS": "ir-vllm-testbed"} | PORTABLE
PLANTED_LINEAR = PLANTED | {"IR_PRIORITY": "rms_norm=portable; fused_add_rms_norm=portable"}
BUDGET = 32  # tokens a pass, ir_vllm_testbed.run.BUDGET
LENGTHS = {"a": 19, "b": 5, "c": 35, "d": 1}

# name -> (spec of ir_vllm_testbed.run, environment). A run waits for the one whose compile cache it takes over.
RUNS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "qwen3-eager": ({"model": "qwen3", "mode": "eager"}, OURS),
    "qwen3-compile": ({"model": "qwen3", "mode": "compile"}, OURS),
    "gemma3-eager": ({"model": "gemma3", "mode": "eager"}, OURS),
    "gemma3-compile": ({"model": "gemma3", "mode": "compile"}, OURS),
    "qwen3-no-ir": ({"model": "qwen3", "mode": "compile", "hide_ir": True}, OURS),
    "qwen3-planted": ({"model": "qwen3", "mode": "eager"}, PLANTED),
    "qwen3-planted-linear": (
        {"model": "qwen3", "mode": "eager", "scenarios": ["batched"]},
        PLANTED_LINEAR,
    ),
    "qwen3-kernel": (
        {"model": "qwen3", "mode": "eager", "scenarios": ["batched"], "prompts": ["b", "d"], "max_tokens": 1},
        OURS | {"IR_PRIORITY": ""},
    ),
    "qwen3-cached": ({"model": "qwen3", "mode": "compile"}, OURS | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
}
CACHE_OF = {"qwen3-cached": "qwen3-compile"}
# Two tensor-parallel ranks, each a process; in the second run, rank 1 alone has another environment, and so a pack that
# rank 0 does not have. No other process in between: an engine that fails to start is to fail at once.
TWO_RANKS = {
    "model": "qwen3",
    "mode": "eager",
    "ranks": 2,
    "max_tokens": 2,
    "prompts": ["a", "b"],
    "scenarios": ["neighbours"],
}
RUNS["qwen3-two-ranks"] = (TWO_RANKS, OURS)
RUNS["qwen3-other-rank"] = (
    TWO_RANKS,
    OURS | {"IR_TESTBED_RANK_1": json.dumps({"IR_PACKS": "ir-vllm-testbed"})},
)
REFUSED = {"qwen3-other-rank"}


def _installed() -> bool:
    try:
        version("ir-vllm-testbed")
        return version("vllm") == "0.32.0"
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not _installed(), reason="needs vLLM 0.32.0 and the testbed (tests/engine)"),
]

T = TypeVar("T")


def uses(*names: str) -> Callable[[T], T]:
    """The runs that a test needs: they are started together, before the first test waits for one."""

    def mark(function: T) -> T:
        function.engine_runs = names  # type: ignore[attr-defined]
        return function

    return mark


class Engines:
    """The engine runs of this test session."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(int(os.environ.get("IR_ENGINE_JOBS", "2")))
        wanted = [name for name in RUNS if name in names | {CACHE_OF[n] for n in names if n in CACHE_OF}]
        self.futures: dict[str, Future[dict[str, Any]]] = {}
        for name in wanted:
            self.futures[name] = self.pool.submit(self._run, name)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.futures[name].result()

    def _run(self, name: str) -> dict[str, Any]:
        if name in CACHE_OF:
            self.futures[CACHE_OF[name]].result()
        spec, environment = RUNS[name]
        folder = self.folder / name
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        cache = str(self.folder / CACHE_OF.get(name, name) / "cache")
        env = os.environ | {
            "IR_TESTBED": "1",
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_CACHE_ROOT": cache,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        }
        env.update(environment)
        command = [sys.executable, "-m", "ir_vllm_testbed.run", "spec.json", "result.json"]
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run(
                command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=1800
            )
        text = (folder / "log.txt").read_text()
        if name in REFUSED:
            return {"log": text, "started": (folder / "result.json").exists()}
        assert done.returncode == 0, f"engine run {name} failed:\n{text[-6000:]}"
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        result["log"] = text
        return result

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    names = {name for item in request.session.items for name in getattr(item.function, "engine_runs", ())}  # type: ignore[attr-defined]
    made = Engines(tmp_path_factory.mktemp("engines"), names)
    yield made
    made.close()


def assert_same_bits(result: dict[str, Any]) -> None:
    """Every prompt's tokens, logprobs and prompt logprobs are those of the prompt alone, in every scenario."""
    from ir_vllm_testbed.compare import differences

    assert differences(result) == []


NAMES = (f"rms_norm/{INVARIANT}", f"fused_add_rms_norm/{INVARIANT}", "linear/portable")
MATRIX = ("qwen3-eager", "qwen3-compile", "gemma3-eager", "gemma3-compile")


@uses(*MATRIX)
@pytest.mark.parametrize("name", MATRIX)
def test_the_same_prompt_has_the_same_bits_in_any_company(engines: Engines, name: str) -> None:
    from ir_vllm_testbed.compare import hit_the_cache, was_chunked

    result = engines[name]
    assert_same_bits(result)
    assert set(result["runs"]) == {"alone", "batched", "reordered", "neighbours", "prefix_cached"}
    assert all(step for run in result["runs"]["alone"].values() for step in run["logprobs"])
    # The scenarios were what their names say.
    assert was_chunked(result, "batched", BUDGET)
    assert was_chunked(result, "neighbours", BUDGET)
    assert hit_the_cache(result, LENGTHS)


@uses(*MATRIX)
@pytest.mark.parametrize("name", MATRIX)
def test_what_ran_is_read_back(engines: Engines, name: str) -> None:
    """From vLLM's own lowering pass where the model is compiled, and from our counters in both cases."""
    result = engines[name]
    norms = {"qwen3": (5, 4), "gemma3": (9, 4)}[name.partition("-")[0]]
    calls = result["adapter"]["counters"]
    if name.endswith("compile"):
        assert result["lowered"] == {
            "rms_norm": {INVARIANT: norms[0]},
            "fused_add_rms_norm": {INVARIANT: norms[1]},
        }
        one = f"graph:rms_norm/{INVARIANT}"
        products = {
            "graph:linear/selected at the call",
            "layer:linear/portable",
        }  # lm_head is outside of the graph
        assert set(calls) == {one, f"{one} in pairs", f"graph:fused_add_rms_norm/{INVARIANT}", *products}
        # The q and k norms of both layers are two pairs; the other norms of each depend on one another.
        assert calls[f"{one} in pairs"] * norms[0] == calls[one] * 2
        assert calls[f"graph:rms_norm/{INVARIANT}"] % norms[0] == 0
    else:
        assert set(calls) == {f"layer:{name}" for name in NAMES}
        assert calls[f"layer:rms_norm/{INVARIANT}"] % norms[0] == 0
        # Four products a layer and pass, and lm_head once or more (it makes the prompt's logprobs too).
        passes = calls[f"layer:rms_norm/{INVARIANT}"] // norms[0]
        assert calls["layer:linear/portable"] > 8 * passes
    assert result["adapter"]["warnings"] == []
    layer = {"qwen3": "RMSNorm", "gemma3": "GemmaRMSNorm"}[name.partition("-")[0]]
    assert {row["layer"]: row["count"] for row in result["adapter"]["layers"]}[layer] == sum(norms)


@uses("qwen3-eager", "qwen3-compile")
def test_eager_and_compiled_give_the_same_bits(engines: Engines) -> None:
    """A whole model, bit for bit, where what is left to Inductor's C++ has ATen's bits on a CPU.

    Not so Gemma, whose tanh GELU Inductor computes in other steps than ATen; its norms are compared layer by layer in
    test_vllm_seams.py.
    """
    assert engines["qwen3-eager"]["runs"] == engines["qwen3-compile"]["runs"]


@uses("qwen3-planted")
def test_a_planted_variant_makes_the_same_test_fail(engines: Engines) -> None:
    result = engines["qwen3-planted"]
    assert set(result["adapter"]["counters"]) == {
        "layer:rms_norm/planted",
        "layer:fused_add_rms_norm/planted",
        "layer:linear/portable",
    }
    with pytest.raises(AssertionError, match="batched: prompt"):
        assert_same_bits(result)


@uses("qwen3-planted-linear")
def test_a_planted_variant_of_linear_makes_it_fail_too(engines: Engines) -> None:
    """Every product of the model is that of the planted pack, every norm is portable."""
    result = engines["qwen3-planted-linear"]
    assert set(result["adapter"]["counters"]) == {
        "layer:rms_norm/portable",
        "layer:fused_add_rms_norm/portable",
        "layer:linear/planted",
    }
    with pytest.raises(AssertionError, match="batched: prompt"):
        assert_same_bits(result)


@uses("qwen3-kernel", "qwen3-eager")
def test_the_kernel_of_linear_has_the_bits_of_portable(engines: Engines) -> None:
    """The same model with the Triton kernel interpreted, for two short prompts and their first new token."""
    result, whole = engines["qwen3-kernel"], engines["qwen3-eager"]
    assert_same_bits(result)
    assert "layer:linear/triton_fp32" in result["adapter"]["counters"]
    for prompt in ("b", "d"):
        found, expected = result["runs"]["alone"][prompt], whole["runs"]["alone"][prompt]
        assert found["prompt_logprobs"] == expected["prompt_logprobs"]
        assert found["logprobs"] == expected["logprobs"][:1]


@uses("qwen3-no-ir", "qwen3-compile")
def test_without_an_ir_the_layer_seam_gives_the_same_bits(engines: Engines) -> None:
    """vLLM 0.34, as far as it is known: no IR. The graph holds our op, which selects at the call."""
    result = engines["qwen3-no-ir"]
    assert_same_bits(result)
    assert result["runs"] == engines["qwen3-compile"]["runs"]
    assert result["lowered"] == {}
    counted = set(result["adapter"]["counters"])
    graph = {f"graph:{op}/selected at the call" for op in ("rms_norm", "fused_add_rms_norm", "linear")}
    assert counted == {*graph, "layer:linear/portable"}


@uses("qwen3-cached", "qwen3-compile")
def test_a_warm_compile_cache_and_another_process_change_nothing(engines: Engines) -> None:
    """The engine core in a process of its own takes the graph from vLLM's cache: our ops are there before it loads."""
    result = engines["qwen3-cached"]
    assert result["runs"] == engines["qwen3-compile"]["runs"]
    assert "EngineCore" in result["log"]


@uses("qwen3-two-ranks")
def test_two_tensor_parallel_ranks_agree_and_keep_the_bits(engines: Engines) -> None:
    """Each rank has half of every layer's heads and columns; gloo adds the halves. Both run the same norms."""
    result = engines["qwen3-two-ranks"]
    assert_same_bits(result)
    assert set(result["runs"]) == {"alone", "neighbours"}
    first, second = result["ranks"]
    assert first["ballot"] == second["ballot"]
    assert first["ballot"]["rms_norm"][0].startswith(f"{INVARIANT} (ir-kernels-triton ")
    counted = first["adapter"]["counters"]
    assert counted == second["adapter"]["counters"]
    assert set(counted) == {f"layer:{name}" for name in NAMES}
    assert first["adapter"]["warnings"] == second["adapter"]["warnings"] == []
    assert result["log"].count("in vLLM 0.32.0: batch-invariant mode, cpu") == 1


@uses("qwen3-other-rank")
def test_ranks_that_would_run_different_norms_do_not_start(engines: Engines) -> None:
    result = engines["qwen3-other-rank"]
    assert not result["started"]
    text = result["log"]
    # On both ranks: in the traceback of each, with both lists.
    assert (
        text.count("AgreementError: Tensor-parallel ranks 0 and 1 would run different implementations") >= 2
    )
    lists = r" rms_norm: rank 0: triton_batch_invariant \(ir-kernels-triton .*; rank 1: portable \(ir-core "
    assert re.search(lists, text)


@uses("qwen3-eager")
def test_the_start_table_is_logged_once(engines: Engines) -> None:
    text = engines["qwen3-eager"]["log"]
    assert text.count("in vLLM 0.32.0: batch-invariant mode, cpu") == 1
    assert f"{INVARIANT} (ir-kernels-triton" in text
    assert "RMSNorm" in text
