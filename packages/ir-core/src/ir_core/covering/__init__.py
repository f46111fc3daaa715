# SPDX-License-Identifier: Apache-2.0
"""A whole model with one line: torch's own functions go to batch-invariant ops, eagerly and compiled."""

from ir_core.covering.mode import batch_invariant_mode, enable
from ir_core.covering.patching import Patched, patch

__all__ = ["Patched", "batch_invariant_mode", "enable", "patch"]
