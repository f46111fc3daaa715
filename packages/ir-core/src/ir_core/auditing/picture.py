# SPDX-License-Identifier: Apache-2.0
"""A picture of a report: where in the run operations vary, one line for each operation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ir_core.errors import AuditError

if TYPE_CHECKING:
    from ir_core.auditing.report import Report


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


def draw(report: Report, path: Path) -> None:
    """Write the picture; its format is that of the name's ending.

    Raises:
        AuditError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    findings = report.findings
    figure = Figure(figsize=(9, 1.8 + 0.45 * max(len(findings), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(-0.5, max(report.operations, 1) - 0.5)
    axes.set_ylim(len(findings) - 0.5, -0.5)
    axes.set_xlabel("operation of the run")
    axes.set_yticks(
        range(len(findings)), [f"{found.op}\n{found.varied} of {found.calls}" for found in findings]
    )
    for line, found in enumerate(findings):
        axes.axhline(line, color="0.9", zorder=0)
        axes.scatter(found.steps, [line] * len(found.steps), marker="|", s=120, color="tab:red")
        axes.annotate(
            str(found.place), (found.step, line), xytext=(4, 6), textcoords="offset points", fontsize=7
        )
    if not findings:
        axes.text(0.5, 0.5, "no operation varies", transform=axes.transAxes, ha="center", va="center")
    axes.set_title(report.headline(), fontsize=8, wrap=True)
    figure.savefig(path, dpi=120)
