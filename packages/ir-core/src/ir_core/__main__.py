# SPDX-License-Identifier: Apache-2.0
"""``python -m ir_core``: the command line (``ir_core.cli``)."""

from ir_core.cli import main

main()
