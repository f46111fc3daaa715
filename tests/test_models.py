# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, unmodified, under ``batch_invariant_mode``: every logit keeps its bits.

Qwen3, Llama and Gemma 3 from small configurations with random weights. The same comparisons without the mode find
differences, so that they can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core.covering import known

transformers = pytest.importorskip("transformers", reason="a dependency of these tests alone")

LENGTHS = (1, 2, 5, 17, 64)
VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
MODELS = pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True, scope="module")
def core_alone() -> Iterator[None]:
    """Without other packs, and with one thread: these models are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IR_PACKS", "")
        ir_core.refresh()
        yield
    ir_core.refresh()


@pytest.fixture(autouse=True)
def everything_is_covered() -> Iterator[None]:
    known.forget()
    yield
    assert known.said() == ()


@cache
def model(name: str, dtype: torch.dtype, layers: int = 1) -> Any:
    sizes = {**SIZES, "num_hidden_layers": layers}
    torch.manual_seed(0)
    if name == "qwen3":
        made = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    elif name == "llama":
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        config = transformers.Gemma3TextConfig(**sizes, sliding_window=128, query_pre_attn_scalar=16)
        made = transformers.Gemma3ForCausalLM(config)
    return made.to(dtype).eval().requires_grad_(False)


def prompt(length: int, number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * length + number)
    return torch.randint(VOCABULARY, (length,), generator=generator)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.itemsize])


def together(run: Any, prompts: list[Tensor]) -> list[Tensor]:
    """The logits of prompts in one batch, padded on the right."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(prompts):
        ids[row, : len(each)], mask[row, : len(each)] = each, 1
    logits = run(input_ids=ids, attention_mask=mask).logits
    return [logits[row, : len(each)] for row, each in enumerate(prompts)]


def differences(found: list[Tensor], expected: list[Tensor]) -> int:
    return sum(int((bits(a) != bits(b)).sum()) for a, b in zip(found, expected, strict=True))


def in_batches(made: Any) -> int:
    """Logits that differ between prompts alone and the same ones in batches of 2, 8 and 33, in two orders."""
    prompts = [prompt(length) for length in LENGTHS]
    alone = [made(each[None]).logits[0] for each in prompts]
    total = differences(together(made, prompts[3:]), alone[3:])
    eight = [prompts[0], prompts[2], prompt(9), prompts[3], prompt(3), prompts[1], prompt(17, 1), prompt(8)]
    found = together(made, eight)
    total += differences([found[0], found[5], found[1], found[3]], alone[:4])
    total += differences(together(made, eight[::-1])[::-1], found)
    many = [prompt(1 + number % 5, number) for number in range(29)]
    found = together(made, [*many, prompt(4), *prompts[:3]])
    return total + differences(found[-3:], alone[:3])


def in_chunks(made: Any) -> int:
    """Logits that differ between a prompt at once and the same one in chunks, with a cache."""
    ids = prompt(64)[None]
    whole = made(ids).logits[0]
    kept = transformers.DynamicCache(config=made.config)
    parts = []
    for start, stop in ((0, 10), (10, 11), (11, 40), (40, 64)):
        parts.append(made(ids[:, start:stop], past_key_values=kept, use_cache=True).logits[0])
    return differences([torch.cat(parts)], [whole])


def in_generation(made: Any) -> int:
    """Logits that differ between ``generate`` with a cache, of a batch, and each whole sequence at once, alone."""
    ids = torch.stack([prompt(5), prompt(5, 1)])
    done = made.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = torch.stack(done.logits, 1)
    total = 0
    for row, sequence in enumerate(done.sequences):
        whole = made(sequence[None, :-1]).logits[0, 4:].to(steps.dtype)
        total += differences([steps[row]], [whole])
    return total


@pytest.mark.slow
@DTYPES
@MODELS
def test_every_logit_keeps_its_bits(name: str, dtype: torch.dtype) -> None:
    made = model(name, dtype)
    with torch.no_grad(), ir_core.batch_invariant_mode():
        assert in_batches(made) == 0
        assert in_chunks(made) == 0
        assert in_generation(made) == 0


@pytest.mark.parametrize("run", [in_batches, in_chunks, in_generation])
def test_without_the_mode_they_do_not(run: Any) -> None:
    with torch.no_grad():
        assert run(model("qwen3", torch.float32)) > 0


@pytest.mark.slow
@DTYPES
@MODELS
def test_compiled_logits_are_the_eager_ones(name: str, dtype: torch.dtype) -> None:
    """One layer, at three shapes: alone, in a batch, and one token after others in a cache that is a graph's input."""
    torch._dynamo.reset()
    made = model(name, dtype)
    prompts = [prompt(5), prompt(17)]
    compiled: Any = torch.compile(made, fullgraph=True)
    with torch.no_grad(), ir_core.batch_invariant_mode():
        alone = [made(each[None]).logits[0] for each in prompts]
        assert differences([compiled(each[None], use_cache=False).logits[0] for each in prompts], alone) == 0
        assert differences(together(lambda **k: compiled(**k, use_cache=False), prompts), alone) == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_gradient_of_a_sequence_does_not_depend_on_the_batch(attention: str) -> None:
    made = model("qwen3", torch.float32)
    made.set_attn_implementation(attention)

    def gradient(ids: Tensor) -> Tensor:
        embedded = made.get_input_embeddings()(ids).detach().requires_grad_()
        logits = made(inputs_embeds=embedded, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        losses.backward(torch.ones_like(losses))
        found = embedded.grad
        assert isinstance(found, Tensor)
        return found

    ids = torch.stack([prompt(9, number) for number in range(5)])
    try:
        with ir_core.batch_invariant_mode():
            batch = gradient(ids)
            alone = torch.cat([gradient(row[None]) for row in ids])
    finally:
        made.set_attn_implementation("sdpa")
    assert differences([batch], [alone]) == 0


def test_left_padding_is_refused() -> None:
    made = model("qwen3", torch.float32)
    ids = torch.stack([prompt(6), prompt(6, 1)])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with (
        torch.no_grad(),
        ir_core.batch_invariant_mode(),
        pytest.raises(ir_core.errors.ArgumentError, match="padded on the left"),
    ):
        made(ids, attention_mask=mask)


def test_an_audit_finds_nothing() -> None:
    made = model("qwen3", torch.float32)
    ids = torch.stack([prompt(9, number) for number in range(4)])
    with torch.no_grad(), ir_core.batch_invariant_mode():
        report = ir_core.audit(lambda tokens: made(tokens, use_cache=False).logits, ids, rows=(1, 2))
    assert report.first is None, report.explain()


@MODELS
def test_patch_knows_the_norms_of_transformers(name: str) -> None:
    made = model(name, torch.float32)
    ids = prompt(5)[None]
    with torch.no_grad():
        before = made(ids).logits
        with ir_core.patch(made) as patched:
            assert sum(kind.endswith("RMSNorm") for kind in patched.swapped.values()) >= 3
            assert patched.swapped["lm_head"] == "Linear"
            assert set(patched.kept) == {"model.embed_tokens"}
            torch.testing.assert_close(made(ids).logits, before, rtol=1e-4, atol=1e-4)
        assert torch.equal(made(ids).logits, before)
