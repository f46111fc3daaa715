# SPDX-License-Identifier: Apache-2.0
"""Check that one distribution stands alone: `python -I tests/layer_alone.py <dist> [<dist below it> ...]`.

Run in isolated mode, so that nothing but what is installed can be imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from pathlib import Path

ALL = ("ir-core", "ir-platform", "ir-kernels-triton", "ir-vllm-adapter")


def main(*present: str) -> int:
    """Return the number of findings, each printed on a line."""
    findings = []
    site = Path(sysconfig.get_path("purelib")).resolve()
    for dist in ALL:
        module = dist.replace("-", "_")
        if dist not in present:
            if importlib.util.find_spec(module) is not None:
                findings.append(f"{module} can be imported, but {present[0]} must work without it")
            continue
        origin = Path(importlib.import_module(module).__file__ or "").resolve()
        if site not in origin.parents:
            findings.append(f"{module} comes from {origin}, not from an installed wheel")
        for point in importlib.metadata.distribution(dist).entry_points:
            if point.group != "vllm.general_plugins":  # its host is not here
                point.load()
    for finding in findings:
        print(finding, file=sys.stderr)
    if not findings:
        print(f"{present[0]} stands alone" + (f" on {', '.join(present[1:])}" if present[1:] else ""))
    return len(findings)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
