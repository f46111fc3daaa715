# SPDX-License-Identifier: Apache-2.0
"""``python -m ir_vllm_adapter status [--json]``: what would run in the vLLM of this environment."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from ir_vllm_adapter import compat, hooks, layer_seam, log, plugin, status


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is 0. Whether the adapter is active is in the data ("enabled")."""
    parser = argparse.ArgumentParser(prog="python -m ir_vllm_adapter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status_parser = commands.add_parser(
        "status", help="what runs, through which seam, and what is not batch-invariant"
    )
    status_parser.add_argument("--json", action="store_true", help="print the same facts as JSON")
    options = parser.parse_args(argv)

    # vLLM's log handler takes the stdout of the moment it is set up; stdout is for the data.
    with contextlib.redirect_stdout(sys.stderr):
        data = _facts()
    sys.stdout.write((json.dumps(data, indent=2) if options.json else status.render(data)) + "\n")
    return 0


def _facts() -> dict[str, Any]:
    """Attach to the vLLM of this environment as its front end and a worker would, and look."""
    if compat.host().supported:
        plugin.register()
        hooks.attach_all()
        log.guarded("take over the norm layers", layer_seam.install)
    return status.collect()


if __name__ == "__main__":
    sys.exit(main())
