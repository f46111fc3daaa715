# SPDX-License-Identifier: Apache-2.0
"""Calls, cases, bits and layouts: what a counterexample is made of."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ir_core import ops
from ir_core.errors import CertificateError
from ir_core.verification import Call, Case, bits, pool, reference, variants
from ir_core.verification.calls import Setting
from ir_core.verification.layouts import LAYOUTS

CALL = Call("float32", 160, rows=7, layout="offset", which="x")


def test_case_survives_json() -> None:
    case = Case("memory", CALL, CALL.but(layout="contiguous", which=""))
    assert Case.parse(case.key()) == case
    assert Case.parse(json.loads(case.key())) == case
    assert len(case.key()) < 160
    assert Case.parse(Case("numerics", CALL).key()) == Case("numerics", CALL)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "{}",
        '{"probe":"rows","call":{"dtype":"float32"}}',
        '{"probe":"rows","call":{"dtype":"float99","hidden":8}}',
        '{"probe":"rows","call":{"dtype":"float32","hidden":"8"}}',
        '{"probe":"rows","call":{"dtype":"float32","hidden":0}}',
        '{"probe":"rows","call":{"dtype":"float32","hidden":8,"what":1}}',
    ],
)
def test_a_bad_case_is_refused(text: str) -> None:
    with pytest.raises(CertificateError):
        Case.parse(text)


def test_nan_equals_nan_and_zeros_differ() -> None:
    payloads = torch.tensor([0x7FC00000, 0x7FC00001, -0x400000], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(payloads).all()
    assert len(set(bits.as_bits(payloads).tolist())) == 1
    zeros = bits.as_bits(torch.tensor([0.0, -0.0]))
    assert zeros[0] != zeros[1]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
)
def test_one_unit_in_the_last_place_is_seen(dtype: torch.dtype) -> None:
    one = torch.ones(1, 1).to(dtype)
    raw = one.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    assert bits.as_bits(one) != bits.as_bits((raw + 1).view(dtype))
    assert bits.show(one, 0, 0).startswith("1.0 (0x")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 2, 6, 7])
def test_a_layout_holds_the_same_rows(name: str, rows: int) -> None:
    t = torch.randn(rows, 12)
    laid = LAYOUTS[name](t)
    expected = t[:1].expand(rows, 12) if name == "expanded" else t
    assert torch.equal(laid.reshape(rows, 12), expected)
    assert laid.untyped_storage().data_ptr() != t.untyped_storage().data_ptr()


def test_layouts_are_what_they_are_named_after() -> None:
    t = torch.randn(6, 12)
    assert LAYOUTS["offset"](t).data_ptr() % 16 == 4
    assert LAYOUTS["odd_slice"](t).stride(0) % 4
    assert LAYOUTS["column_slice"](t).data_ptr() % 16 == 0
    assert LAYOUTS["transposed"](t).stride()[:2] == (12, 24)
    assert LAYOUTS["unit_stride"](t).stride(1) == 7
    assert LAYOUTS["column_strided"](t).stride(-1) == 2
    assert LAYOUTS["expanded"](t).stride(0) == 0


def test_a_pool_is_the_same_again_and_elsewhere_in_the_seed() -> None:
    setting, cpu = Setting("bfloat16", 24), torch.device("cpu")
    state = torch.random.get_rng_state()
    one, two = (pool.make_pool(ops.rms_norm, setting, 3, cpu) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], pool.make_pool(ops.rms_norm, setting, 4, cpu)[0])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("content", pool.OTHERS)
def test_only_the_other_rows_change(content: str) -> None:
    made = pool.make_pool(ops.rms_norm, Setting("float32", 24), 0, torch.device("cpu"))
    plain = pool.arguments(ops.rms_norm, Call("float32", 24, rows=9), made)[0]
    changed = pool.arguments(ops.rms_norm, Call("float32", 24, rows=9, others=content), made)[0]
    assert torch.equal(plain[::2], changed[::2])
    assert not torch.equal(plain[1::2], changed[1::2])


def test_variants_come_from_the_signature() -> None:
    sample = ops.rms_norm.apply_arg_defaults(
        ops.rms_norm.generate_inputs(num_tokens=2, hidden_size=8, dtype=torch.float32)
    )
    found = variants.variants_of(ops.rms_norm, sample)
    options = {"variance_size=half", "variance_size=all but one"}
    assert set(found) == {"weight=None", "weight=other dtype"} | options
    args = variants.apply(ops.rms_norm, Setting("float32", 8, "variance_size=half"), sample)
    assert args[3] == 4
    assert variants.apply(ops.rms_norm, Setting("float32", 8, "weight=None"), sample)[1] is None
    with pytest.raises(CertificateError, match="no variant"):
        variants.apply(ops.rms_norm, Setting("float32", 8, "what"), sample)


def test_the_reference_is_computed_in_float64() -> None:
    x = torch.full((1, 4), 1.0 + 2.0**-20)
    args = ops.rms_norm.apply_arg_defaults((x, None, 0.0))
    result = reference.in_float64(ops.rms_norm, args)
    assert result.dtype == torch.float64
    assert math.isclose(result[0, 0].item(), 1.0, abs_tol=1e-15)
