# SPDX-License-Identifier: Apache-2.0
"""The commands that look into an engine, with vLLM 0.32.0's real one on a CPU: each run is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ENGINE = (
    *("-e", "dtype=float32", "-e", "max_model_len=128", "-e", "block_size=16", "-e", "max_num_seqs=16"),
    *("-e", "max_num_batched_tokens=32", "-e", "kv_cache_memory_bytes=16777216", "-e", "enforce_eager=true"),
)


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


class Commands:
    """Runs commands on one model folder, with one store of certificates."""

    def __init__(self, folder: Path, model: str) -> None:
        from ir_vllm_testbed import models

        self.folder = folder
        self.model = models.write_model(model, folder / "model")

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "IR_TESTBED": "1",
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_CACHE_ROOT": str(self.folder / "cache"),
            "VLLM_BATCH_INVARIANT": "1",
            "IR_PACKS": "ir-kernels-triton",
            "IR_PRIORITY": "linear=portable",  # interpreted, a tile costs seconds
            "IR_CACHE_DIR": str(self.folder / "ir"),
        }
        command = [sys.executable, "-m", "ir_vllm_adapter", words[0], str(self.model), *ENGINE, *words[1:]]
        return subprocess.run(
            command,
            env=env | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )

    def json(self, *words: str, code: int = 0, **environment: str) -> dict[str, Any]:
        done = self(*words, "--json", **environment)
        assert done.returncode == code, done.stderr[-6000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("qwen3"), "qwen3")


def test_status_of_a_model_names_every_kind_of_kernel(qwen3: Commands) -> None:
    found = qwen3.json("status")["parts"]
    runs = {(part["kind"], part["op"] or part["runs"]): part for part in found}
    assert set(runs) == {
        ("attention", "TRITON_ATTN"),
        ("linear", "linear"),
        ("norm", "rms_norm"),
        ("norm", "fused_add_rms_norm"),
        ("activation", "SiluAndMul.forward_native"),
        ("rotary", "RotaryEmbedding.forward_native"),
        ("embedding", "F.embedding"),
        ("glue", "torch operations of Qwen3ForCausalLM"),
        ("sampler", "compute_token_logprobs"),
    }
    assert runs["norm", "rms_norm"]["runs"] == "triton_batch_invariant"
    assert runs["norm", "rms_norm"]["order"] == "tree"
    assert runs["linear", "linear"]["count"] == 9  # 4 of each of 2 layers, and lm_head
    assert len({part["uuid"] for part in found}) == len(found)
    exempt = {part["kind"] for part in found if part["verdict"] == "by construction"}
    assert exempt <= {"embedding", "linear"}  # linear of float32 may be portable here
    assert {part["verdict"] for part in found if part["kind"] not in exempt} == {"not checked"}


@pytest.fixture(scope="module")
def planted(qwen3: Commands) -> dict[str, Any]:
    """A verification of a backend that changes at 10 tokens, in its second layer."""
    words = ("--tokens", "12", "--budget", "600", "--own-budget", "0")
    return qwen3.json("verify", *words, code=1, IR_TESTBED_ATTENTION="10@1")


def test_verify_finds_a_backend_that_changes_at_ten_tokens(planted: dict[str, Any]) -> None:
    verdicts = {(part["kind"], part["op"] or part["runs"]): part["verdict"] for part in planted["parts"]}
    assert verdicts.pop(("attention", "TRITON_ATTN")) == "refuted"
    assert verdicts.pop(("norm", "rms_norm")) == verdicts.pop(("norm", "fused_add_rms_norm")) == "not checked"
    assert verdicts.pop(("embedding", "F.embedding")) == "by construction"
    assert verdicts.pop(("linear", "linear")) in (
        "not checked",
        "by construction",
    )  # ours, and no time given to it
    # Each part is judged by itself: what the backend changes is nothing that the others answer for.
    assert set(verdicts.values()) == {"certified"}
    assert len(verdicts) == 4
    (text,) = planted["findings"]["vllm.attention: TRITON_ATTN"]
    assert "In model.layers.1.self_attn.attn at position" in text
    assert "Changes when a chunk grows from 9 to 10 tokens." in text
    assert planted["left_out"] == 0


def test_certificates_are_found_again_for_exactly_this_code(planted: dict[str, Any], qwen3: Commands) -> None:
    """The next start reads them; the backend without the plant is other code, and was not checked."""
    found = {part["runs"]: part for part in qwen3.json("status", IR_TESTBED_ATTENTION="10@1")["parts"]}
    assert found["TRITON_ATTN"]["verdict"] == "refuted"
    assert found["TRITON_ATTN"]["home"].startswith("ir-vllm-testbed")
    assert found["compute_token_logprobs"]["verdict"] == "certified"
    assert "changes when a chunk grows from 9 to 10 tokens" in found["TRITON_ATTN"]["detail"]
    clean = {part["runs"]: part for part in qwen3.json("status")["parts"]}
    assert clean["TRITON_ATTN"]["verdict"] == "not checked"
    assert clean["compute_token_logprobs"]["verdict"] == "certified"


PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [9, 8, 7], [40, 41, 42, 43, 44]]


@pytest.fixture(scope="module")
def prompts(qwen3: Commands) -> tuple[str, ...]:
    path = qwen3.folder / "prompts.json"
    path.write_text(json.dumps(PROMPTS), encoding="utf-8")
    return "--prompts", str(path), "--new", "2", "-e", "max_num_batched_tokens=64"


def test_audit_names_a_planted_kernel_in_its_layer(qwen3: Commands, prompts: tuple[str, ...]) -> None:
    found = qwen3.json("audit", *prompts, code=1, IR_TESTBED_ATTENTION="10@1")
    (finding,) = found["findings"]
    assert (finding["layer"], finding["module"]) == (1, "model.layers.1.self_attn.attn")
    assert (finding["kind"], finding["runs"]) == ("attention", "TRITON_ATTN")
    assert "vllm.unified_attention_with_output" in finding["operation"]
    assert "kernel_unified_attention" in finding["operation"]
    assert finding["case"] == "among neighbours"
    # What the engine answers is another matter: the short prompts change, beside one of twelve tokens.
    assert [bool(cases) for cases in found["outputs"]] == [False, True, True]
    assert found["prompts"] == [12, 3, 5]


def test_audit_finds_every_plant_at_once_and_nothing_else(qwen3: Commands, prompts: tuple[str, ...]) -> None:
    """Norms of a pack that lies, one linear layer, and log-probabilities: each is judged by itself."""
    plants = {"IR_PACKS": "ir-vllm-testbed", "IR_TESTBED_PLANTS": "model.layers.0.mlp.down_proj,sampler"}
    found = qwen3.json("audit", *prompts, code=1, **plants)
    norms = {finding["module"] for finding in found["findings"] if finding["kind"] == "norm"}
    layers = [f"model.layers.{n}.{name}" for n in (0, 1) for name in (
        "input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm")]  # fmt: skip
    assert norms == {*layers, "model.norm"}
    others = {finding["module"]: finding for finding in found["findings"] if finding["kind"] != "norm"}
    assert set(others) == {"model.layers.0.mlp.down_proj", "sampler"}
    assert others["model.layers.0.mlp.down_proj"]["layer"] == 0
    assert found["findings"][0]["module"] == "model.layers.0.input_layernorm"
    assert found["findings"][-1]["module"] == "sampler"


def test_audit_of_what_is_invariant_finds_nothing(qwen3: Commands, prompts: tuple[str, ...]) -> None:
    found = qwen3.json("audit", *prompts, code=0)
    assert found["findings"] == []
    assert found["outputs"] == [[], [], []]
    assert found["compared"] > 1000


def test_audit_says_what_is_wrong_with_prompts(qwen3: Commands) -> None:
    path = qwen3.folder / "broken.json"
    path.write_text('["text"]', encoding="utf-8")
    done = qwen3("audit", "--prompts", str(path))
    assert done.returncode == 2
    assert "cannot be read as prompts" in done.stderr
