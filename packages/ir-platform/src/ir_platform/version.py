# SPDX-License-Identifier: Apache-2.0
"""The version of this distribution, looked up when asked for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def VERSION() -> str:  # noqa: N802  a constant that is read late
    """``"0.1.0"``; ``"unknown"`` when the package is on the path without being installed."""
    try:
        return version("ir-platform")
    except PackageNotFoundError:
        return "unknown"


def SOURCE() -> str:  # noqa: N802
    """How this package signs what it says: ``"ir-platform 0.1.0"``."""
    return f"ir-platform {VERSION()}"
