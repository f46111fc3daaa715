# SPDX-License-Identifier: Apache-2.0
"""What holds for every test of the repository: a clean environment, and no silent emptiness.

``IR_REQUIRE_KINDS=interpreter,gpu`` names markers of which at least one test must have passed; when all of a
kind were skipped or deselected, the run fails. A session sets it where such a test is its reason to exist.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# A developer's own settings must not decide what a test sees; a test that needs one sets it.
SETTINGS = (
    "VLLM_BATCH_INVARIANT",
    "IR_PRIORITY",
    "IR_PACKS",
    "IR_TARGET",
    "IR_STRICT",
    "IR_DISABLE",
    "IR_LOCK",
    "IR_BATCH_INVARIANT_MIN_SM",
)
REQUIRED = frozenset(filter(None, os.environ.get("IR_REQUIRE_KINDS", "").split(",")))


@pytest.fixture(scope="session", autouse=True)
def clean_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unset the project's variables, and keep certificates out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("IR_CACHE_DIR", str(tmp_path_factory.mktemp("ir-cache")))
        yield


class RequiredKinds:
    """Counts what passed by marker, and fails the run when a required kind is missing."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed |= REQUIRED & report.keywords.keys()

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if REQUIRED - self.passed and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for kind in sorted(REQUIRED - self.passed):
            terminalreporter.section("required kind missing", red=True)
            terminalreporter.line(
                f"No test marked {kind!r} passed, and IR_REQUIRE_KINDS asks for one: "
                "they were skipped, deselected or not collected."
            )


def pytest_configure(config: pytest.Config) -> None:
    if REQUIRED and not config.option.collectonly:
        config.pluginmanager.register(RequiredKinds(), "ir-required-kinds")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the working tree."""
    return Path(__file__).parent
