# SPDX-License-Identifier: Apache-2.0
"""A picture of a report: where in the run operations vary, one line for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ir_core.errors import AuditError

Line = tuple[str, str, tuple[int, ...]]
"""Of an operation: its label, where it is first, and at which operations of the run it varies."""


def check() -> None:
    """Say before the work, not after it, that no picture can be drawn.

    Raises:
        AuditError: matplotlib is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise AuditError(
            "The picture needs matplotlib, which is not installed.", fix="pip install 'ir-core[plot]'"
        )


def draw(title: str, operations: int, lines: Sequence[Line], path: Path) -> None:
    """Write the picture; its format is that of the name's ending.

    Args:
        operations: how many the run has.

    Raises:
        AuditError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8 + 0.45 * max(len(lines), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(-0.5, max(operations, 1) - 0.5)
    axes.set_ylim(max(len(lines), 1) - 0.5, -0.5)
    axes.set_xlabel("operation of the run")
    axes.set_yticks(range(len(lines)), [label for label, _, _ in lines])
    for height, (_, place, steps) in enumerate(lines):
        axes.axhline(height, color="0.9", zorder=0)
        axes.scatter(steps, [height] * len(steps), marker="|", s=120, color="tab:red")
        axes.annotate(place, (steps[0], height), xytext=(4, 6), textcoords="offset points", fontsize=7)
    if not lines:
        axes.text(0.5, 0.5, "no operation varies", transform=axes.transAxes, ha="center", va="center")
    axes.set_title(title, fontsize=8, wrap=True)
    figure.savefig(path, dpi=120)
