# SPDX-License-Identifier: Apache-2.0
"""Random cases: what time is left after the planned ones belongs to them.

Each is drawn from the seed and its number alone, except that calls that would take too long get fewer rows. A block of
cases shares its static arguments, so that making inputs does not take more time than using them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from ir_core.verification import orders, plan, probes
from ir_core.verification.calls import Call, Case, Setting
from ir_core.verification.layouts import Free
from ir_core.verification.modes import AMBIENT
from ir_core.verification.pool import OTHERS, VALUES
from ir_core.verification.schedule import Stage, Step

if TYPE_CHECKING:
    from ir_core.verification.prober import Prober
    from ir_core.verification.schedule import Steps

BLOCK: Final = 8
"""Cases with the same static arguments."""
WINDOWS: Final = 6
"""How often a call of few rows is made, with other rows each time: a reordered sum shows in one row of eight."""
SECONDS: Final = 0.2
"""What one call may be expected to take: 100,000 rows of 64 columns in plain torch, 60 rows interpreted."""
FAILED_DRAWS: Final = 200
"""Draws in a row that an implementation refuses before no more are tried."""


def steps(p: Prober, most: int | None = None) -> Steps:
    """Random cases until time is up, the implementation is refuted, or there were ``most`` of them."""
    number = refused = 0
    while not p.refuted and (most is None or number < most) and refused < FAILED_DRAWS:
        block = _Block.draw(p, number // BLOCK)
        for _ in range(BLOCK if block is not None else 1):
            number += 1
            cases = block.cases(number) if block is not None else []
            refused = 0 if cases else refused + 1
            for case in cases:
                seconds = probes.expected(p.subject, case)
                if not (yield Step(case.probe, str(case.call), seconds, False, Stage.RANDOM)):
                    return
                p.run(case, required=False, drawn=f"random case {number} of seed {p.subject.seed}")
                if p.refuted:
                    return
            if number == most:
                return


class _Block:
    """Static arguments, and the cases drawn with them."""

    def __init__(self, p: Prober, base: Call) -> None:
        self.p, self.base = p, base

    @classmethod
    def draw(cls, p: Prober, number: int) -> _Block | None:
        """A block, or nothing where the implementation does not take what was drawn."""
        rng = random.Random(f"{p.subject.seed}/block {number}")
        first = p.recorder.settings[0].dtype  # where every reordered sum shows
        dtypes = sorted({setting.dtype for setting in p.recorder.settings})
        setting = Setting(rng.choice([first, *dtypes]), _columns(p, rng))
        try:
            if rng.random() < 0.5:
                variants = plan.variant_names(p.subject, setting, every=True)
                setting = Setting(setting.dtype, setting.hidden, rng.choice(["", *variants]))
            base = p.call(
                setting,
                rows=rng.randint(1, min(64 if not p.slow else 8, p.subject.pool_rows(setting))),
                values=_often(rng, *VALUES),
                statics=rng.choice(["", "#1", "#2", "#3"]),
                threads=rng.choice([0, 1]) if p.on_cpu else 0,
            )
            accepted = p.takes(base) and p.subject.cost(base) < SECONDS
        except Exception:  # the op's generator does not make this
            return None
        return cls(p, base) if accepted else None

    def cases(self, number: int) -> list[Case]:
        """The case of that number; where it compares few rows, with several rows of the pool."""
        p, base = self.p, self.base
        rng = random.Random(f"{p.subject.seed}/{number}")
        kind = rng.random()
        few = base.but(rows=min(base.rows, 33), layout=str(_layout(rng, base.rows)))
        if kind < 0.08 and (names := plan.static_names(p.subject, base.setting)):
            name = rng.choice(["", *names])
            case = Case("arguments", few.but(statics=f"{name}#{rng.randint(1, 9)}"))
        elif kind < 0.14:
            case = Case("numerics", few.but(values=""))
        elif kind < 0.18:
            case = Case(rng.choice(["inputs", "aliasing"]), few)
        elif kind < 0.4 and orders.order_of(p.impl) and orders.reference_of(p.impl) is not None:
            case = Case("order", few.but(rows=self._rows(rng, few.but(layout="contiguous"))))
        else:
            case = Case("rows", self._call(rng), base)
        if not p.takes(case.call):
            return []
        starts = range(0, base.rows, case.call.rows) if case.base is not None else (case.call.start,)
        return [Case(case.probe, case.call.but(start=start), case.base) for start in starts[:WINDOWS]]

    def _call(self, rng: random.Random) -> Call:
        """A call to compare with the base: other rows, elsewhere, laid out otherwise, in another mode."""
        base = self.base
        rows = self._rows(rng, base)
        chance = rng.random()
        return base.but(
            rows=rows,
            # Rows behind the pool's last are told from others by a shift alone.
            shift=rng.choice([0, rng.randrange(1, max(rows, 2))]) if rows > 1 else 0,
            others=_often(rng, *OTHERS),
            layout=str(_layout(rng, rows)),
            mode=rng.choice(["op", *AMBIENT]) if chance < 0.15 else "eager",
            before=rng.choice(["again", "interleaved"]) if chance > 0.92 and rows < 300 else "",
        )

    def _rows(self, rng: random.Random, call: Call) -> int:
        """A number of rows, any size as likely as any other, that does not take too long."""
        rows = int(plan.MOST_ROWS ** rng.random())
        while rows > 1 and self.p.subject.cost(call.but(rows=rows)) > SECONDS:
            rows = rows * 2 // 3
        return rows


def _columns(p: Prober, rng: random.Random) -> int:
    """A number of columns: a model's, or any; narrow ones often, since many rows of them can be tried."""
    chance = rng.random()
    if chance < 0.25:
        wanted = rng.choice(plan.WIDTHS)
    elif chance < 0.5:
        wanted = int(plan.MOST_COLUMNS ** rng.random())
    else:
        wanted = rng.randint(1, 256)
    return plan.hidden_sizes(p.subject, (wanted,))[0]


def _often(rng: random.Random, *others: str) -> str:
    """Nothing special more often than not: the more is unusual, the less is compared."""
    return rng.choice(others) if rng.random() < 0.4 else ""


def _layout(rng: random.Random, rows: int) -> Free:
    """How the arguments lie in memory."""
    if rng.random() < 0.4:
        return Free()
    return Free(
        rank=rng.choice([1, 2, 3, 4] if rows == 1 else [2, 3, 4]),
        offset=rng.choice([0, 0, 1, 2, 4, 8, 16, rng.randint(0, 70)]),
        gap=rng.choice([0, 0, 0, 1, 8, 16, rng.randint(0, 70)]),
        step=rng.choice([1, 1, 1, 2, 3]),
        column=rng.choice([1, 1, 1, 1, 2]),
        turned=rng.choice([0, 0, 1]),
        shared=rng.choice([0, 1]),
        statics=rng.choice([0, 1]),
    )
