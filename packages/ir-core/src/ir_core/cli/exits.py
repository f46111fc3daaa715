# SPDX-License-Identifier: Apache-2.0
"""Exit codes of the command line; the table is in ``ir_core.cli``."""

from typing import Final

OK: Final = 0
FINDING: Final = 1
ERROR: Final = 3
BUG: Final = 70
INTERRUPTED: Final = 130
