# SPDX-License-Identifier: Apache-2.0
"""The contract kit for pack authors: three lines give every implementation of a pack the whole suite.

In a test file::

    from ir_core.testing import contract_tests

    globals().update(contract_tests("my-distribution"))

or in a ``conftest.py``, with nothing else: ``pytest_plugins = ["ir_core.testing.plugin"]`` and
``pytest --ir-contract my-distribution``. Nothing is loaded unless it is asked for.
"""

from ir_core.testing.kit import ContractError, contract_tests

__all__ = ["ContractError", "contract_tests"]
