# SPDX-License-Identifier: Apache-2.0
"""Fusions of vLLM that rewrite a norm into a kernel of their own, before or instead of the selected one.

They match vLLM's IR op in the graph, ahead of the lowering pass: whatever the priority says, the named provider
would not run. None of their kernels is declared batch-invariant, so in batch-invariant mode they stay off.
"""

from __future__ import annotations

from typing import Any, Final

from ir_vllm_adapter import log
from ir_vllm_adapter.attachment import ATTACHED
from ir_vllm_adapter.errors import RefusedError

REPLACES_NORM: Final = {
    "fuse_norm_quant": "it rewrites norm and FP8 quantisation into _C.rms_norm_*_quant",
    "fuse_allreduce_rms": "it rewrites all-reduce and norm into one FlashInfer or AITER kernel",
    "fuse_act_padding": "it rewrites fused add norm and padding into one AITER kernel",
    "fuse_mla_dual_rms_norm": "it rewrites the two MLA norms into one AITER kernel",
    "fuse_minimax_qk_norm": "it rewrites qk-norm and its all-reduce into one kernel",
    "enable_qk_norm_rope_fusion": "it rewrites qk-norm and rotary embedding into _C.fused_qk_norm_rope",
    "fuse_qk_norm_rope_kvcache": "it rewrites qk-norm, rotary embedding and cache update into one AITER kernel",
}
"""Fields of vLLM's PassConfig, of all supported versions, and what each does to a norm."""


def requirement() -> bool:
    """Whether any norm must be batch-invariant."""
    from ir_core import current

    policy = current()
    return not policy.disabled and any(policy.invariant(op) for op in ("rms_norm", "fused_add_rms_norm"))


def settle(pass_config: Any, *, chosen_by: str = "the configuration") -> None:
    """Switch the fusions off in vLLM's PassConfig. A field that is not set yet (None) gets no default any more.

    Raises:
        RefusedError: IR_STRICT=1 and the configuration asks for one of them.
    """
    if not requirement():
        return
    asked = [name for name in REPLACES_NORM if getattr(pass_config, name, None) is True]
    if asked and log.strict():
        raise RefusedError(
            f"{', '.join(asked)} would replace the selected norms, and IR_STRICT is set.",
            why="; ".join(f"{name}: {REPLACES_NORM[name]}" for name in asked),
            fix="; ".join(f"-cc.pass_config.{name}=False" for name in asked),
        )
    for name in asked:
        reason = f"{REPLACES_NORM[name]}, which is not declared batch-invariant"
        ATTACHED.fusions_off[name] = f"{reason} (asked for by {chosen_by})"
        log.warn(f"{name} is switched off in batch-invariant mode: {reason}.")
    for name in REPLACES_NORM:
        if getattr(pass_config, name, False) is not False:
            setattr(pass_config, name, False)
            ATTACHED.fusions_off.setdefault(name, REPLACES_NORM[name])
