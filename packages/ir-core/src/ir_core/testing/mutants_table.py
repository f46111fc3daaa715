# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/mutants.md``: ``python -m ir_core.testing.mutants_table docs/mutants.md``.

A mutant that small inputs refute is tried with no larger ones; a cell says whether a probe refutes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from ir_core.testing import mutants
from ir_core.testing.mutants import Mutant
from ir_core.verification import plan

if TYPE_CHECKING:
    from ir_core.verification.certificate import Certificate

HEAD: Final = """# The mutants

Planted violations of batch invariance (`ir_core.testing.mutants`), and what refutes each. A dot is a probe that
found a counterexample; **the bold one names the cause**: probes hold fixed what the probes to their left vary, so
the leftmost finding is the most specific. What the probes do is in [verification.md](verification.md).

Made by `python -m ir_core.testing.mutants_table docs/mutants.md`; the test of the same is
`packages/ir-core/tests/test_mutants.py`.

"""


def rows_of(certificates: dict[str, Certificate]) -> list[str]:
    """The table, a line a mutant."""
    everybody = mutants.all_mutants()
    seen = {f.probe for c in certificates.values() for f in c.findings}
    probes = [probe for probe in plan.ATTRIBUTION if probe in seen]
    lines = [
        "| mutant | what is wrong | " + " | ".join(probes) + " |",
        "| --- | --- |" + " --- |" * len(probes),
    ]
    for mutant in everybody:
        if not mutant.honest:
            certificate = certificates[f"{mutant.op}/{mutant.name}"]
            cells = " | ".join(_cell(probe, certificate) for probe in probes)
            lines.append(f"| {mutant.name} | {_bug(mutant)} | {cells} |")
    caught = sum(_named_right(m, certificates[f"{m.op}/{m.name}"]) for m in everybody if not m.honest)
    lines += ["", f"{caught} of {sum(not m.honest for m in everybody)} are named by the right probe.", ""]
    lines += [
        "## Honest implementations",
        "",
        "| implementation | what is unusual | verdict |",
        "| --- | --- | --- |",
    ]
    for mutant in everybody:
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
    return f"**{probe}**" if first else "•"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    from ir_core.verification import verify

    torch.set_num_threads(1)
    impls = mutants.register()
    report = verify(
        list(impls.values()), budget=options.seconds, setup=[mutants.SETUP], save=False, stop="small"
    )
    lines = rows_of({certificate.label: certificate for certificate in report.certificates})
    options.page.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
