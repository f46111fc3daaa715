# SPDX-License-Identifier: Apache-2.0
"""Broken plug-ins as values: which distribution, which version, what happened, with the traceback."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("ir_core")


@dataclass(frozen=True)
class Failure:
    """A plug-in, or a part of one, that cannot be used.

    Args:
        distribution, version: the installed distribution that brings it.
        entry_point: ``name = value`` of the entry point.
        doing: what was attempted: ``"load the pack"``.
        error: ``ErrorType: message``.
        traceback: the full traceback; empty when the failure is a finding, not an exception.
    """

    distribution: str
    version: str
    entry_point: str
    doing: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point}): cannot {self.doing}: {self.error}"

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return dict(vars(self))


def distribution_of(point: Any) -> tuple[str, str]:
    """(name, version) of the distribution that brings an entry point, also when its metadata is broken."""
    try:
        return point.dist.name or "(no name)", point.dist.version or ""
    except Exception:  # no dist, no METADATA file, no version in it, ...
        folder = getattr(getattr(point, "dist", None), "_path", None)
        return getattr(folder, "name", "(no distribution)"), ""


def capture(point: Any, doing: str, error: BaseException) -> Failure:
    """The failure of the entry point ``point``."""
    distribution, version = distribution_of(point)
    return Failure(
        distribution=distribution,
        version=version,
        entry_point=f"{point.name} = {point.value}",
        doing=doing,
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )


_reported: set[Failure] = set()


def report(failures: Iterable[Failure]) -> None:
    """Warn once a process about each failure; ``ir-core doctor`` shows the tracebacks."""
    for failure in failures:
        if failure not in _reported:
            _reported.add(failure)
            said = str(failure).rstrip(".")
            logger.warning("%s. The rest goes on without it; `ir-core doctor` has the traceback.", said)
