# SPDX-License-Identifier: Apache-2.0
"""Everything that is read once and kept: forgotten in one place."""

from __future__ import annotations

from ir_core import catalog, fast_path, lock_file, platforms, policy
from ir_core.verification import evidence


def refresh() -> None:
    """Forget packs, targets, certificates and the environment, and read them again when they are next needed.

    What code registered or set as default stays.
    """
    catalog.refresh()
    platforms.refresh()
    evidence.refresh()
    lock_file.refresh()
    policy.reset_default()
    fast_path.reset_all()
