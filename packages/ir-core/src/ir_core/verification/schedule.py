# SPDX-License-Identifier: Apache-2.0
"""The schedule: whose step is next, and which steps still fit into the time.

There are three stages. In the first every implementation runs its cheap planned steps; what costs more is put off. In
the second the put-off steps run, cheap ones first. What time is left belongs to random cases. A machine that is busy
with something else makes every step slower, so the steps that a certificate needs and that cost little may take as
long again as the budget; all others end with it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import torch

from ir_core.errors import IrError
from ir_core.verification.recorder import Recorder
from ir_core.verification.subject import threads

CHEAP: Final = 0.3
"""Seconds: what a step of the first stage may be expected to take. The planned steps of a norm in plain torch take
0.001 to 0.2; compiling one takes 1, and 64 interpreted rows 0.2."""


class Stage(IntEnum):
    """When a step's turn is."""

    PLANNED = 0
    PUT_OFF = 1
    RANDOM = 2


class Step(NamedTuple):
    """Something to do, the seconds it is expected to take, and whether a certificate needs it."""

    probe: str
    what: str
    seconds: float
    required: bool = True
    stage: Stage = Stage.PLANNED


Steps: TypeAlias = Generator[Step, bool, None]
"""Yields what it would do next, and is told whether it may."""


class Worker(Protocol):
    """Whose steps are scheduled: a prober."""

    recorder: Recorder
    spent: float
    doing: str


class Progress(Protocol):
    """Told what happens; the command line draws it."""

    def update(self, probers: Sequence[Any], remaining: float) -> None:
        """Something was done."""


class Silent:
    """Draws nothing."""

    def update(self, probers: Sequence[Any], remaining: float) -> None:
        """Something was done."""


def allowed(step: Step, remaining: float, overtime: float, share: float) -> bool:
    """Whether a step may run.

    Args:
        step: what it is.
        remaining: seconds until the budget is spent; negative after that.
        overtime: seconds beyond the budget that cheap required steps may use.
        share: seconds that one put-off step may take, so that others get a turn.
    """
    if step.stage is Stage.PLANNED:
        return step.seconds <= CHEAP and remaining > (-overtime if step.required else 0.0)
    return step.seconds <= (min(share, remaining) if step.stage is Stage.PUT_OFF else remaining)


def share_time(
    work: Mapping[Worker, Steps], deadline: float, overtime: float = 0.0, progress: Progress | None = None
) -> None:
    """Run each prober's steps until there are none or ``deadline`` (of ``time.monotonic``) has passed.

    Next is the earliest stage, and in it the prober that has had the least time, counting what its step would take.
    """
    progress = progress or Silent()
    probers = list(work)
    waiting: dict[Worker, tuple[Steps, Step]] = {}
    fair = (deadline - time.monotonic()) / max(len(probers), 1)
    for prober, steps in work.items():
        _advance(prober, steps, None, waiting)
    while waiting:
        prober = min(waiting, key=lambda p: (waiting[p][1].stage, p.spent + waiting[p][1].seconds))
        steps, step = waiting.pop(prober)
        remaining = deadline - time.monotonic()
        others = sum(other.stage is Stage.PUT_OFF for _, other in waiting.values())
        share = max(remaining / (others + 1), fair - prober.spent)
        prober.doing = step.probe if step.stage is not Stage.RANDOM else "random cases"
        progress.update(probers, remaining)
        _advance(prober, steps, allowed(step, remaining, overtime, share), waiting)
        prober.doing = "done" if prober not in waiting else prober.doing
    progress.update(probers, max(deadline - time.monotonic(), 0.0))


def run_alone(prober: Worker, steps: Steps, seconds: float) -> None:
    """Run some steps of one prober, each that fits into the time; at least one."""
    waiting: dict[Worker, tuple[Steps, Step]] = {}
    until = time.monotonic() + seconds
    with torch.no_grad(), threads(1):
        _advance(prober, steps, None, waiting)
        while waiting:
            started, step = waiting.pop(prober)
            fits = until - time.monotonic() > step.seconds or not prober.recorder.cases
            _advance(prober, started, fits, waiting)


def _advance(
    prober: Worker, steps: Steps, may: bool | None, waiting: dict[Worker, tuple[Steps, Step]]
) -> None:
    """Let a prober go on to its next step, on its own clock."""
    start = time.monotonic()
    try:
        step = next(steps) if may is None else steps.send(may)
        waiting[prober] = (steps, step)
    except StopIteration:
        pass
    except IrError as error:
        prober.recorder.skipped.append(error.what)
    except Exception as error:  # of the op's generator, say: not a verdict about the implementation
        prober.recorder.skipped.append(f"the verification stopped: {type(error).__name__}: {error}")
    finally:
        prober.spent += time.monotonic() - start
