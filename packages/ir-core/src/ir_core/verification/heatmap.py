# SPDX-License-Identifier: Apache-2.0
"""A picture: for each number of rows and of columns, how many elements differ from the row alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ir_core.errors import CertificateError
from ir_core.verification import bits, plan
from ir_core.verification.calls import Setting

if TYPE_CHECKING:
    from ir_core.verification.subject import Subject

ROWS: Final = (1, 2, 3, 7, 8, 16, 33, 64, 129, 255, 256, 257, 513, 1024, 4096)
LONE: Final = 8
"""Rows that are looked at, alone and in each batch."""


@dataclass(frozen=True)
class HeatMap:
    """Counts by number of rows and columns.

    Args:
        label, dtype: what was run.
        rows, columns: the axes.
        differing: ``differing[r][c]``, elements of the rows looked at that differ from the row alone; ``None`` where
            nothing was run.
        compared: elements looked at, in the same places.
    """

    label: str
    dtype: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    differing: tuple[tuple[int | None, ...], ...]
    compared: tuple[tuple[int | None, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))


def measure(subject: Subject, seconds: float = 5.0, dtype: str = "") -> HeatMap:
    """Count for ``seconds`` at most, small inputs first."""
    dtype = dtype or plan.dtypes(subject)[0]
    columns = tuple(plan.hidden_sizes(subject, (plan.SMALL, *plan.MIDDLE, *plan.WIDE)))
    differing: dict[tuple[int, int], int] = {}
    compared: dict[tuple[int, int], int] = {}
    until = time.monotonic() + seconds
    for hidden in columns:
        setting = Setting(dtype, hidden)
        try:
            if subject.refusal(setting) is not None:
                continue
            lone = [subject.run(subject.call(setting, rows=1, start=start)) for start in range(LONE)]
            for rows in ROWS:
                call = subject.call(setting, rows=rows)
                if time.monotonic() + subject.cost(call) > until:
                    break
                found = subject.run(call)
                pairs = [
                    (bits.as_bits(out[row]), bits.as_bits(alone[0]))
                    for row in range(min(rows, LONE))
                    for out, alone in zip(found, lone[row], strict=True)
                ]
                differing[rows, hidden] = sum(int((a != b).sum()) for a, b in pairs)
                compared[rows, hidden] = sum(a.numel() for a, _ in pairs)
        except Exception:  # what cannot run is an empty place
            continue
    label = f"{subject.op.name}/{subject.impl.provider}"
    return HeatMap(label, dtype, ROWS, columns, _grid(differing, columns), _grid(compared, columns))


def _grid(counts: dict[tuple[int, int], int], columns: tuple[int, ...]) -> tuple[tuple[int | None, ...], ...]:
    return tuple(tuple(counts.get((rows, hidden)) for hidden in columns) for rows in ROWS)


def draw(map_: HeatMap, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        CertificateError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CertificateError(
            "The heat map needs matplotlib, which is not installed.", fix="pip install 'ir-core[plot]'"
        ) from error
    shares = [
        [float("nan") if d is None or not c else d / c for d, c in zip(ds, cs, strict=True)]
        for ds, cs in zip(map_.differing, map_.compared, strict=True)
    ]
    figure = Figure(
        figsize=(1.8 + 1.1 * len(map_.columns), 1.6 + 0.32 * len(map_.rows)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Reds", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(map_.columns)), [str(c) for c in map_.columns])
    axes.set_yticks(range(len(map_.rows)), [str(r) for r in map_.rows])
    axes.set_xlabel("columns")
    axes.set_ylabel("rows in the call")
    axes.set_title(f"{map_.label}, {map_.dtype}: elements that differ from the row alone", fontsize=9)
    for y, row in enumerate(map_.differing):
        for x, count in enumerate(row):
            dark = bool(count) and shares[y][x] > 0.5
            text = "not run" if count is None else f"{count}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, label="share of elements")
    figure.savefig(path, dpi=120)
