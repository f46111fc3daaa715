# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/mutants.md``: ``python -m mutants.table``, in ``packages/ir-core/tests/planted``.

A mutant that small inputs refute is tried with no larger ones; a cell says whether a probe refutes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

import mutants
from ir_core.verification import probes as table
from ir_core.verification import verify
from mutants import Mutant

if TYPE_CHECKING:
    from ir_core.verification.certificate import Certificate

PAGE: Final = Path(__file__).parents[5] / "docs" / "mutants.md"
HEAD: Final = """# The mutants

Planted violations of batch invariance (the package `mutants` in `packages/ir-core/tests/planted`), and what refutes
each. A dot is a probe that found a counterexample; **the bold one names the cause**: probes hold fixed what the probes
to their left vary, so the leftmost finding is the most specific. Where it says random, every planned case passed and a
random one found it. What the probes do is in [verification.md](verification.md).

Made in that folder by `python -m mutants.table`; the test of the same is `packages/ir-core/tests/test_mutants.py`.

"""


def rows_of(certificates: dict[str, Certificate]) -> list[str]:
    """The table, a line a mutant."""
    every = mutants.all_mutants()
    seen = {f.probe for c in certificates.values() for f in c.findings}
    probes = [probe for probe in table.ATTRIBUTION if probe in seen]
    lines = [
        "| mutant | what is wrong | " + " | ".join(probes) + " |",
        "| --- | --- |" + " --- |" * len(probes),
    ]
    for mutant in every:
        if not mutant.honest:
            certificate = certificates[f"{mutant.op}/{mutant.name}"]
            cells = " | ".join(_cell(probe, certificate) for probe in probes)
            lines.append(f"| {mutant.name} | {_bug(mutant)} | {cells} |")
    caught = sum(_named_right(m, certificates[f"{m.op}/{m.name}"]) for m in every if not m.honest)
    lines += ["", f"{caught} of {sum(not m.honest for m in every)} are named by the right probe.", ""]
    lines += [
        "## Honest implementations",
        "",
        "| implementation | what is unusual | verdict |",
        "| --- | --- | --- |",
    ]
    for mutant in every:
        if mutant.honest:
            certificate = certificates[f"{mutant.op}/{mutant.name}"]
            lines.append(f"| {mutant.name} | {mutant.bug} | {certificate.verdict} |")
    return lines


def _named_right(mutant: Mutant, certificate: Certificate) -> bool:
    return certificate.finding is not None and certificate.finding.probe in mutant.probes


def _bug(mutant: Mutant) -> str:
    return f"{mutant.bug} ({mutant.seen})" if mutant.seen else mutant.bug


def _cell(probe: str, certificate: Certificate) -> str:
    if probe not in {finding.probe for finding in certificate.findings}:
        return ""
    first = certificate.finding is not None and certificate.finding.probe == probe
    if not first:
        return "•"
    return f"**{probe}** (random)" if certificate.finding and certificate.finding.drawn else f"**{probe}**"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE)
    parser.add_argument("--seconds", type=float, default=1200.0, help="a limit only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    impls = mutants.register()
    drawn = {mutant.name for mutant in mutants.all_mutants() if mutant.drawn}
    certificates = {}
    for random in (0, 2000):
        wanted = [impl for impl in impls.values() if (impl.provider in drawn) == bool(random)]
        report = verify(
            wanted, budget=options.seconds, setup=[mutants.SETUP], save=False, stop="small", random=random
        )
        certificates.update({certificate.label: certificate for certificate in report.certificates})
    lines = rows_of(certificates)
    options.page.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
