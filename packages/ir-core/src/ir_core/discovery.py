# SPDX-License-Identifier: Apache-2.0
"""Discover: entry points become packs and failures. Reads data only; the code behind it is imported when needed.

The core's own ops are the first pack: ``ir_core/ops/pack.py``, read like any other, but with no entry point of an
installed distribution behind it, so that ``IR_PACKS`` cannot take the ops away.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from importlib_metadata import EntryPoint, entry_points

from ir_core import env
from ir_core.errors import IrWarning
from ir_core.failure import Failure, capture, distribution_of, report
from ir_core.pack import KernelPack
from ir_core.version import __version__

GROUP: Final = "ir_core.kernels"


@dataclass(frozen=True)
class OwnPoint:
    """Stands where a pack of an installed distribution has its entry point."""

    name: str = "core"
    value: str = "ir_core.ops.pack:PACK"
    group: str = GROUP

    @dataclass(frozen=True)
    class _Dist:
        name: str = "ir-core"
        version: str = __version__

    dist: Any = _Dist()

    def load(self) -> Any:
        return EntryPoint(self.name, self.value, self.group).load()


OWN: Final = OwnPoint()


@dataclass(frozen=True)
class Pack:
    """A pack that was read: its data, and the entry point and distribution that bring it."""

    data: KernelPack
    point: Any

    @property
    def distribution(self) -> str:
        return distribution_of(self.point)[0]

    @property
    def version(self) -> str:
        return distribution_of(self.point)[1]


@dataclass(frozen=True)
class Found:
    """What the entry points of this environment come to.

    Args:
        packs: those that could be read, by distribution.
        failures: those that could not.
        skipped: distributions with packs that ``IR_PACKS`` does not allow.
    """

    packs: tuple[Pack, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[str, ...]


def normalize(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def own() -> Pack:
    """The pack of the core's own ops; no entry point is asked for."""
    return Pack(KernelPack.parse(OWN.load()), OWN)


def read() -> Found:
    """Read the data of every installed pack that ``IR_PACKS`` allows. Whatever goes wrong is a failure of that pack."""
    listed = env.names(env.IR_PACKS)
    allowed = None if listed is None else {normalize(name) for name in listed}
    packs: list[Pack] = []
    failures: list[Failure] = []
    skipped: list[str] = []
    points = sorted(entry_points(group=GROUP), key=_by_distribution)
    _warn_absent(listed or (), {distribution_of(point)[0] for point in points})
    for point in points:
        name = distribution_of(point)[0]
        if allowed is not None and normalize(name) not in allowed:
            skipped.append(name)
            continue
        try:
            packs.append(Pack(KernelPack.parse(point.load()), point))
        except (Exception, SystemExit) as error:
            failures.append(capture(point, "load the pack", error))
    report(failures)
    return Found(tuple(packs), tuple(failures), tuple(skipped))


def _by_distribution(point: Any) -> tuple[str, str]:
    return normalize(distribution_of(point)[0]), point.name


def _warn_absent(listed: Iterable[str], there: set[str]) -> None:
    """Warn of names in IR_PACKS that no distribution with a pack has: a pack that was asked for does not run."""
    known = {normalize(name) for name in there}
    for name in sorted(listed):
        if normalize(name) in known:
            continue
        meant = env.nearest(f"_{normalize(name)}", {f"_{other}" for other in known})
        hint = f"Did you mean {meant.removeprefix('_')}?" if meant else "Install it, or take it out."
        warnings.warn(
            f"{env.IR_PACKS} names {name}, and no installed distribution of that name has a pack. {hint}",
            IrWarning,
            stacklevel=2,
        )
