# SPDX-License-Identifier: Apache-2.0
"""The version of the installed distribution."""

from importlib_metadata import PackageNotFoundError, version

try:
    __version__ = version("ir-core")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
