# SPDX-License-Identifier: Apache-2.0
"""Each predicate on its own: what it takes, and the first reason why not."""

from __future__ import annotations

import torch

from ir_kernels_triton import predicates

X, W = torch.zeros(2, 3, 8, dtype=torch.bfloat16), torch.zeros(8)
FLOATS = "must be float16, bfloat16 or float32, it is"


def test_rms_norm() -> None:
    assert predicates.rms_norm(X, W, 1e-6) is True
    assert predicates.rms_norm(X, None, 1e-6, 1) is True
    assert predicates.rms_norm(X.double(), W.int(), 1e-6, 0) == f"x {FLOATS} float64"
    assert predicates.rms_norm(X, W.int(), 1e-6, 0) == f"weight {FLOATS} int32"
    assert predicates.rms_norm(X, W, 1e-6, 0) == "variance_size must be at least 1, it is 0"


def test_fused_add_rms_norm() -> None:
    assert predicates.fused_add_rms_norm(X, X, W, 1e-6) is True
    assert predicates.fused_add_rms_norm(X, X, None, 1e-6, 1) is True
    assert predicates.fused_add_rms_norm(X.double(), X, W.int(), 1e-6, 0) == f"x {FLOATS} float64"
    assert predicates.fused_add_rms_norm(X, X, W.int(), 1e-6, 0) == f"weight {FLOATS} int32"
    assert predicates.fused_add_rms_norm(X, X, W, 1e-6, -1) == "variance_size must be at least 1, it is -1"
    assert (
        predicates.fused_add_rms_norm(X, X.float(), W, 1e-6)
        == "x_residual must have x's dtype bfloat16, it has float32"
    )


def test_gelu_and_mul_sparse() -> None:
    assert predicates.gelu_and_mul_sparse(X, 1.0) is True
    assert predicates.gelu_and_mul_sparse(X, 1.0, "none") is True
    assert predicates.gelu_and_mul_sparse(X, 1.0, "tanh") is True
    assert predicates.gelu_and_mul_sparse(X.int(), 1.0) == f"x {FLOATS} int32"
    assert predicates.gelu_and_mul_sparse(X[..., :5], 1.0) == (
        "x must have rows of an even number of elements (gate and up), it has 5"
    )


def test_linear() -> None:
    single = X.float()
    for x in (X, X.half()):
        assert predicates.linear(x, W) is True
        assert predicates.linear_fp32(x, W) == f"fma_chain is defined for float32, and x is {x.dtype}"
    assert (
        predicates.linear(single, W) == "chain16 is defined for float16 and bfloat16, and x is torch.float32"
    )
    assert predicates.linear_fp32(single, W) is True
