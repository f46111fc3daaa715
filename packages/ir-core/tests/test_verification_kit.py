# SPDX-License-Identifier: Apache-2.0
"""The contract kit, as a pack author uses it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import mutants
import pytest
import torch

from ir_core.testing import ContractError, contract_tests
from ir_core.testing.kit import check_import

CHECKS = {
    "schema",
    "inputs",
    "outputs",
    "arguments",
    "fake",
    "opcheck",
    "numerics",
    "threads",
    "selection",
    "modes",
    "compiled",
    "order",
    "invariance",
}
PLANTED = str(Path(mutants.__file__).parents[1])


@pytest.fixture(autouse=True)
def scratch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    mutants.register()
    yield
    mutants.unregister()
    torch.set_num_threads(before)


def test_every_check_is_there() -> None:
    names = set(contract_tests("scratch_norm/canonical"))
    assert names == {f"test_{check}_scratch_norm_canonical" for check in CHECKS} | {
        "test_import_touches_no_gpu"
    }


def test_what_does_not_claim_invariance_is_not_asked() -> None:
    names = contract_tests("scratch_norm/native")
    assert "test_invariance_scratch_norm_native" in names
    impl = mutants.register()["scratch_norm/canonical"]
    impl.spec = dataclasses.replace(impl.spec, batch_invariant=False)
    assert "test_invariance_scratch_norm_canonical" not in contract_tests("scratch_norm/canonical")
    assert "test_order_scratch_norm_canonical" in contract_tests("scratch_norm/canonical")
    assert "test_order_scratch_norm_row_by_row" not in contract_tests("scratch_norm/row_by_row")


@pytest.mark.parametrize("check", sorted(CHECKS - {"invariance", "compiled", "opcheck"}))
def test_the_honest_pass(check: str) -> None:
    contract_tests("scratch_norm/canonical")[f"test_{check}_scratch_norm_canonical"]()


@pytest.mark.parametrize(
    ("mutant", "check", "said"),
    [
        ("alignment", "invariance", "lie off 16 bytes in memory"),
        ("static_output", "outputs", "overwritten by the next call"),
        ("scales_weight", "inputs", "writes into its input 'weight'"),
        ("padded_mean", "numerics", "float64 reference"),
        ("strided_output", "fake", "strides"),
        ("selection_by_rows", "selection", "predicate"),
        ("fma_compiled", "compiled", "eager and traced"),
        ("first_weight", "arguments", "another weight"),
        ("inference_kernel", "modes", "in the mode inference"),
        ("other_tree", "order", "declares the order 'tree'"),
    ],
)
def test_a_failure_reads_like_a_note(mutant: str, check: str, said: str) -> None:
    with pytest.raises(ContractError) as failure:
        contract_tests(f"scratch_norm/{mutant}", seconds=60.0)[f"test_{check}_scratch_norm_{mutant}"]()
    text = str(failure.value)
    assert said in text
    assert "what it means: " in text and "where to look: " in text and "mutants" in text
    assert "try again: ir-core verify" in text
    assert len(text) < 1500


def test_what_cannot_run_here_is_skipped() -> None:
    impl = mutants.register()["scratch_norm/canonical"]
    impl.spec = dataclasses.replace(impl.spec, supported=False)
    with pytest.raises(SkipTest, match="not supported on this machine"):
        contract_tests("scratch_norm/canonical")["test_numerics_scratch_norm_canonical"]()


def test_an_unknown_distribution_is_named() -> None:
    with pytest.raises(ContractError, match="offers no implementation"):
        contract_tests("ir-of-nobody")


def test_import_is_checked_in_a_fresh_process() -> None:
    check_import(["ir_core.testing.kit"])
    with pytest.raises(ContractError, match="cannot be imported"):
        check_import(["ir_of_nobody"])


def test_plugin_adds_the_tests_and_shows_notes(tmp_path: Path) -> None:
    """In a process of its own: this one did not opt in."""
    (tmp_path / "conftest.py").write_text(
        f"pytest_plugins = ['ir_core.testing.plugin']\nimport sys\nsys.path.append({PLANTED!r})\n"
        "import mutants\nmutants.register()\n"
    )
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--ir-contract",
        "scratch_norm/scales_weight",
        "-k",
        "inputs or schema",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed" in run.stdout
    assert "writes into its input 'weight'" in run.stdout
    assert "kit.py" not in run.stdout  # no traceback through the kit


def test_three_lines_in_a_file_are_enough(tmp_path: Path) -> None:
    (tmp_path / "test_pack.py").write_text(
        f"import sys; sys.path.append({PLANTED!r})\n"
        "from ir_core.testing import contract_tests; import mutants; mutants.register()\n"
        "globals().update(contract_tests('scratch_norm/copies_what_is_odd'))\n"
    )
    words = ["-q", "-p", "no:cacheprovider", "-k", "inputs or outputs or selection"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "3 passed" in run.stdout, run.stdout + run.stderr
