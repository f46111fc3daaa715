# SPDX-License-Identifier: Apache-2.0
"""``ir_core.patch``: modules that call ops, a report of the rest, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ir_core
from ir_core.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("alone")


class OddNorm(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 32), nn.RMSNorm(32), nn.LayerNorm(32), OddNorm(32), nn.PReLU())


def test_rows_keep_their_bits_and_the_way_back_is_whole() -> None:
    model, x = made(), torch.randn(9, 48)
    before = model(x)
    patched = ir_core.patch(model)
    assert patched.swapped == {"0": "Linear", "1": "RMSNorm", "2": "LayerNorm"}
    assert set(patched.kept) == {"3", "4"}
    assert "OddNorm" in patched.explain()
    assert "swapped 1 of Linear" in patched.explain()
    front = model[:3]
    assert torch.equal(front(x), torch.cat([front(row[None]) for row in x]))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    with ir_core.batch_invariant_mode():
        assert torch.equal(front(x), ir_core.bind_policy(lambda: front(x))())
    patched.undo()
    patched.undo()
    assert torch.equal(model(x), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_it_is_patched_once() -> None:
    model = made()
    with ir_core.patch(model), pytest.raises(ArgumentError, match="already"):
        ir_core.patch(model)
    ir_core.patch(model).undo()
    with pytest.raises(ArgumentError, match=r"nn\.Module"):
        ir_core.patch(torch.relu)  # type: ignore[arg-type]


def test_it_compiles_inside_the_mode() -> None:
    model, x = made()[:3], torch.randn(3, 48)
    ir_core.patch(model)
    with ir_core.batch_invariant_mode(), torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), model(x))
