# SPDX-License-Identifier: Apache-2.0
"""What other launch configurations of the norms would give: the numbers behind ``ir_kernels_triton/launch_config.py``.

    python benchmarks/tune_norms.py            # needs a GPU; nothing is written without one

For each row length, every tile height, number of warps, register limit and dependent launch is compiled, checked for
portable's bits, and timed as in norms.py. The table's own choice stands first; results/tune_norms.json keeps all.
Nothing here runs in a call: a better configuration becomes a number, with its reason, in launch_config.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import common
import norms
import torch

from ir_kernels_triton.launch_config import PDL, KernelSpec, rms_spec
from ir_kernels_triton.launcher import Kernel

POINTS = tuple(
    norms.Point(op, rows, n)
    for op, n in itertools.product(
        ("rms_norm", "fused_add_rms_norm"), (128, 1024, 2048, 4096, 7168, 8192, 16384)
    )
    for rows in (16, (64 << 20) // n)
)


def configurations(op: str, n: int) -> Iterator[tuple[str, KernelSpec]]:
    """The table's choice, then its alternatives; bits are the same for all."""
    residual = op == "fused_add_rms_norm"

    def spec(pdl: bool) -> KernelSpec:
        return rms_spec(
            n, n, "bf16", "bf16", aligned=True, inner=False, residual=residual, canonical=True, pdl=pdl
        )

    table = spec(PDL and torch.cuda.get_device_capability() >= (9, 0))
    yield "table", table
    heights = sorted({max(table.rows // 2, 1), table.rows, table.rows * 2})
    warps = sorted({max(table.num_warps // 2, 1), table.num_warps, min(table.num_warps * 2, 32)})
    pdls = (False, True) if torch.cuda.get_device_capability()[0] >= 9 else (False,)
    for rows, count, limit, late, pdl in itertools.product(heights, warps, (None, 64), (False, True), pdls):
        base = spec(pdl)
        constants = dict(base.constants) | {"R": rows, "LATE": late}
        changed = dataclasses.replace(
            base, rows=rows, num_warps=count, maxnreg=limit, constants=tuple(constants.items())
        )
        if changed != table:
            yield f"rows={rows} warps={count} maxnreg={limit} late={late} pdl={pdl}", changed


def contender(op: str, n: int, spec: KernelSpec) -> norms.Contender:
    """A configuration as norms.py takes it."""
    kernel = Kernel(spec, torch.device("cuda", torch.cuda.current_device()))

    def single(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        kernel((x, x, w, y, x), len(x), (0, n, 0, 0, 0, n, 0, 0, 0, norms.EPSILON))
        return y

    def fused(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernel((x, r, w, x, r), len(x), (0, n, 0, n, 0, n, 0, n, 0, norms.EPSILON))
        return x, r

    return norms.Contender({op: single if op == "rms_norm" else fused}, ours=True)


def main() -> None:
    """Measure, write, and print what would beat the table by more than 2%."""
    if not torch.cuda.is_available():
        raise SystemExit(
            f"tune_norms.py measures a GPU, and torch sees none here. Missing: {len(POINTS)} points."
        )
    results: dict[str, dict[str, Any]] = {}
    for point in POINTS:
        fit = {}
        for name, spec in configurations(point.op, point.n):
            made = contender(point.op, point.n, spec)
            if why := norms.correct(name, made, point):
                raise SystemExit(f"{point.name}: {why}")
            fit[name] = made
        times = norms.measure(point, fit)
        results[point.name] = times
        best = min((name for name in times if name != "copy"), key=lambda name: times[name])
        better = "" if times[best] > 0.98 * times["table"] else f", {best} {times[best]:.2f} us"
        print(f"{point.name}: copy {times['copy']:.2f} us, table {times['table']:.2f} us{better}", flush=True)
        torch.cuda.empty_cache()
    print(f"written: {common.save('tune_norms', {'us': results})}")


if __name__ == "__main__":
    main()
