# SPDX-License-Identifier: Apache-2.0
"""The shrinker: makes a counterexample small, and says what it means."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ir_core.verification import probes
from ir_core.verification.calls import Call, Case, Setting
from ir_core.verification.layouts import Free
from ir_core.verification.outcome import Failed

if TYPE_CHECKING:
    from ir_core.verification.subject import Difference, Subject

SECONDS: Final = 6.0
"""Time for making one counterexample smaller: a bisection over 2**17 rows takes 17 calls of up to 0.3 s."""


def narrow(subject: Subject, found: Difference, passed: Sequence[Setting]) -> tuple[Case, str, Difference]:
    """A smaller case that still differs, where the change begins, and its difference.

    Only for numbers of rows: bisection between a number that agrees and one that does not. Found by experiment, so
    true of the two numbers named; between several changes it finds one. ``passed`` are settings in which nothing was
    found.
    """
    case = found.case
    if case.probe != "rows" or case.base is None:
        return case, "", found
    until = time.monotonic() + SECONDS
    case, found = _rows(subject, case, found, until)
    assert case.base is not None
    fewer, more = sorted((case.call.rows, case.base.rows))
    change = f"changes at {more} rows" if more - fewer == 1 else f"changes between {fewer} and {more} rows"
    if fewer == 1 and more == 2:
        change += ": a lone row has other bits than the same row in a batch"
    if (columns := _columns(subject, passed, case, until)) is not None:
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


def _columns(
    subject: Subject, settings: Sequence[Setting], case: Case, until: float
) -> tuple[Case, Difference] | None:
    """The fewest columns at which two numbers of rows differ, between this setting and the widest one that passed."""
    assert case.base is not None
    dtype, hidden = case.call.dtype, case.call.hidden
    passed = [
        s.hidden
        for s in settings
        if s.dtype == dtype and s.variant == case.call.variant and s.hidden < hidden
    ]
    if not passed:
        return None
    low, high, best = max(passed), hidden, None
    while high - low > 1 and time.monotonic() < until:
        middle = (low + high) // 2
        if (there := _any_start(subject, case, middle)) is not None:
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
    "modes": "a row's bits change in the mode {a.mode}",
    "graph": "a CUDA graph and an eager call give a row other bits",
    "inplace": "in place a row gets other bits than with functional semantics",
}


def sentence(case: Case) -> str:
    """What a case shows, as a clause."""
    call, base = case.call, case.base
    when = "after calls with other shapes and dtypes" if call.before == "interleaved" else "the second time"
    which = call.which or ("the weight" if call.layout == "odd_weight" else "the activations")
    if call.layout.startswith("free:"):
        which, layout = "the arguments", f"otherwise ({call.layout.removeprefix('free:')})"
    else:
        layout = ""
    layout = layout or {"odd_weight": "off 16 bytes", "offset": "off 16 bytes"}.get(
        call.layout, call.layout.replace("_", " ")
    )
    template = _SENTENCES.get(case.probe, "two calls differ")
    verb = "lie" if which in ("the activations", "the arguments") else "lies"
    said = template.format(a=call, b=base or call, when=when, which=which, layout=layout, verb=verb)
    return f"{said} ({call.setting})"


# -- random cases --------------------------------------------------------------------------------------------

_PLAIN: Final = (
    ("mode", "eager"), ("before", ""), ("others", ""), ("layout", "contiguous"), ("shift", 0),
)  # fmt: skip
"""What a call can do without, each of which one probe asks about."""
_SAME: Final = (("threads", 1), ("values", ""), ("statics", ""), ("variant", ""), ("start", 0))
"""What both calls can do without."""
_CAUSES: Final = (
    ("before", "repetition"), ("others", "neighbours"), ("layout", "memory"), ("mode", "modes"),
    ("shift", "position"), ("rows", "rows"),
)  # fmt: skip
"""Which probe a field belongs to in which two calls differ, the most specific first."""


def settle(subject: Subject, found: Difference) -> Difference:
    """Take away from a random pair of calls what is not needed, and name the probe of what is left."""
    until = time.monotonic() + SECONDS
    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        for case in _simpler(found.case):
            if time.monotonic() < until and (again := _still(subject, case)) is not None:
                found, smaller = again, True
                break
    case = found.case
    assert case.base is not None
    differing = [
        (name, probe) for name, probe in _CAUSES if getattr(case.call, name) != getattr(case.base, name)
    ]
    for name, probe in differing:
        if name == "rows":
            continue
        # Of several things in which the calls differ, the first that makes a difference by itself.
        base = case.call.but(**{name: getattr(case.base, name)})
        if len(differing) > 1 and (again := _still(subject, Case(probe, case.call, base))) is not None:
            return again
    probe = differing[-1][1] if differing else case.probe
    if probe == "modes" and case.call.mode.startswith(("op", "traced", "inductor")):
        probe = "compiled"
    return _still(subject, Case(probe, case.call, case.base)) or found


def _simpler(case: Case) -> Iterator[Case]:
    """The case with one thing less."""
    call, base = case.call, case.base
    assert base is not None
    for name, plain in _PLAIN:
        if getattr(call, name) not in (plain, getattr(base, name)):
            yield Case(case.probe, call.but(**{name: getattr(base, name)}), base)
    if call.layout.startswith("free:"):
        for free in Free.parse(call.layout).simpler():
            yield Case(case.probe, call.but(layout=str(free)), base)
    if call.rows != base.rows:
        yield Case(case.probe, call.but(rows=base.rows), base)
    for name, plain in _SAME:
        if getattr(call, name) != plain:
            yield Case(case.probe, call.but(**{name: plain}), base.but(**{name: plain}))
    if call.hidden > 32:
        for hidden in (call.hidden // 2, call.hidden - call.hidden % 16):
            if hidden < call.hidden:
                yield Case(case.probe, call.but(hidden=hidden), base.but(hidden=hidden))


def _still(subject: Subject, case: Case) -> Difference | None:
    """What differs in a case; nothing where it cannot be run."""
    try:
        if subject.refusal_of(subject.arguments(case.call)) is not None:
            return None
        return subject.compare(case)
    except Exception:
        return None


def smaller_call(subject: Subject, case: Case, failed: Failed) -> tuple[Case, Failed]:
    """A smaller random case about one call, with what it says."""
    until = time.monotonic() + SECONDS
    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        for call in _simpler_call(case):
            if time.monotonic() > until:
                break
            try:
                outcome = probes.PROBES[case.probe].run(subject, Case(case.probe, call))
            except Exception:  # this smaller call cannot be made
                continue
            if isinstance(outcome, Failed):
                case, failed, smaller = Case(case.probe, call), outcome, True
                break
    return case, failed


def _simpler_call(case: Case) -> Iterator[Call]:
    call = case.call
    for name, plain in (*_PLAIN, *_SAME):
        if getattr(call, name) != plain and (name, case.probe) != ("statics", "arguments"):
            yield call.but(**{name: plain})
    if call.layout.startswith("free:"):
        for free in Free.parse(call.layout).simpler():
            yield call.but(layout=str(free))
    for name in ("rows", "hidden"):
        if (number := getattr(call, name)) > 1:
            yield call.but(**{name: number // 2})
            yield call.but(**{name: number - 1})
