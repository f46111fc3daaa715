# SPDX-License-Identifier: Apache-2.0
"""A plot of bandwidth over rows, as a share of the device's own copy; a line an implementation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from ir_core.errors import IrError

WILD: Final = 0.5
"""Spread between the quartiles, of the median, from which on a time says more of the machine than of the kernel."""
NEAR_COPY: Final = 0.4
"""Below this share of the copy its line would press the measured ones flat, and is left out."""


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
    left_out: dict[tuple[str, str], list[str]] = {}
    for case in result["cases"]:
        if "microseconds" not in case:
            left_out.setdefault((case["provider"], case["reason"]), []).append(name(case))
    for (provider, reason), shapes in left_out.items():
        axes.plot([], [], " ", label=f"{provider}, {', '.join(shapes)}: not run ({reason})")
    for case in cases:
        if wild(case):
            axes.plot(rows(case), case["share_of_copy"], "o", ms=14, mfc="none", color="red", label="_wild")
    if any(map(wild, cases)):
        axes.plot([], [], "o", ms=10, mfc="none", color="red", label=f"spread over {WILD:.0%}: measure again")
    highest = max((case["share_of_copy"] for case in cases), default=1.0)
    if highest > NEAR_COPY:
        axes.axhline(1, color="gray", linestyle=":", label="the device's own copy of as many bytes")
    size = f", N = {widths[0]}" if len(widths) == 1 else ""
    axes.set_title(f"{result['op']}, {result['dtype']}{size}, {result['machine']['target']}", fontsize=9)
    axes.set(xscale="log", xlabel="rows", ylabel="bandwidth, of the device's own copy")
    counts = sorted({rows(case) for case in cases})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if highest > NEAR_COPY else None))
    axes.set_ylim(0, 1.15 * max(highest, 1.0 if highest > NEAR_COPY else 0.0))
    figure.legend(fontsize=8, loc="outside lower center")
    with rc_context({"svg.hashsalt": "ir-core", "svg.fonttype": "none"}):  # the same data makes the same file
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def wild(case: dict[str, Any]) -> bool:
    """Whether its samples lie too far apart to be believed."""
    return float(case.get("spread", 0.0)) > WILD


def name(case: dict[str, Any]) -> str:
    """Its shape, for people."""
    return "x".join(map(str, case["shape"]))


def rows(case: dict[str, Any]) -> int:
    """Number of rows of a case."""
    return math.prod(case["shape"][:-1])
