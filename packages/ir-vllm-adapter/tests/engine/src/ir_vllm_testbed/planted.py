# SPDX-License-Identifier: Apache-2.0
"""A pack with a planted lie: a provider that declares itself batch-invariant and is not.

Offered only where IR_PACKS allows this distribution. With it the engine test must fail, which shows that it can.
A second provider does the same and is honest about it: batch-invariant mode must never run that one.
"""

from __future__ import annotations

from typing import Any, Final


def _offer(op: str, provider: str, declared: bool) -> dict[str, Any]:
    return {
        "op": op,
        "provider": provider,
        "impl": f"ir_vllm_testbed.planted_kernels:{op}",
        "batch_invariant": declared,
        "opaque": True,
        "sources": ["ir_vllm_testbed.planted_kernels"],
    }


PACK: Final[dict[str, Any]] = {
    "api": 1,
    "name": "planted",
    "implementations": [
        _offer(op, provider, declared)
        for op in ("rms_norm", "fused_add_rms_norm", "linear")
        for provider, declared in (("planted", True), ("honest_variant", False))
    ],
}
