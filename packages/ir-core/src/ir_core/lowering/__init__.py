# SPDX-License-Identifier: Apache-2.0
"""Lower: compiled graphs call the implementation that was selected, with the bits of the eager call.

In the order in which ``torch.compile`` runs them:

1. ``functionalization.py``, before AOTAutograd: ``maybe_inplace`` becomes functional, donations are checked
2. ``lowering_pass.py``, after grad: every op becomes the implementation selected for its fake arguments
3. ``clone_elimination.py``: copies that protect nothing are removed, so that in-place stays in place

``entry.py`` puts them into ``torch.compile``.
"""

from ir_core.lowering.entry import Passes, compile, eager_backend, options, reports
from ir_core.lowering.report import LoweredNode, LoweringReport

__all__ = ["LoweredNode", "LoweringReport", "Passes", "compile", "eager_backend", "options", "reports"]
