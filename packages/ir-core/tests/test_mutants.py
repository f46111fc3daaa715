# SPDX-License-Identifier: Apache-2.0
"""Every planted bug is refuted and named by the right probe; what is honest is not refuted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ir_core.testing import mutants
from ir_core.verification import Certificate, verify

# A limit only: the mutants take about 40 s of processor time, one thread.
SECONDS = 400.0
HONEST = ("canonical", "row_by_row", "add_in_place", "order_by_dtype")


@pytest.fixture(scope="module")
def certificates() -> Iterator[dict[str, Certificate]]:
    """One verification of everything; each implementation stops at its first counterexample."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    impls = mutants.register()
    wanted = [i for i in impls.values() if i.provider in HONEST or not _by_name()[i.provider].honest]
    try:
        report = verify(wanted, budget=SECONDS, setup=[mutants.SETUP], save=False, stop="first")
        yield {certificate.provider: certificate for certificate in report.certificates}
    finally:
        mutants.unregister()
        torch.set_num_threads(before)


def _by_name() -> dict[str, mutants.Mutant]:
    return {mutant.name: mutant for mutant in mutants.all_mutants()}


MUTANTS = [mutant for mutant in mutants.all_mutants() if not mutant.honest]


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 24
    assert len(_by_name()) == len(mutants.all_mutants())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_refuted_by_the_right_probe(
    mutant: mutants.Mutant, certificates: dict[str, Certificate]
) -> None:
    certificate = certificates[mutant.name]
    assert certificate.verdict == "refuted", certificate.skipped
    assert certificate.finding is not None
    assert certificate.finding.probe in mutant.probes, certificate.finding.text()
    assert "--case" in certificate.finding.command
    assert mutants.SETUP in certificate.finding.command


@pytest.mark.parametrize("name", HONEST)
def test_honest_is_certified(name: str, certificates: dict[str, Certificate]) -> None:
    certificate = certificates[name]
    assert not certificate.findings, certificate.findings[0].text()
    assert certificate.verdict == "certified", certificate.skipped


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
