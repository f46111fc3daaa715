# SPDX-License-Identifier: Apache-2.0
"""Which installed distribution a module belongs to."""

from __future__ import annotations

import functools
import sys

from importlib_metadata import PackageNotFoundError, packages_distributions, version


@functools.cache
def of_module(module: str) -> tuple[str, str]:
    """(name, version) of the distribution that a module belongs to; empty strings if it is of none."""
    top = module.partition(".")[0]
    if top in ("", "__main__", "builtins"):
        return "", ""
    try:
        return top.replace("_", "-"), version(top)
    except PackageNotFoundError:
        pass
    # The package has another name than its distribution. Reading every installed file list takes a while, so
    # only for modules that were installed at all.
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    if "site-packages" not in file and "dist-packages" not in file:
        return "", ""
    names = _packages().get(top)
    return (names[0], version(names[0])) if names else ("", "")


@functools.cache
def _packages() -> dict[str, list[str]]:
    return dict(packages_distributions())
