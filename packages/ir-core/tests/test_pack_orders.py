# SPDX-License-Identifier: Apache-2.0
"""A pack brings an order to an op of another pack: known by name, and never a default."""

from __future__ import annotations

import json

import pytest
import torch

import ir_core
from ir_core import ops

KERNELS = """
import torch
from torch import Tensor

def norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    return torch.full_like(x, 7)
"""


def bring(site, name: str, orders: object, provider: str = "t_summing", order: str = "t_sums") -> None:
    code = site.module(f"kernels_{name.replace('-', '_')}_{site.folder.name}", KERNELS)
    spec = {"op": "rms_norm", "provider": provider, "impl": f"{code}:norm", "order": order, "opaque": True}
    data = {"api": 1, "name": name, "orders": orders, "implementations": [spec]}
    site.pack(name, f"import json\nPACK = json.loads({json.dumps(data)!r})\n")


ARITHMETIC = {"rms_norm": {"t_sums": {"arithmetic": "Sevens.", "reference": "t_summing"}}}
X = torch.zeros(2, 8)


@pytest.fixture(autouse=True)
def forget():
    yield
    ops.rms_norm.orders.pop("t_sums", None)
    ir_core.refresh()


def test_an_order_of_a_pack_is_asked_for_by_name(site):
    bring(site, "t-orders", ARITHMETIC)
    with ir_core.scope(batch_invariant=True):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 0  # the op's own order
    with ir_core.scope(ops={"rms_norm": ir_core.OpPolicy(order="t_sums")}):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 7
    assert ops.rms_norm.orders["t_sums"].arithmetic == "Sevens."


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"rms_norm": {"t_sums": "Sevens."}}, "The order 't_sums' of 'rms_norm' is 'Sevens.'"),
        ({"rms_norm": {"T-Sums": ARITHMETIC["rms_norm"]["t_sums"]}}, "Order name 'T-Sums' is invalid"),
        ({"rms_norm": {"tree": ARITHMETIC["rms_norm"]["t_sums"]}}, "has another order 'tree'"),
    ],
)
def test_a_malformed_order_is_a_failure_of_its_pack(site, orders, said):
    bring(site, "t-wrong", orders, order="tree")
    ops.rms_norm(X, None, 1e-6)
    assert ops.rms_norm.impls["native"]
    found = [str(failure) for failure in ir_core.failures() if failure.distribution == "t-wrong"]
    assert any(said in text for text in found), found
