# SPDX-License-Identifier: Apache-2.0
"""What stands behind a function, and its digest: what compile caches and certificates are keyed by.

The digest covers the bytes of every module that the function reaches by imports (inside functions too), the plain data
in its closure, its defaults and the globals that it names, and installed distributions by version and file list. What
cannot be followed is named by :func:`not_covered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ir_core.sources import gaps, modules
from ir_core.sources.reach import Reach

_generation = 0


def digest(functions: Iterable[Callable[..., Any]], named: Iterable[str] = ()) -> str:
    """SHA-256, in hex, of everything that ``functions`` and the modules ``named`` reach.

    The same in every process with the same files, versions and data. Files are read once, until :func:`refresh`.
    """
    return Reach(functions, named).digest()


def not_covered(functions: Iterable[Callable[..., Any]], named: Iterable[str] = ()) -> tuple[str, ...]:
    """What :func:`digest` cannot see, one clause each, sorted: data files, the environment, code made from text."""
    reach = Reach(functions, named)
    reach.digest()
    return tuple(sorted({*reach.unseen, *gaps.of_files(reach.files)}))


def generation() -> int:
    """Which reading of the files this is; a digest from another one is to be made again."""
    return _generation


def refresh() -> None:
    """Forget what was read."""
    global _generation
    _generation += 1
    modules.forget()
    gaps.forget()
