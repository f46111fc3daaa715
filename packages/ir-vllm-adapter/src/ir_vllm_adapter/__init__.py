# SPDX-License-Identifier: Apache-2.0
"""ir-core inside vLLM: what it selects runs behind vLLM's RMSNorm layers and IR priorities.

=====================  ==================================================================================
``plugin.py``          what vLLM calls in each process; attaches the hooks, nothing more
``attachment.py``      what was changed in this process, in one object that undoes itself
``compat.py``          which vLLM is here, and what differs between versions
``hooks.py``           the points of vLLM that are wrapped, all in one place, all reversible
``ir_seam.py``         providers and priorities of vLLM's own IR (0.20 to 0.33)
``layer_seam.py``      RMSNorm and GemmaRMSNorm through vLLM's out-of-tree hook (all versions)
``linear_seam.py``     every unquantised linear layer and lm_head (all versions)
``aten_seam.py``       what stands behind the ATen ops that vLLM overrides (all versions)
``moe_seam.py``        vLLM's tuned tiles for its experts, once ``moe_check.py`` found that they decide no bit
``takeover.py``        what is taken over beyond the norms, and what is left to vLLM: decided by dtype, as data
``graph_mode.py``      compiled, or breakable CUDA graphs (0.32 on)
``fusion.py``          fusions that would replace a selected norm
``worker.py``          a worker's life: attach, agree with the other ranks, say what runs, check that it ran
``state.py``           what is known of the worker of this process
``status.py``          the same facts as data and as a table; ``python -m ir_vllm_adapter status``
=====================  ==================================================================================

Importing this package imports neither torch nor vLLM.
"""

from __future__ import annotations

from ir_vllm_adapter.plugin import register
from ir_vllm_adapter.version import __version__

__all__ = ["__version__", "register"]
