# SPDX-License-Identifier: Apache-2.0
"""The pack: data that loads alone, and claims that resolve."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch

import ir_core
from ir_core import facts
from ir_kernels_triton import predicates
from ir_kernels_triton.pack import PACK


def test_reading_the_pack_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys, ir_kernels_triton.pack, ir_kernels_triton.predicates as p; "
        "print(sorted({'torch', 'triton', 'ir_core', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entry_point_names_the_pack() -> None:
    (found,) = entry_points(group="ir_core.kernels", name="triton")
    assert found.load() is PACK


@pytest.mark.parametrize(
    "offer", PACK["implementations"], ids=lambda offer: f"{offer['op']}/{offer['provider']}"
)
def test_every_string_resolves(offer: dict[str, str]) -> None:
    for key in ("impl", "supports_args"):
        module, _, name = offer[key].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    for module in offer["sources"]:
        importlib.import_module(module)
    assert offer["provider"] in ir_core.IrOp.registry[offer["op"]].impls


def test_claims() -> None:
    claims = {
        (o["op"], o["provider"]): (o["batch_invariant"], o["inplace"], o["opaque"])
        for o in PACK["implementations"]
    }
    for op in ("rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse"):
        inplace = op == "fused_add_rms_norm"
        assert claims[op, "triton_batch_invariant"] == (True, inplace, True)
        assert claims[op, "triton"] == (False, inplace, True)
    for op in ("linear", "bmm"):
        assert claims[op, "triton_batch_invariant"] == claims[op, "triton_fp32"] == (True, False, True)
    assert len(claims) == 10


def test_linear_is_offered_where_its_order_was_seen() -> None:
    """Interpreted: chain16 for 16-bit numbers, fma_chain for float32; each refuses the other's dtype."""
    for name in ("linear", "bmm"):
        orders = {o["provider"]: o["order"] for o in PACK["implementations"] if o["op"] == name}
        assert orders == {"triton_batch_invariant": "chain16", "triton_fp32": "fma_chain"}
    half, single = torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 8)
    assert ask("linear", half, half) is None and ask("linear", half[None], half, half[0]) is None
    assert ask("linear", single, single) == (
        "chain16 is defined for float16 and bfloat16, and x is torch.float32"
    )
    assert (
        ask("bmm", half[None], half[None]) is None
        and ask("bmm_fp32", single[None], single[None], op="bmm") is None
    )
    op = ir_core.IrOp.registry["linear"]
    refused = facts.ask(predicates.linear_fp32, op.params, op.activations, op.bind((half, half), {}), [])
    assert refused == "fma_chain is defined for float32, and x is torch.bfloat16"


def ask(name: str, *args: object, op: str = "") -> str | None:
    meaning = ir_core.IrOp.registry[op or name]
    return facts.ask(
        getattr(predicates, name), meaning.params, meaning.activations, meaning.bind(args, {}), []
    )


def test_predicates_accept_every_layout() -> None:
    x, w = torch.zeros(4, 6, 264, dtype=torch.bfloat16), torch.zeros(128)
    for view in (
        x[..., :128],
        x[..., 1:129],
        x[..., ::2][..., :128],
        x[0, 0, :128],
        x[:0, :, :128],
        x[::2, ::3, :128],
    ):
        for weight in (w, w.half(), None):
            assert ask("rms_norm", view, weight, 1e-6) is None
            assert ask("fused_add_rms_norm", view, view, weight, 1e-6, 64) is None
        assert ask("gelu_and_mul_sparse", view, 1.6, "tanh") is None


def test_predicates_say_why() -> None:
    x, w = torch.zeros(2, 128), torch.zeros(128)
    for reason, args in {
        "x must be float16, bfloat16 or float32, it is float64": (x.double(), w, 1e-6),
        "x must be float16, bfloat16 or float32, it is int32": (x.int(), w, 1e-6),
        "weight must be float16, bfloat16 or float32, it is float64": (x, w.double(), 1e-6),
        "variance_size must be at least 1, it is 0": (x, w, 1e-6, 0),
    }.items():
        assert ask("rms_norm", *args) == reason
    for reason, residual in {
        "x_residual must have x's dtype float32, it has float16": x.half(),
        "x_residual must have x's dtype float32, it has float64": x.double(),
    }.items():
        assert ask("fused_add_rms_norm", x, residual, w, 1e-6) == reason
    assert ask("gelu_and_mul_sparse", x[:, :3], 1.0) == (
        "x must have rows of an even number of elements (gate and up), it has 3"
    )
    assert (
        ask("gelu_and_mul_sparse", x, 1.0, "sigmoid")
        == "approximate must be 'none' or 'tanh', it is 'sigmoid'"
    )
