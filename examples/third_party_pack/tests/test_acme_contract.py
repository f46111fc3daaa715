# SPDX-License-Identifier: Apache-2.0
"""The contract test of a pack: what every implementation owes its op, and what those that claim it owe the batch."""

import os

import pytest

pytest.importorskip("acme_kernels", reason="the example is not installed (nox -s packs)")

from ir_core.testing import contract_tests

globals().update(contract_tests("acme-kernels", seconds=10))

if os.environ.get("TRITON_INTERPRET") == "1":  # Triton's interpreter is not thread-safe; compiled kernels are
    del globals()["test_threads_rms_norm_acme"]
