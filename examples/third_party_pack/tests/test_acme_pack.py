# SPDX-License-Identifier: Apache-2.0
"""The pack is found, selected, lowered and keeps its bits."""

import pytest
import torch

import ir_core
from ir_core import ops, platforms

pytest.importorskip("acme_kernels", reason="the example is not installed (nox -s packs)")
pytestmark = pytest.mark.interpreter


@pytest.fixture(autouse=True)
def prefer_acme():
    """Acme first, in batch-invariant mode."""
    with ir_core.scope(batch_invariant=True), ops.rms_norm.set_priority(["acme"]):
        yield


def test_it_is_found() -> None:
    assert "acme-kernels" in [pack.distribution for pack in ir_core.packs()]
    assert not [failure for failure in ir_core.failures() if failure.distribution == "acme-kernels"]
    assert "l2_normalize" in ir_core.IrOp.registry or ops.l2_normalize


@pytest.mark.parametrize("n", [7, 128, 1000])
def test_its_rms_norm_is_selected_and_keeps_its_bits(n: int) -> None:
    x, weight = torch.randn(9, n), torch.randn(n)
    assert ops.rms_norm.dispatch(x, weight, 1e-6).provider == "acme"
    y = ops.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (n,), weight, 1e-6))
    assert torch.equal(y, torch.cat([ops.rms_norm(row[None], weight, 1e-6) for row in x]))


def test_a_call_that_is_not_its_own_is_refused_with_a_reason() -> None:
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    chosen = ops.rms_norm.dispatch(x, None, 1e-6)
    assert chosen.provider != "acme"
    args = ops.rms_norm.apply_arg_defaults((x, None, 1e-6))
    selection = ir_core.select(ops.rms_norm, ir_core.current(), platforms.target_of(x.device), args)
    assert "acme (acme-kernels 1.0): takes float32, with a weight" in selection.explain()


def test_its_op_is_lowered_with_the_eager_bits() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return ops.l2_normalize(ops.rms_norm(x, torch.ones(32), 1e-6)) * 2

    x = torch.randn(5, 32)
    assert ops.l2_normalize.dispatch(x).provider == "acme"
    compiled = ir_core.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
