# SPDX-License-Identifier: Apache-2.0
"""What must hold of the compiled kernels of one target; each violation becomes a sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import triton

from ir_kernels_triton.proof.cases import Case, before_sm90
from ir_kernels_triton.proof.compiled import Compiled, inspect

BUDGET: Final = Path(__file__).with_name("budget.json")
SLACK: Final = 32
"""Registers that another Triton than the recorded one may take more; ptxas allocates them in eights. (Triton 3.6 takes
80 for a misaligned fused add of 128 float32 on sm_100, 3.7.1 takes 48.)"""


def compile_all(cases: Sequence[Case], target: str, jobs: int | None = None) -> list[tuple[Case, Compiled]]:
    """Compile for one target, in ``jobs`` processes (one for each core, two at most)."""
    jobs = jobs or min(os.cpu_count() or 1, 2)
    if int(target.removeprefix("sm")) < 90:
        cases = [before_sm90(case) for case in cases]
    if jobs == 1 or len(cases) < 8:
        return [(case, inspect(case.spec, target)) for case in cases]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        specs = [case.spec for case in cases]
        return list(zip(cases, pool.map(inspect, specs, [target] * len(specs), chunksize=8), strict=True))


def complaints(results: Iterable[tuple[Case, Compiled]], target: str) -> Iterator[str]:
    """One text for each thing that does not hold."""
    budget = load_budget().get(target, {})
    first: dict[str, tuple[Case, Compiled]] = {}
    for case, compiled in results:
        leader, reference = first.setdefault(case.group, (case, compiled))
        if case.canonical and compiled.reductions != reference.reductions:
            yield side_by_side(leader, reference, case, compiled)
        for text in alone(case, compiled):
            yield f"{target} {case.name}: {text}"
        for text in within(budget, case, compiled):
            yield f"{target} {case.name}: {text}"


def alone(case: Case, compiled: Compiled) -> Iterator[str]:
    """What one kernel shows by itself."""
    if case.canonical:
        if case.spec.fp_fusion:
            yield "is compiled with contraction allowed"
        if compiled.fused:
            yield f"contracts multiplications and additions: {sorted(set(compiled.fused))}"
        if compiled.inexact:
            yield f"approximates or flushes: {sorted(set(compiled.inexact))}"
    if compiled.spilled:
        yield f"spills {compiled.spilled} bytes to local memory"
    if case.spec.pdl and not compiled.waits:
        yield "is launched before the kernel ahead of it has ended, and does not wait before its first access"
    wide = sum(size == 16 for size in compiled.accesses)
    if wide < case.vectors:
        yield f"has {wide} global accesses of 16 bytes, {case.vectors} are expected (all: {compiled.accesses})"


def within(budget: dict[str, Any], case: Case, compiled: Compiled) -> Iterator[str]:
    """Resources against the committed budget."""
    if case.name not in budget:
        yield "has no budget: python -m ir_kernels_triton.proof --write adds it"
        return
    slack = 0 if budget["triton"] == triton.__version__ else SLACK
    allowed = dict(zip(("registers", "shared", "shuffles", "barriers"), budget[case.name], strict=True))
    allowed["registers"] += slack
    for what, most in allowed.items():
        if (has := getattr(compiled, what)) > most and (what == "registers" or not slack):
            yield f"has {has} {what}, the budget is {most}"


def side_by_side(leader: Case, reference: Compiled, case: Case, compiled: Compiled) -> str:
    """The reductions of two variants of one kernel, left and right."""
    lines = [f"{case.group}: a call's layout changes the layout of a reduction", ""]
    left, right = leader.variant or "as usual", case.variant or "as usual"
    for number, (a, b) in enumerate(zip_longest(reference.reductions, compiled.reductions, fillvalue="-")):
        mark = " " if a == b else "*"
        lines += [f"{mark} reduction {number}", f"    {left:>24} | {a}", f"    {right:>24} | {b}"]
    return "\n".join(lines)


def load_budget() -> dict[str, Any]:
    """The committed budget: for each target the Triton it was recorded with, and numbers by case."""
    loaded: dict[str, Any] = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    return loaded


def record(results: Iterable[tuple[Case, Compiled]], target: str) -> None:
    """Write the target's budget: what was compiled, registers rounded up to the next eight."""
    budget = load_budget()
    mine: dict[str, Any] = {"triton": triton.__version__}
    for case, c in results:
        mine[case.name] = [-(-c.registers // 8) * 8, c.shared, c.shuffles, c.barriers]
    budget[target] = mine
    lines = []
    for name in sorted(budget):
        entries = ",\n".join(
            f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in budget[name].items()
        )
        lines.append(f"  {json.dumps(name)}: {{\n{entries}\n  }}")
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
