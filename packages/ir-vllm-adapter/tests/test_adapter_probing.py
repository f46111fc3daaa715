# SPDX-License-Identifier: Apache-2.0
"""The tap, histories and cases, on modules that are named as vLLM's are: without vLLM."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ir_vllm_adapter import __main__ as command
from ir_vllm_adapter.errors import AdapterError
from ir_vllm_adapter.parts import Part
from ir_vllm_adapter.probing import audit, cases, rows, verify
from ir_vllm_adapter.probing.histories import Batch, Histories
from ir_vllm_adapter.probing.operations import Operations
from ir_vllm_adapter.probing.tap import Difference, Tap

# -- digests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_digest_sees_one_bit_and_no_company(dtype: torch.dtype) -> None:
    x = torch.randn(40, 3, 5).to(dtype)
    together = rows.digests(x)
    alone = np.concatenate([rows.digests(x[i : i + 1]) for i in range(40)])
    assert np.array_equal(together, alone)
    changed = x.clone()
    flat = changed.view(torch.uint8).reshape(40, -1)
    flat[7, 0] ^= 1
    assert np.flatnonzero(rows.digests(changed) != together).tolist() == [7]


def test_a_digest_knows_places() -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    first, second = rows.digests(x)
    assert first != second
    assert rows.mix(first, second) != rows.mix(second, first)
    assert len(set(rows.chained(np.array([5, 5, 5], dtype=np.int64)).tolist())) == 3


# -- histories ---------------------------------------------------------------------------------------------


def common(chunks: list[tuple[int, int, list[int]]], block: int = 4) -> SimpleNamespace:
    """vLLM's metadata of a pass: for each request, new tokens, length, blocks."""
    starts = np.cumsum([0, *(new for new, _, _ in chunks)])
    width = max(len(blocks) for _, _, blocks in chunks)
    slots = [
        blocks[p // block] * block + p % block
        for new, length, blocks in chunks
        for p in range(length - new, length)
    ]
    return SimpleNamespace(
        query_start_loc_cpu=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([length for _, length, _ in chunks], dtype=torch.int32),
        num_reqs=len(chunks),
        block_table_tensor=torch.tensor(
            [b + [0] * (width - len(b)) for _, _, b in chunks], dtype=torch.int32
        ),
        slot_mapping=torch.tensor(slots),
    )


class Builder:
    """A backend's metadata builder."""

    kv_cache_spec = SimpleNamespace(block_size=4)

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> None:
        pass


def runner() -> SimpleNamespace:
    builder = Builder()
    group = SimpleNamespace(layer_names=["layer"], metadata_builders=[builder])
    return SimpleNamespace(attn_groups=[[group]], builder=builder)


def test_positions_and_block_sizes_come_from_the_metadata() -> None:
    batch = Batch.of(common([(3, 7, [5, 2]), (1, 2, [9])], block=4), block_size=16)
    assert batch.block_size == 0 or batch.fits(batch.block_size)
    batch = Batch.of(common([(3, 7, [5, 2]), (1, 2, [9])], block=4), block_size=4)
    assert (batch.block_size, batch.tokens) == (4, 4)
    assert batch.positions().tolist() == [4, 5, 6, 1]
    assert batch.sequence(0, 4).tolist() == [20, 21, 22, 23, 8, 9, 10]


@pytest.mark.parametrize("window", [None, 3])
def test_a_history_is_the_same_in_one_chunk_in_two_and_in_other_blocks(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 8)
    made = runner()
    histories = Histories(made)

    def keys(chunks: list[tuple[int, int, list[int]]], *spans: slice) -> list[int]:
        made.builder.build(0, common_attn_metadata=common(chunks))
        given = [torch.cat([t[s] for s in spans]) for t in (q, k, v)]
        found, untold = histories.keys("layer", given, window=window)
        assert untold == ""
        return [int(each) for each in found]

    whole = keys([(6, 6, [1, 2])], slice(0, 6))
    assert keys([(4, 4, [7])], slice(0, 4)) == whole[:4]
    assert keys([(2, 6, [7, 3])], slice(4, 6)) == whole[4:]  # reads what the call before gave to block 7
    assert keys([(6, 6, [4, 5]), (3, 3, [6])], slice(0, 6), slice(0, 3)) == whole + whole[:3]
    # Another key at position 0 is another history for all that see it.
    k[0] += 1
    changed = keys([(6, 6, [1, 2])], slice(0, 6))
    differing = [i for i in range(6) if changed[i] != whole[i]]
    assert differing == (list(range(6)) if window is None else [0, 1, 2])
    histories.close()
    assert "build" not in vars(made.builder)


def test_rows_that_cannot_be_told_are_said_to_be() -> None:
    made = runner()
    histories = Histories(made)
    assert "not known here" in histories.keys("other layer", [torch.zeros(1, 2)])[1]
    broken = common([(3, 7, [5, 2])])
    broken.slot_mapping += 1000
    made.builder.build(0, common_attn_metadata=broken)
    assert "do not fit together" in histories.keys("layer", [torch.zeros(3, 2)] * 3)[1]


# -- the tap -----------------------------------------------------------------------------------------------

LINEAR = type("LinearBase", (nn.Module,), {})


class Linear(LINEAR):  # type: ignore[misc, valid-type]
    """One operation without a sum, and from ``many`` rows on other bits."""

    def __init__(self, many: int = 1 << 30) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
        self.many = many
        self.quant_method = type("Method", (), {})()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        out = x * self.weight[0]
        return (out + 2**-20 if len(x) >= self.many else out), None


class Model(nn.Module):
    """Two linear layers, with an operation between them that may depend on the number of rows."""

    def __init__(self, first: int = 1 << 30, second: int = 1 << 30, between: int = 1 << 30) -> None:
        super().__init__()
        self.first, self.second, self.between = Linear(first), Linear(second), between

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        hidden, _ = self.first(x)
        if len(x) >= self.between:
            hidden = hidden * (1 + 2**-20)
        out: Tensor = self.second(hidden)[0]
        return out


def watched(model: Model) -> tuple[Tap, Tensor]:
    """A tap that has seen ten rows one by one, and then 2 to 10 of them together; the rows."""
    tap = Tap(model, SimpleNamespace())
    x = torch.randn(10, 8)
    for i in range(10):
        tap.run("alone", partial(model, x=x[i : i + 1], positions=torch.tensor([i])), reference=True)
    outputs = [tap.run(f"{n}", partial(model, x=x[:n], positions=torch.arange(n))) for n in range(2, 11)]
    tap.close()
    return tap, torch.stack([out[0] for out in outputs])


def names(tap: Tap) -> list[tuple[str, str]]:
    """(module, case) of the first difference of each part."""
    return [(t.differences[0].module, t.differences[0].case) for t in tap.tallies.values() if t.differences]


def test_a_clean_model_has_no_difference() -> None:
    tap, _ = watched(Model())
    assert names(tap) == []
    tally = tap.tallies["linear", "Method"]
    assert tally.compared == tally.elsewhere == 2 * sum(range(2, 11))


def test_each_module_is_judged_by_itself() -> None:
    tap, outputs = watched(Model(first=10, second=5))
    found = tap.tallies["linear", "Method"].differences
    assert {(d.module, d.case) for d in found} == {("first", "10")} | {
        ("second", str(n)) for n in range(5, 11)
    }
    assert found[0].elements == (8, 8)
    assert 0 < found[0].largest < 1e-5
    assert [d.position for d in found if d.module == "first"] == list(range(10))
    # What differs is put right, so that nothing behind it sees it.
    assert all(torch.equal(outputs[0], out) for out in outputs)


def test_an_operation_between_modules_is_found_where_it_is() -> None:
    tap, _ = watched(Model(between=7))
    assert names(tap) == [("second, after first", "7")]


def test_without_hooks_the_model_is_as_before() -> None:
    model = Model(first=3)
    tap, _ = watched(model)
    assert not model.first._forward_hooks
    assert not model.first._forward_pre_hooks
    assert not model._forward_pre_hooks
    compared = tap.tallies["linear", "Method"].compared
    model(x=torch.randn(4, 8), positions=torch.arange(4))
    assert tap.tallies["linear", "Method"].compared == compared


# -- cases and certificates --------------------------------------------------------------------------------


def test_small_sizes_are_tried_one_by_one_and_large_ones_around_powers_of_two() -> None:
    assert cases.sizes(12) == list(range(1, 13))
    assert cases.sizes(70) == [*range(1, 21), 31, 32, 33, 63, 64, 65]


def test_every_row_of_every_case_is_known() -> None:
    known = [[100 * s + i for i in range(24)] for s in range(4)]
    planned = list(cases.plan(known, rows=32, sequences=16, caching=True))
    assert {case.family for case in planned} == {
        cases.CHUNK, cases.NEIGHBOUR, cases.SEQUENCES, cases.AMONG, cases.REVERSED, cases.CHUNKED, cases.CACHED,
    }  # fmt: skip
    for case in planned:
        for prompt in case.prompts:
            (source,) = [s for s in known if s[0] == prompt[0]]
            assert list(prompt) == source[: len(prompt)], case
            assert len(prompt) + case.new <= len(source), case
    assert len({case.name for case in planned}) == len(planned)
    grown = [case.size for case in planned if case.family == cases.NEIGHBOUR]
    assert {9, 10} <= set(grown)


def test_where_it_begins_is_said() -> None:
    assert cases.Case(cases.CHUNK, 10, 9, ()).change() == "changes when a chunk grows from 9 to 10 tokens"
    one = cases.Case(cases.NEIGHBOUR, 31, 20, ())
    assert one.change() == "changes when a neighbour's chunk grows to between 21 and 31 tokens"
    assert cases.Case(cases.AMONG, 0, 0, ()).change() == "changes among neighbours"


def test_a_certificate_needs_every_family_and_rows_in_other_company() -> None:
    tap, _ = watched(Model())
    tally = tap.tallies["linear", "Method"]
    part = Part(
        "linear", "Method", "vLLM", "vLLM 0.32.0", 2, configuration={"shapes": [{"N": 8}]}, uuid="a" * 64
    )
    report = verify.Report("Model", True)
    target = verify._target()
    made = verify.certificate(part, tally, {}, report, target)
    assert made.verdict == "inconclusive"
    assert "not reached within the budget: in a growing chunk" in made.skipped
    report.ran.update(dict.fromkeys(cases.REQUIRED, 3))
    made = verify.certificate(part, tally, {}, report, target)
    assert (made.verdict, made.label, made.distribution) == (
        "certified",
        "vllm.linear/Method",
        "vLLM".lower(),
    )
    tally.elsewhere = 0
    assert verify.certificate(part, tally, {}, report, target).skipped == (
        "no row came again in a call of another number of rows",
    )


def test_a_certificate_of_a_difference_says_where_it_begins() -> None:
    tap, _ = watched(Model(second=5))
    by_name = {"5": cases.Case(cases.CHUNK, 5, 4, ())}
    part = Part("linear", "Method", "vLLM", "vLLM 0.32.0", 2, uuid="a" * 64)
    made = verify.certificate(
        part, tap.tallies["linear", "Method"], by_name, verify.Report("M", True), verify._target()
    )
    assert made.verdict == "refuted"
    assert made.summary() == "in a growing chunk: changes when a chunk grows from 4 to 5 tokens"
    assert "in second at position 0 the same row got other bits" in made.findings[0].summary
    assert made.from_dict(made.to_dict()) == made


# -- operations and the audit's findings -------------------------------------------------------------------


def audited(model: Model) -> list[audit.Finding]:
    """What an audit says of a model that was given ten rows alone, and five and ten of them together."""
    tap = Tap(model, SimpleNamespace(), Operations(model))
    x = torch.randn(10, 8)
    for i in range(10):
        tap.run("alone", partial(model, x=x[i : i + 1], positions=torch.tensor([i])), reference=True)
    for n in (5, 10):
        tap.run(f"among {n}", partial(model, x=x[:n], positions=torch.arange(n)))
    tap.close()
    return audit.findings([d for tally in tap.tallies.values() for d in tally.differences])


def test_the_operation_in_a_module_is_named_with_its_line() -> None:
    first, second = audited(Model(first=10, second=5))
    assert (first.module, second.module) == ("first", "second")  # in the order of the pass, not of the cases
    assert (first.case, second.case) == ("among 10", "among 5")
    assert first.operation.startswith("aten.add (test_adapter_probing.py:")
    assert first.text().startswith(
        "first: linear (Method) gives the same row other bits among 10: in a call of 10 rows"
    )
    assert first.varied == 10


def test_the_operation_between_modules_is_named() -> None:
    (found,) = audited(Model(between=7))
    assert (found.module, found.kind) == ("second, after first", "")
    assert found.operation.startswith("aten.mul (test_adapter_probing.py:")
    assert "an operation between modules gives the same row other bits among 10" in found.text()


def test_a_clean_model_gives_no_finding() -> None:
    assert audited(Model()) == []


def test_the_layer_is_read_off_the_path() -> None:
    made = Difference("model.layers.17.mlp.down_proj", "linear", "f", "among 2", "alone", 3, 8, 1, order=5)
    (found,) = audit.findings([made, made])
    assert (found.layer, found.varied) == (17, 2)
    (last,) = audit.findings([Difference("model.norm", "norm", "f", "among 2", "alone", 3, 8, 1)])
    assert last.layer == -1


def test_prompts_that_do_not_fit_are_refused() -> None:
    driver: Any = SimpleNamespace(longest=8, vocabulary=100)
    audit._check([[1, 2, 3]], driver, 4)
    for prompts, said in (
        ([[]], "Prompt 1 has 0 tokens"),
        ([[1], [1] * 5], "Prompt 2 has 5"),
        ([[100]], "vocabulary"),
    ):
        with pytest.raises(AdapterError, match=said):
            audit._check(prompts, driver, 4)


def test_what_is_wrong_with_a_file_of_prompts_is_said(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    for text in ("{", "[]", '["text"]', "[1, 2]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(AdapterError, match="cannot be read as prompts"):
            command._prompts(path)
    path.write_text("[[1, 2], [3]]", encoding="utf-8")
    assert command._prompts(path) == ((1, 2), (3,))
