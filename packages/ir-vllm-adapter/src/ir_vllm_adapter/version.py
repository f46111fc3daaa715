# SPDX-License-Identifier: Apache-2.0
"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ir-vllm-adapter")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
