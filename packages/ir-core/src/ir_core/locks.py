# SPDX-License-Identifier: Apache-2.0
"""Locks that a forked child finds free: the thread that held one does not exist there."""

from __future__ import annotations

import os
import threading


def fork_safe_rlock() -> threading.RLock:
    """A reentrant lock. What it guards must be usable however far a change had come."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock
