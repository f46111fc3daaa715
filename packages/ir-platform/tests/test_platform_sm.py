# SPDX-License-Identifier: Apache-2.0
"""The SM tables: what a capability implies."""

from __future__ import annotations

import pytest

from ir_platform import sm
from ir_platform.errors import OverrideError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9.0", (9, 0)),
        ("sm90", (9, 0)),
        ("SM_90a", (9, 0)),
        ("90", (9, 0)),
        (" 12.0 ", (12, 0)),
        ("sm_103f", (10, 3)),
        ("9", None),
        ("0.5", None),
        ("9.10", None),
        ("90.0", None),
        ("hopper", None),
        ("", None),
    ],
)
def test_parse_sm(text: str, value: sm.SM | None) -> None:
    assert sm.parse_sm(text) == value


def test_features_begin_where_the_table_says_and_stay() -> None:
    known = sorted(sm.GENERATIONS)
    for name, first in sm.FEATURES:
        assert first in sm.GENERATIONS
        assert [capability for capability in known if name in sm.features(capability)] == [
            capability for capability in known if capability >= first
        ]
    assert {"tma", "clusters", "pdl"} <= sm.features((9, 0)) - sm.features((8, 9))
    assert "fp8" in sm.features((8, 9)) - sm.features((8, 6))


def test_every_generation_has_a_size() -> None:
    assert set(sm.GENERATIONS) == set(sm.SHARED_MEMORY_PER_BLOCK)


def test_an_unknown_sm_has_the_features_of_its_elders_and_no_sizes() -> None:
    assert sm.features((13, 0)) == sm.features((12, 0))
    assert sm.multiprocessors((13, 0), 10000) is None


def test_the_bound_is_9_0_and_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sm.MIN_BATCH_INVARIANT_SM == (9, 0)
    assert sm.batch_invariant((8, 9), "cuda:0 (L4)") == (
        False,
        "batch-invariant kernels need SM >= 9.0 (see IR_BATCH_INVARIANT_MIN_SM), cuda:0 (L4) is SM 8.9",
    )
    assert sm.batch_invariant((10, 0), "cuda:0")[0]  # 10.0 is more than 9.0, although "10.0" < "9.0"
    monkeypatch.setenv("IR_BATCH_INVARIANT_MIN_SM", "sm80")
    assert sm.batch_invariant((8, 9), "cuda:0") == (
        True,
        "cuda:0 is SM 8.9, and batch-invariant kernels run from SM 8.0 on (set by IR_BATCH_INVARIANT_MIN_SM)",
    )


@pytest.mark.parametrize("value", ["", "eight", "8", "9.0,8.0"])
def test_a_bound_that_is_no_capability_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("IR_BATCH_INVARIANT_MIN_SM", value)
    with pytest.raises(
        OverrideError, match=r"IR_BATCH_INVARIANT_MIN_SM=.* is not an SM .* unset it for 9\.0"
    ):
        sm.min_batch_invariant_sm()
