# SPDX-License-Identifier: Apache-2.0
"""A plot of bandwidth over rows, as a share of the device's own copy; a line an implementation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ir_core.errors import IrError


def check(path: Path) -> None:
    """Find out before the measurement that its plot cannot be drawn.

    Raises:
        IrError: matplotlib is not installed, or does not know what the suffix of ``path`` stands for.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise IrError("--plot needs matplotlib.", fix="pip install 'ir-core[plot]'") from error
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise IrError(f"{path} has the suffix of no picture.", why=f"There are {', '.join(sorted(known))}.")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw what ``ir-core bench`` measured; the suffix of ``path`` says in which format.

    Raises:
        IrError: as :func:`check` does.
    """
    check(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    cases = [case for case in result["cases"] if "microseconds" in case]
    widths = sorted({case["shape"][-1] for case in cases})
    markers = iter("ovs^Dx*P" * 99)
    for width in widths:
        mine = [case for case in cases if case["shape"][-1] == width]
        label = f", N = {width}" if len(widths) > 1 else ""
        for provider in dict.fromkeys(case["provider"] for case in mine):
            points = sorted((rows(c), c["share_of_copy"]) for c in mine if c["provider"] == provider)
            axes.plot(*zip(*points, strict=True), marker=next(markers), alpha=0.8, label=provider + label)
    axes.axhline(1, color="gray", linestyle=":", label="the device's own copy of as many bytes")
    size = f", N = {widths[0]}" if len(widths) == 1 else ""
    axes.set_title(f"{result['op']}, {result['dtype']}{size}, {result['machine']['target']}", fontsize=9)
    axes.set(xscale="log", xlabel="rows", ylabel="bandwidth, of the device's own copy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    with rc_context({"svg.hashsalt": "ir-core", "svg.fonttype": "none"}):  # the same data makes the same file
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def rows(case: dict[str, Any]) -> int:
    """Number of rows of a case."""
    return math.prod(case["shape"][:-1])
