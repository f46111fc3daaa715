# SPDX-License-Identifier: Apache-2.0
"""What other launch configurations of the norms would give: the numbers behind ``ir_kernels_triton/launch_config.py``.

    python benchmarks/tune_norms.py            # needs a GPU; nothing is written without one

For each row length the table's choice and its neighbours (tile height, warps, registers, late weights, where the next
kernel is started) are compiled, checked for portable's bits, and timed as in norms.py; what spills is named and left
out. results/tune_norms.json keeps all, point by point. Nothing here runs in a call: a better configuration becomes a
number, with its reason, in launch_config.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import common
import norms
import torch

from ir_kernels_triton.kernel_spec import KernelSpec
from ir_kernels_triton.launch_config import ALWAYS, DEPENDENT_LAUNCH, Start, rms_spec
from ir_kernels_triton.proof.compiled import inspect

POINTS = tuple(
    norms.Point(op, rows, n)
    for op, n in itertools.product(
        ("rms_norm", "fused_add_rms_norm"), (128, 1024, 2048, 4096, 7168, 8192, 16384)
    )
    for rows in (16, (1 << 19) // n, (64 << 20) // n)
)


def configurations(op: str, n: int) -> Iterator[tuple[str, KernelSpec]]:
    """The table's choice, then its neighbours; bits are the same for all."""
    hopper = torch.cuda.get_device_capability() >= (9, 0)

    def changed(
        rows: float = 1,
        warps: float = 1,
        late: bool = False,
        pdl: bool = DEPENDENT_LAUNCH,
        start: Start | None = None,
        **more: Any,
    ) -> KernelSpec:
        residual = op == "fused_add_rms_norm"
        spec = rms_spec(
            n,
            n,
            "bf16",
            "bf16",
            aligned=True,
            inner=False,
            residual=residual,
            canonical=True,
            pdl=pdl and hopper,
        )
        height, constants = max(int(spec.rows_per_program * rows), 1), dict(spec.constants)
        constants |= {"ROWS": height, "LATE": late != constants["LATE"]}
        constants |= start.constants() if start else {}
        constants |= {name: constants[name] and height == 1 for name in ("WHOLE", "PIN")}
        warps = min(max(int(spec.num_warps * warps), 1), 32)
        return dataclasses.replace(
            spec, rows_per_program=height, num_warps=warps, constants=tuple(constants.items()), **more
        )

    yield "table", changed()
    yield "half the rows", changed(rows=0.5)
    yield "twice the rows", changed(rows=2)
    yield "half the warps", changed(warps=0.5)
    yield "twice the warps", changed(warps=2)
    yield "half of both", changed(rows=0.5, warps=0.5)
    yield "weights the other way", changed(late=True)
    yield "weights the other way, twice the warps", changed(late=True, warps=2)
    for limit in (None, 40, 64):
        yield f"registers: {limit or 'free'}", changed(maxnreg=limit)
    yield "next kernel at once", changed(start=Start(ALWAYS, ALWAYS))
    yield "next kernel behind the wait", changed(start=Start(0, ALWAYS))
    yield "next kernel after the reads", changed(start=Start(0, 0))
    yield "no dependent launch", changed(pdl=False)


def spilled(spec: KernelSpec) -> int:
    """Bytes that ``spec`` spills; its kernel is in Triton's cache afterwards."""
    major, minor = torch.cuda.get_device_capability()
    return inspect(spec, f"sm{major}{minor}").spilled


def contender(op: str, spec: KernelSpec) -> norms.Contender:
    """A configuration as norms.py takes it."""
    made = norms.launched(lambda n, residual: spec)
    return norms.Contender({op: made.calls[op]}, ours=True)


def main() -> None:
    """Measure, write, and print what would beat the table by more than 2%."""
    if not torch.cuda.is_available():
        raise SystemExit(
            f"tune_norms.py measures a GPU, and torch sees none here. Missing: {len(POINTS)} points."
        )
    asked: dict[tuple[str, int], dict[str, KernelSpec]] = {}
    for point in POINTS:
        named: dict[KernelSpec, str] = {}
        for name, spec in configurations(point.op, point.n):
            named.setdefault(spec, name)
        asked[point.op, point.n] = {name: spec for spec, name in named.items()}
    specs = [spec for alternatives in asked.values() for spec in alternatives.values()]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        spills = dict(zip(specs, pool.map(spilled, specs), strict=True))
    left_out = {
        f"{op} {n}: {name}": f"spills {spills[spec]} bytes"
        for (op, n), alternatives in asked.items()
        for name, spec in alternatives.items()
        if spills[spec]
    }
    results: dict[str, dict[str, Any]] = {}
    for point in POINTS:
        fit = {}
        for name, spec in asked[point.op, point.n].items():
            if spills[spec]:
                continue
            made = contender(point.op, spec)
            if why := norms.correct(name, made, point):
                raise SystemExit(f"{point.name}: {why}")
            fit[name] = made
        times = norms.measure(point, fit)
        results[point.name] = times
        common.save("tune_norms", {"us": results, "left out": left_out})
        best = min((name for name in times if name != "copy"), key=lambda name: times[name])
        better = "" if times[best] > 0.98 * times["table"] else f", {best} {times[best]:.2f} us"
        print(f"{point.name}: copy {times['copy']:.2f} us, table {times['table']:.2f} us{better}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
