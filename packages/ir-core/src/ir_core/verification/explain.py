# SPDX-License-Identifier: Apache-2.0
"""Making a counterexample small, and saying what it means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ir_core.verification.calls import Call, Case

if TYPE_CHECKING:
    from ir_core.verification.prober import Prober
    from ir_core.verification.subject import Difference, Subject

SECONDS: Final = 3.0
"""Time for making one counterexample smaller."""


def narrow(p: Prober, found: Difference) -> tuple[Case, str, Difference]:
    """A smaller case that still differs, where the change begins, and its difference.

    Only for numbers of rows: bisection between a number that agrees and one that does not. Found by experiment, so
    true of the two numbers named; between several changes it finds one.
    """
    case = found.case
    if case.probe != "rows" or case.base is None:
        return case, "", found
    until = time.monotonic() + SECONDS
    case, found = _rows(p.subject, case, found, until)
    assert case.base is not None
    fewer, more = sorted((case.call.rows, case.base.rows))
    change = f"changes at {more} rows" if more - fewer == 1 else f"changes between {fewer} and {more} rows"
    if fewer == 1 and more == 2:
        change += ": a lone row has other bits than the same row in a batch"
    if (columns := _columns(p, case, until)) is not None:
        case, found = columns
        change += f", seen from {case.call.hidden} columns on"
    return case, change, found


def _rows(subject: Subject, case: Case, found: Difference, until: float) -> tuple[Case, Difference]:
    """Bisect between the two numbers of rows of a case."""
    assert case.base is not None
    base = case.base
    low, high = sorted((case.call.rows, base.rows))
    # Of the numbers between, those next to the base's agree with it, those next to the call's do not.
    agrees_high = base.rows == high
    while high - low > 1 and time.monotonic() < until:
        middle = (low + high) // 2
        differs = subject.compare(Case("rows", case.call.but(rows=middle), base)) is not None
        if differs == agrees_high:
            low = middle
        else:
            high = middle
    start = case.call.start
    smaller = Case("rows", base.but(rows=low, start=start), base.but(rows=high, start=start))
    again = subject.compare(smaller)
    return (smaller, again) if again is not None else (case, found)


def _columns(p: Prober, case: Case, until: float) -> tuple[Case, Difference] | None:
    """The fewest columns at which two numbers of rows differ, between this setting and the widest one that passed."""
    assert case.base is not None
    dtype, hidden = case.call.dtype, case.call.hidden
    passed = [
        s.hidden
        for s in p.settings
        if s.dtype == dtype and s.variant == case.call.variant and s.hidden < hidden
    ]
    if not passed:
        return None
    low, high, best = max(passed), hidden, None
    while high - low > 1 and time.monotonic() < until:
        middle = (low + high) // 2
        if (there := _any_start(p.subject, case, middle)) is not None:
            high, best = middle, there
        else:
            low = middle
    return best


def _any_start(subject: Subject, case: Case, hidden: int) -> tuple[Case, Difference] | None:
    """The case with other columns, for several rows of the pool: one row alone may hide a reordered sum."""
    assert case.base is not None
    for start in range(6):
        other = Case(
            "rows", case.call.but(hidden=hidden, start=start), case.base.but(hidden=hidden, start=start)
        )
        try:
            if (difference := subject.compare(other)) is not None:
                return other, difference
        except Exception:  # the op takes no such number of columns
            return None
    return None


def mechanism(subject: Subject, case: Case) -> str:
    """Why, where an experiment can tell: on a CPU, whether it needs several threads."""
    threads = subject.threads
    if subject.device.type != "cpu" or threads == 1 or case.base is None or case.call.mode != "eager":
        return ""
    one = Case(case.probe, case.call.but(threads=1), case.base.but(threads=1))
    try:
        if subject.compare(one) is not None:
            return ""
    except Exception:
        return ""
    said = "with one thread (torch.set_num_threads(1)) the two agree: torch splits "
    if 1 in (case.call.rows, case.base.rows) and subject.op.has_reduction:
        return said + (
            f"a reduction over a lone row over its {threads} threads and adds their partial sums, another order than "
            "one thread takes"
        )
    return (
        said + f"the work over its {threads} threads, and for another number of rows the parts end elsewhere"
    )


_SENTENCES: Final = {
    "rows": "the same row gets other bits in a call of {a.rows} than in a call of {b.rows} rows",
    "position": "rolling {a.rows} rows by {a.shift} changes the bits of a row: its position counts",
    "neighbours": "a row's bits change when the other rows hold {a.others}",
    "memory": "a row's bits change when {which} {verb} {layout} in memory",
    "repetition": "the same call gives other bits {when}",
    "compiled": "eager and {a.mode} give a row other bits",
    "graph": "a CUDA graph and an eager call give a row other bits",
    "inplace": "in place a row gets other bits than with functional semantics",
}


def sentence(case: Case) -> str:
    """What a case shows, as a clause."""
    call, base = case.call, case.base
    when = "after calls with other shapes and dtypes" if call.before == "interleaved" else "the second time"
    which = call.which or ("the weight" if call.layout == "odd_weight" else "the activations")
    layout = {"odd_weight": "off 16 bytes", "offset": "off 16 bytes"}.get(
        call.layout, call.layout.replace("_", " ")
    )
    template = _SENTENCES.get(case.probe, "two calls differ")
    verb = "lie" if which == "the activations" else "lies"
    said = template.format(a=call, b=base or call, when=when, which=which, layout=layout, verb=verb)
    return f"{said} ({call.setting})"


def note(call: Call) -> str:
    return str(call)
