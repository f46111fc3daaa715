# SPDX-License-Identifier: Apache-2.0
"""What holds for every test of the repository: a clean environment, and no silent emptiness.

``IR_REQUIRE_KINDS=interpreter,gpu`` names markers of which at least one test must have passed; when all of a
kind were skipped or deselected, the run fails. A session sets it where such a test is its reason to exist.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

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
        for name in (*SETTINGS, "COLUMNS"):  # the width of the terminal that the tests were started from
            patch.delenv(name, raising=False)
        patch.setenv("IR_CACHE_DIR", str(tmp_path_factory.mktemp("ir-cache")))
        yield


class RequiredKinds:
    """Counts what passed by marker, and fails the run when a required kind is missing."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}
        self.passed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.kinds = {item.nodeid: {mark.name for mark in item.iter_markers()} for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed |= REQUIRED & self.kinds[report.nodeid]

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


def absent(kind: str) -> str:
    """Why tests of this kind cannot run here, or nothing."""
    match kind:
        case "interpreter" if os.environ.get("TRITON_INTERPRET", "").lower() not in (
            "1",
            "true",
            "yes",
            "on",
            "y",
        ):
            return "needs TRITON_INTERPRET=1, from the start of the process"
        case "vllm" if importlib.util.find_spec("vllm") is None:
            return "vLLM is not installed"
        case "packs" if not any(importlib.metadata.distributions(name="ir-broken-import-error")):
            return "the wheels of tests/packs are not installed (nox -s packs)"
        case "gpu" if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        case "gpu":
            os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # no CUDA before the tests fork
            import torch

            return "" if torch.cuda.is_available() else "no GPU that torch can use"
    return ""


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what cannot run here; IR_REQUIRE_KINDS turns that into a failure."""
    for kind in ("interpreter", "vllm", "packs", "gpu"):
        of_kind = [item for item in items if item.get_closest_marker(kind)]
        if of_kind and (reason := absent(kind)):
            for item in of_kind:
                item.add_marker(pytest.mark.skip(reason=reason))
