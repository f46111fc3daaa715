# SPDX-License-Identifier: Apache-2.0
"""The contract kit as a pytest plug-in; opt in with ``pytest_plugins = ["ir_core.testing.plugin"]`` or ``-p``.

``--ir-contract DISTRIBUTION`` (may be repeated) adds the tests of every implementation of that distribution, and the
ini option ``ir_contract`` does so for every run. Failures are shown as notes, without a traceback through the kit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ir_core.testing.kit import SECONDS, ContractError, contract_tests


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ir-core")
    group.addoption(
        "--ir-contract",
        action="append",
        default=[],
        metavar="DISTRIBUTION",
        help="test a pack against its contract",
    )
    group.addoption(
        "--ir-seconds", type=float, default=SECONDS, help="time for the invariance of one implementation"
    )
    group.addoption("--ir-device", default=None, help="device of the contract tests")
    parser.addini("ir_contract", "distributions to test against their contract", type="args", default=[])


class ContractItem(pytest.Item):
    """One check of one implementation."""

    def __init__(self, *, check: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._check = check

    def runtest(self) -> None:
        self._check()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        if isinstance(excinfo.value, ContractError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name


class ContractPack(pytest.Collector):
    """All checks of one distribution."""

    def collect(self) -> Iterator[ContractItem]:
        options = self.config.option
        tests = contract_tests(self.name, device=options.ir_device, seconds=options.ir_seconds)
        for name, check in tests.items():
            yield ContractItem.from_parent(self, name=name, check=check)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:  # type: ignore[override]
        return (
            str(excinfo.value) if isinstance(excinfo.value, ContractError) else super().repr_failure(excinfo)
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the checks behind the tests that pytest found, before -k and -m choose among them."""
    for name in dict.fromkeys([*config.getini("ir_contract"), *config.option.ir_contract]):
        items.extend(ContractPack.from_parent(session, name=name).collect())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed contract of a plain test function is shown as its note."""
    outcome: Any = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, ContractError):
        report = outcome.get_result()
        if report.failed:
            report.longrepr = str(call.excinfo.value)
