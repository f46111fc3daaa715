# SPDX-License-Identifier: Apache-2.0
"""The command line: ``ir-core`` and ``python -m ir_core``.

It needs ``ir-core[cli]`` (rich and typer), which a library in a serving image does not bring along.

Data goes to stdout, talk (progress, notes, errors) to stderr; ``--json`` makes the data JSON. Nothing here imports
torch before a command needs it, so that help and shell completion are quick.

=========  ==================================================================================================
exit code  meaning
=========  ==================================================================================================
0          done; what was asked for holds
1          done; what was asked for does not hold (bits differ, a claim is refuted, nothing qualifies, a broken
           pack under ``doctor --strict``)
2          the command line is wrong
3          an error that says what happened, why, and what to do next (:class:`ir_core.errors.IrError`)
70         a bug of this project, with its traceback
130        interrupted
141        the reader of stdout stopped reading (``| head``)
=========  ==================================================================================================
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Final

from ir_core.cli.exits import BUG, ERROR, INTERRUPTED
from ir_core.errors import IrError

__all__ = ["main"]

_NEEDED: Final = ("rich", "typer")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits the process.

    Args:
        argv: the arguments behind the program's name; by default the process's own.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"ir-core's command line needs {' and '.join(missing)}, which this environment does not have.\n"
            f"{sys.executable} -m pip install 'ir-core[cli]' installs what it needs.",
            file=sys.stderr,
        )
        sys.exit(ERROR)
    from ir_core.cli import output
    from ir_core.cli.app import app

    words = list(sys.argv[1:] if argv is None else argv)
    # Of torch, where numpy is not installed; nothing here uses it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    for name in ("stdout", "stderr"):  # closed by the process that started this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for the rest of the process
    output.ends_with_its_pipe = argv is None
    try:
        with output.delivered():
            app(args=words, prog_name="ir-core")
    except output.UndeliveredError as error:  # nothing more can be written there
        output.show_error(error, as_json=False)
        sys.exit(ERROR)
    except IrError as error:
        output.show_error(error, as_json="--json" in words)
        sys.exit(ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            output.show_error(
                IrError(
                    "torch is not installed in this environment.",
                    why=f"This command needs it. The environment is that of {sys.executable}.",
                    fix="Install ir-core with what it depends on, or use the environment that has it.",
                ),
                as_json="--json" in words,
            )
            sys.exit(ERROR)
        import traceback

        traceback.print_exc()
        print(
            "This is a bug of ir-core, not of yours. Please report it with the lines above.", file=sys.stderr
        )
        sys.exit(BUG)
