# SPDX-License-Identifier: Apache-2.0
"""A plot of bandwidth over rows, a line an implementation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ir_core.errors import IrError


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw what ``ir-core bench`` measured; the suffix of ``path`` says in which format.

    Raises:
        IrError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise IrError("--plot needs matplotlib.", fix="pip install 'ir-core[plot]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    cases = [case for case in result["cases"] if "microseconds" in case]
    widths = sorted({case["shape"][-1] for case in cases})
    for width in widths:
        mine = [case for case in cases if case["shape"][-1] == width]
        label = f", N = {width}" if len(widths) > 1 else ""
        for provider in dict.fromkeys(case["provider"] for case in mine):
            points = sorted((rows(c), c["gigabytes_per_second"]) for c in mine if c["provider"] == provider)
            axes.plot(*zip(*points, strict=True), marker="o", label=provider + label)
        copies = sorted({(rows(c), c["copy_gigabytes_per_second"]) for c in mine})
        axes.plot(*zip(*copies, strict=True), color="gray", linestyle=":", label=f"copy{label}")
    axes.set(xscale="log", xlabel="rows", ylabel="GB/s", title=f"{result['op']}, {result['dtype']}")
    axes.set_ylim(bottom=0)
    axes.text(0.01, 0.01, result["machine"]["target"], transform=axes.transAxes, fontsize=7, color="gray")
    axes.legend(fontsize=8)
    figure.savefig(path)


def rows(case: dict[str, Any]) -> int:
    """Number of rows of a case."""
    return math.prod(case["shape"][:-1])
