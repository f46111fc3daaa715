# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures: `python docs/pictures/make.py` writes them beside itself.

The bandwidths are drawn from what `ir-core bench --output` saved on the machine that they name (needs matplotlib).
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent

VERBS = (
    ("1 register", "an implementation,", "its claim, its needs", "pack.py"),
    ("2 discover", "packs installed", "by anyone", "discovery.py"),
    ("3 select", "one of them, with a", "reason for each", "selection.py"),
    ("4 call / lower", "eagerly, or as one", "node of a graph", "fast_path, lowering"),
    ("5 verify", "bit by bit, on", "this device", "verification/"),
)
REFUTED = "what is refuted is not selected"
WIDTH, HEIGHT, GAP = 150, 96, 26
COLOURS = ("#4c78a8", "#4c78a8", "#b85c00", "#4c78a8", "#54a24b")


def draw() -> str:
    """The picture as SVG; readable on light and dark backgrounds."""
    total = len(VERBS) * WIDTH + (len(VERBS) - 1) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 54}" role="img">',
        '<g font-family="system-ui, sans-serif" text-anchor="middle">',
        f"<title>register, discover, select, call or lower, verify; {REFUTED}</title>",
    ]
    for index, (verb, first, second, file) in enumerate(VERBS):
        x = index * (WIDTH + GAP)
        middle = x + WIDTH // 2
        parts += [
            f'<rect x="{x + 1}" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8" fill="{COLOURS[index]}"/>',
            f'<text x="{middle}" y="28" fill="white" font-size="17" font-weight="600">{verb}</text>',
            f'<text x="{middle}" y="50" fill="white" font-size="12.5">{first}</text>',
            f'<text x="{middle}" y="66" fill="white" font-size="12.5">{second}</text>',
            f'<text x="{middle}" y="85" fill="white" font-size="10.5" font-family="monospace">{file}</text>',
        ]
        if index:
            parts.append(arrow(x - GAP + 2, HEIGHT // 2, x - 3, HEIGHT // 2))
    start, end = 4.5 * WIDTH + 4 * GAP, 2.5 * WIDTH + 2 * GAP
    low = HEIGHT + 30
    parts += [
        f'<path d="M{start} {HEIGHT} V{low} H{end} V{HEIGHT + 8}" fill="none" stroke="#888" stroke-width="1.5"/>',
        f'<path d="M{end - 5} {HEIGHT + 8} L{end + 5} {HEIGHT + 8} L{end} {HEIGHT + 1} Z" fill="#888"/>',
        f'<text x="{(start + end) / 2}" y="{low + 18}" fill="#888" font-size="12.5">{REFUTED}</text>',
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """An arrow to the right."""
    return (
        f'<path d="M{x1} {y1} H{x2 - 6}" stroke="#888" stroke-width="1.5"/>'
        f'<path d="M{x2 - 7} {y2 - 5} V{y2 + 5} L{x2} {y2} Z" fill="#888"/>'
    )


def main() -> None:
    """Write every picture."""
    from ir_core.cli import bench_plot

    (HERE / "five-verbs.svg").write_text(draw())
    for data in HERE.glob("*-h100.json"):
        bench_plot.draw(json.loads(data.read_text()), data.with_suffix(".svg"))


if __name__ == "__main__":
    main()
