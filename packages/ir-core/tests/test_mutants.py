# SPDX-License-Identifier: Apache-2.0
"""Every planted bug is refuted and named by the right probe; what is honest is not refuted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutants
import pytest
import torch

from ir_core.verification import Case, Certificate, probes, random_cases, reproduce, schedule, verify
from ir_core.verification.calls import Setting
from ir_core.verification.prober import Prober
from ir_core.verification.session import target_for

# A limit only: the planned cases of all mutants take about 30 s of processor time, one thread.
SECONDS = 400.0
HONEST = ("canonical", "row_by_row", "keeps_weights", "add_in_place", "polynomial_softmax")
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "docs" / "mutants.md"


@pytest.fixture(scope="module")
def registered() -> Iterator[dict[str, Any]]:
    """Every implementation by provider."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield {impl.provider: impl for impl in mutants.register().values()}
    finally:
        mutants.unregister()
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def certificates(registered: dict[str, Any]) -> dict[str, Certificate]:
    """One verification of planned cases; each implementation stops at its first counterexample."""
    wanted = [
        registered[m.name]
        for m in mutants.all_mutants()
        if not m.drawn and (m in MUTANTS or m.name in HONEST)
    ]
    report = verify(wanted, budget=SECONDS, setup=[mutants.SETUP], save=False, stop="first", random=0)
    return {certificate.provider: certificate for certificate in report.certificates}


MUTANTS = [mutant for mutant in mutants.all_mutants() if not mutant.honest]


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 45
    assert len({mutant.name for mutant in mutants.all_mutants()}) == len(mutants.all_mutants())
    meant = {probe for mutant in MUTANTS for probe in mutant.probes}
    # ``runs`` and ``opcheck`` are about code that does not work, ``graph`` needs a GPU, ``pair`` has tests of its own.
    assert set(probes.PROBES) - meant == {"runs", "opcheck", "graph", "pair"}


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.drawn], ids=lambda mutant: mutant.name)
def test_mutant_is_refuted_by_the_right_probe(
    mutant: mutants.Mutant, certificates: dict[str, Certificate]
) -> None:
    certificate = certificates[mutant.name]
    assert certificate.verdict == "refuted", certificate.skipped
    assert certificate.finding is not None
    assert certificate.finding.probe in mutant.probes, certificate.finding.text()
    assert "--case" in certificate.finding.command
    assert mutants.SETUP in certificate.finding.command


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.drawn], ids=lambda mutant: mutant.name)
def test_what_no_planned_case_meets_is_drawn_and_shrunk(
    mutant: mutants.Mutant, registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That planned cases do not meet it is in the table of docs/mutants.md, which runs them all."""
    monkeypatch.setattr(random_cases, "SECONDS", 0.04)  # smaller calls than usual, and enough for 40,000 rows
    prober = Prober(registered[mutant.name], target_for("cpu"), setup=[mutants.SETUP])
    for dtype in ("float32", "bfloat16"):
        assert prober.accept(Setting(dtype, 32))
    prober.run(Case("runs", prober.call(Setting("float32", 32), rows=64)))  # what calls cost
    schedule.run_alone(prober, random_cases.steps(prober, 1500), 120.0)
    (finding,) = prober.found.values()
    assert finding.probe in mutant.probes, finding.text()
    assert "random case" in finding.drawn and "of seed 0" in finding.text()
    case = Case.parse(finding.case)
    assert len(case.key()) < 330, case.key()  # nothing in it that is not needed
    again = reproduce(registered[mutant.name], case, device="cpu")
    assert again is not None and "differ" in again


@pytest.mark.parametrize("name", HONEST)
def test_honest_is_certified(name: str, certificates: dict[str, Certificate]) -> None:
    certificate = certificates[name]
    assert not certificate.findings, certificate.findings[0].text()
    assert certificate.verdict == "certified", certificate.skipped


def test_a_certificate_of_an_order_says_so(certificates: dict[str, Certificate]) -> None:
    assert certificates["canonical"].order == "tree" and certificates["canonical"].cases["order"] > 5
    assert certificates["canonical"].summary().startswith("bits of the order 'tree', so batch-invariant")
    assert certificates["keeps_weights"].order == ""
    assert certificates["keeps_weights"].summary().startswith("batch-invariant: ")


def test_rows_are_bisected(certificates: dict[str, Certificate]) -> None:
    changes = {
        "block_size_by_rows": "changes at 256 rows",
        "two_pass_for_one_row": "changes at 2 rows: a lone row",
        "split_by_rows": "changes at 17 rows",
        "beyond_32768_rows": "changes at 32769 rows",
    }
    for name, change in changes.items():
        finding = certificates[name].finding
        assert finding is not None
        assert finding.change.startswith(change), finding.text()


def test_the_page_is_about_these_mutants() -> None:
    """docs/mutants.md: a row each, and the probe that names it is the one that is meant for it."""
    rows = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if found := [cell for cell in cells[2:] if cell.startswith("**")]:
            rows[cells[0]] = found[0]
    assert set(rows) == {mutant.name for mutant in MUTANTS}
    for mutant in MUTANTS:
        _, probe, when = rows[mutant.name].split("**")
        assert probe in mutant.probes and ("random" in when) == mutant.drawn, mutant.name
