# SPDX-License-Identifier: Apache-2.0
"""The pack: data that loads alone, and claims that resolve."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch

import ir_core
from ir_core import Capability, Target, facts
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
    for key in ("impl", "supports_args", "prefers_args"):
        if offer.get(key) is None:
            continue
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
    for op in ("linear", "bmm", "attention"):
        assert claims[op, "triton_batch_invariant"] == claims[op, "triton_fp32"] == (True, False, True)
    assert claims["linear", "cublas"] == (True, False, True)
    for op in ("layer_norm", "softmax", "log_softmax", "logsumexp", "sum", "mean"):
        assert claims[op, "triton_batch_invariant"] == (True, False, True)
    for provider in ("triton_x8", "triton_x8_fp32"):
        assert claims["linear", provider] == (True, False, True)
    for provider in ("triton_batch_invariant", "triton_fp32"):
        assert claims["linear_partial", provider] == (True, False, True)
    assert len(claims) == 23


def test_products_are_offered_where_their_order_was_seen() -> None:
    """chain16 on SM 9.0 and interpreted, fma_chain wherever there is such an instruction; each refuses other dtypes."""
    orders = {
        (o["op"], o["provider"]): o["order"] for o in PACK["implementations"] if o["op"] in ("linear", "bmm")
    }
    assert orders == {
        ("linear", "triton_batch_invariant"): "chain16",
        ("linear", "triton_fp32"): "fma_chain",
        ("linear", "cublas"): "chain16",
        ("linear", "triton_x8"): "chain16x8",
        ("linear", "triton_x8_fp32"): "chain16x8",
        ("bmm", "triton_batch_invariant"): "chain16",
        ("bmm", "triton_fp32"): "fma_chain",
    }
    cpu, interpreted = Target("cpu", "cpu"), Target("cpu", "cpu", features=frozenset({"triton_interpreter"}))
    for op in ("linear", "bmm"):
        impls = ir_core.IrOp.registry[op].impls
        for target, runs in {
            cpu: {"triton_batch_invariant": False, "triton_fp32": False, "cublas": False},
            interpreted: {"triton_batch_invariant": True, "triton_fp32": True, "cublas": False},
            card("8.6"): {"triton_batch_invariant": False, "triton_fp32": True, "cublas": False},
            card("9.0"): {"triton_batch_invariant": True, "triton_fp32": True, "cublas": True},
            card("10.0"): {"triton_batch_invariant": False, "triton_fp32": True, "cublas": False},
        }.items():
            for provider in runs.keys() & impls.keys():
                assert bool(impls[provider].requires.check(target)) is runs[provider], (op, provider, target)


def card(capability: str) -> Target:
    return Target(
        "cuda:0", "cuda", capability=Capability.parse(capability), batch_invariant=capability != "8.6"
    )


def selected(
    rows: int, dtype: torch.dtype, certified: tuple[str, ...] = (), sm: str = "9.0"
) -> ir_core.Selection:
    """What selection takes for a linear of so many rows in batch-invariant mode."""
    op = ir_core.IrOp.registry["linear"]
    args = (torch.zeros(rows, 64, dtype=dtype), torch.zeros(24, 64, dtype=dtype), None)

    def evidence(impl: ir_core.IrOpImpl, target: Target) -> ir_core.Evidence | None:
        return ir_core.Evidence("certified", order=impl.order) if impl.provider in certified else None

    policy = ir_core.Policy(batch_invariant=True)
    return ir_core.select(op, policy, card(sm), args, evidence=evidence)


def test_selection_of_linear_on_a_gpu() -> None:
    """Rows decide within the order, and only where certificates vouch for both; never across orders."""
    both = ("triton_batch_invariant", "cublas")
    for rows in (1, 32, 33, 4096):
        chosen = selected(rows, torch.bfloat16)
        assert (chosen.provider, chosen.order) == ("triton_batch_invariant", "chain16")
        assert selected(rows, torch.bfloat16, both[:1]).provider == "triton_batch_invariant"
        chosen = selected(rows, torch.bfloat16, both)
        assert (chosen.provider, chosen.order) == (both[rows >= 33], "chain16")
        chosen = selected(rows, torch.float32, both)
        assert (chosen.provider, chosen.order) == ("triton_fp32", "fma_chain")
        assert selected(rows, torch.bfloat16, sm="10.0").provider == "portable"
    assert "selected, in the order chain16" in selected(8, torch.bfloat16).explain()


def test_predicates_of_products() -> None:
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
