# SPDX-License-Identifier: Apache-2.0
"""``python -m ir_kernels_triton.proof [--core] [--write] [target ...]``: compile, check, and say what was seen."""

from __future__ import annotations

import argparse
import sys
import time

from ir_kernels_triton.proof.cases import TARGETS, cases
from ir_kernels_triton.proof.checks import compile_all, complaints, record


def main() -> int:
    """Check each target; the exit status is 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m ir_kernels_triton.proof", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", default=["sm90"], metavar="target", help=f"of {', '.join(TARGETS)}, or all"
    )
    parser.add_argument("--core", action="store_true", help="the everyday cases only")
    parser.add_argument("--write", action="store_true", help="record the resources as the new budget")
    parser.add_argument("--jobs", type=int, help="processes (default: cores, at most 2)")
    options = parser.parse_args()
    targets = TARGETS if "all" in options.targets else options.targets
    if unknown := sorted(set(targets) - set(TARGETS)):
        parser.error(f"unknown target {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    failed = 0
    for target in targets:
        start = time.monotonic()
        results = compile_all(list(cases(core=options.core)), target, options.jobs)
        if options.write:
            record(results, target)
        texts = list(complaints(results, target))
        failed += len(texts)
        for text in texts:
            sys.stdout.write(text + "\n")
        most = max(results, key=lambda result: result[1].registers)
        sys.stdout.write(
            f"{target}: {len(results)} kernels in {time.monotonic() - start:.0f} s, {len(texts)} complaints; "
            f"at most {most[1].registers} registers ({most[0].name})\n"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
