# SPDX-License-Identifier: Apache-2.0
"""Compiled, or breakable CUDA graphs without compilation (vLLM 0.32 on)? With ir-core's ``linear``: compiled.

vLLM's batch-invariant product chooses a tile by the rows of the call. A graph that is compiled keeps the tile of the
batch that it was traced with (vLLM #54243), so from 0.32 on vLLM gives up compilation where a layer of the model is in
its table of tiles, and records breakable CUDA graphs, for which each call looks its tile up. ``linear`` of ir-core is
opaque in a compiled graph and chooses at each call, so that nothing is frozen, and without compilation the element-wise
work around it (activation, rotary embedding, residuals) would be launched op by op. So this choice is taken back where
``linear`` is taken over. A choice of the user (VLLM_USE_BREAKABLE_CUDAGRAPH) and one by architecture stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ir_vllm_adapter import linear_seam, log
from ir_vllm_adapter.attachment import ATTACHED

CHOICE: Final = "_uses_breakable_cudagraph_for_batch_invariance"
SETTING: Final = "VLLM_USE_BREAKABLE_CUDAGRAPH"


def around(original: Callable[..., bool]) -> Callable[..., bool]:
    """``VllmConfig._uses_breakable_cudagraph_for_batch_invariance``: no, where ``linear`` is ir-core's."""

    def choice(self: Any) -> bool:
        wanted = original(self)
        if wanted:
            log.guarded("look at vLLM's choice of CUDA graphs", lambda: _keep_compiled(self))
        return wanted and SETTING not in ATTACHED.settings

    return choice


def _keep_compiled(config: Any) -> None:
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    found = linear_seam.decision().runs.get(dtype)
    if found is None:
        ATTACHED.settings.pop(SETTING, None)
        return
    ATTACHED.settings[SETTING] = (
        "the model stays compiled: linear is opaque there, and a graph freezes no tile of it (vLLM #54243)"
    )
    log.info(
        f"{SETTING} is not set on account of batch invariance: linear runs {found.provider}, which chooses its tile at "
        "each call, compiled too."
    )
