# SPDX-License-Identifier: Apache-2.0
"""Check what built distributions carry: `python tests/wheel_contents.py dist/*`."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

LEFTOVER = re.compile(r"__pycache__|\.py[co]$|/\.[^/]*_cache/|/\.hypothesis/")


def names(archive: Path) -> list[str]:
    """Names of the files in a wheel or an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as sdist:
        return sdist.getnames()


def findings(archive: Path) -> list[str]:
    """What is missing from this distribution, or should not be in it."""
    inside = names(archive)
    wanted = (
        ["py.typed", "LICENSE"]
        if archive.suffix == ".whl"
        else ["py.typed", "LICENSE", "README.md", "PKG-INFO"]
    )
    found = [f"no {name}" for name in wanted if not any(entry.endswith(f"/{name}") for entry in inside)]
    if archive.suffix == ".whl":
        module = archive.name.split("-")[0]
        own = (f"{module}/", f"{module}-")
        found += [f"installs {entry}" for entry in inside if not entry.startswith(own)]
    elif not any("/tests/test_" in entry for entry in inside):
        found.append("no tests")
    return found + [f"carries {entry}" for entry in inside if LEFTOVER.search(entry)]


def main(*paths: str) -> int:
    """Return the number of findings, each printed on a line."""
    lines = [f"{path}: {finding}" for path in paths for finding in findings(Path(path))]
    print("\n".join(lines) or f"{len(paths)} distributions carry what they should")
    return len(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
