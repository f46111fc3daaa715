# SPDX-License-Identifier: Apache-2.0
"""The planned cases, in the order in which they run; what each of them asks is in the table of probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ir_core.verification import arguments, orders, plan, selecting
from ir_core.verification.calls import Call, Case, Setting
from ir_core.verification.layouts import LAYOUTS
from ir_core.verification.modes import AMBIENT
from ir_core.verification.pool import OTHERS, VALUES

if TYPE_CHECKING:
    from ir_core.verification.prober import Prober
    from ir_core.verification.schedule import Steps

COMPARED: Final = 48
"""Rows compared for each number of rows. A reordered float32 sum of squares changes rstd in one row of eight: 48 rows
miss it once in 600 times, and several numbers of rows and settings are tried."""


def everything(p: Prober, *, compiling: bool = True) -> Steps:
    """All planned cases of one implementation; without ``compiling`` those that need no compiler."""
    dtypes = plan.dtypes(p.subject)
    small = plan.hidden_sizes(p.subject, (plan.SMALL,))[0]
    first = Setting(dtypes[0], small)
    if not p.accept(first):
        accepted = [Setting(d, small) for d in dtypes[1:] if p.accept(Setting(d, small))]
        if not accepted:
            if p.refuted:
                return
            p.recorder.skipped.append(f"no setting is accepted: {''.join(p.recorder.left_out[-1:])}")
            return
        first = accepted[0]
    yield from first_call(p, first)
    yield from selection(p, first)
    yield from other_arguments(p, first, ("#1", "#2"))
    yield from invariance(p, first, thorough=True)
    widths = plan.hidden_sizes(p.subject, plan.WIDE)
    if not p.slow and p.accept(
        Setting(first.dtype, widths[-1])
    ):  # few calls, and they decide about native on a CPU
        yield from wide_rows(p, Setting(first.dtype, widths[-1]), (1,))
    yield from contract_probes(p, first)
    yield from modes(p, first, AMBIENT)
    yield from two_calls(p, first)
    yield from declared_order(p, first)
    for dtype in dtypes:
        setting = Setting(dtype, small)
        if setting != first and p.accept(setting):
            yield from p.pairs("numerics", str(setting), [Case("numerics", p.call(setting, rows=33))])
            yield from invariance(p, setting, thorough=False)
            yield from other_arguments(p, setting, ("#1",))
            yield from modes(p, setting, ("inference", "autocast"))
            yield from declared_order(p, setting)
    if p.done:
        return
    setting = Setting(first.dtype, widths[-1])
    if setting in p.recorder.settings or p.accept(setting):
        yield from wide(p, setting)
    for hidden in plan.hidden_sizes(p.subject, plan.MIDDLE):
        setting = Setting(first.dtype, hidden)
        if p.accept(setting):
            yield from middle(p, setting)
    if p.done:
        return
    if compiling and not p.refuted:
        yield from compiled(p, first, dtypes)
    for setting in [Setting(d, small, v) for d in dtypes[:2] for v in plan.variant_names(p.subject, first)]:
        if p.accept(setting):
            yield from p.pairs("numerics", str(setting), [Case("numerics", p.call(setting, rows=33))])
            yield from neighbours(p, setting, (9,), ("NaN",))
            yield from memory(p, setting, (3,))
            yield from rows(p, setting, (1, 2, 33, 257), compared=12)
            yield from declared_order(p, setting)
    for setting in (Setting(first.dtype, widths[0]), Setting(dtypes[min(1, len(dtypes) - 1)], widths[-1])):
        if setting not in p.recorder.settings and p.accept(setting):
            yield from wide(p, setting)
    yield from tall(p, first)
    if compiling and not p.refuted:
        yield from last(p, first)


def middle(p: Prober, setting: Setting) -> Steps:
    """Usual numbers of columns: several blocks, a masked one."""
    yield from position(p, setting, (37,))
    yield from neighbours(p, setting, (9,), ("NaN", "huge"))
    yield from memory(p, setting, (1, 6))
    yield from rows(p, setting, plan.ROWS, compared=24, threads=plan.FEW_THREADS)
    yield from rows(p, setting, plan.THREADED_ROWS, compared=8)
    yield from declared_order(p, setting)


def first_call(p: Prober, setting: Setting) -> Steps:
    """The first call of the process, against the same call later and after others."""
    call = p.call(setting, rows=plan.FIRST_ROWS)
    yield from p.pairs(
        "repetition", "the first call again", [Case("repetition", call.but(before="again"), call)]
    )
    cases = [Case("repetition", call.but(before="interleaved"), call)]
    yield from p.pairs("repetition", "between other shapes and dtypes", cases)
    few = p.call(setting, rows=5)
    for name in ("inputs", "aliasing"):
        layouts = ("contiguous", "odd_slice", "row_strided")
        yield from p.pairs(name, "", [Case(name, few.but(layout=layout)) for layout in layouts])


def contract_probes(p: Prober, setting: Setting) -> Steps:
    """What any implementation owes: right numbers, what its fake implementation says, the same in four threads."""
    call = p.call(setting, rows=5)
    cases = [Case("numerics", call.but(rows=33)), Case("numerics", call.but(rows=6, layout="transposed"))]
    yield from p.pairs("numerics", str(setting), cases)
    # Not transposed: the strides of results are then the contract kit's affair, and say nothing about bits.
    layouts = ("contiguous", "odd_slice", "row_strided", "batched")
    cases = [Case("fake", call.but(rows=6, layout=layout)) for layout in layouts]
    yield from p.pairs("fake", "", cases)
    yield from p.pairs("threads", "", [Case("threads", call.but(rows=9))])


def other_arguments(p: Prober, setting: Setting, draws: tuple[str, ...]) -> Steps:
    """Other values of the arguments that are no activation, between two calls: each alone, and all of them."""
    call = p.call(setting, rows=17)
    names = plan.static_names(p.subject, setting)
    calls = [call.but(statics=f"{name}{draw}") for draw in draws for name in (*names, "")] if names else []
    calls = [c for c in calls if p.takes(c) and arguments.possible(p.subject, c)]
    yield from p.pairs("arguments", str(setting), [Case("arguments", c) for c in calls])


def modes(p: Prober, setting: Setting, names: tuple[str, ...]) -> Steps:
    """torch's modes around a call."""
    call = p.call(setting, rows=17)
    yield from p.pairs("modes", str(setting), [Case("modes", call.but(mode=name), call) for name in names])


def declared_order(p: Prober, setting: Setting) -> Steps:
    """An order that the implementation declares, with usual and adversarial values."""
    if orders.order_of(p.impl) and orders.reference_of(p.impl) is not None:
        call = p.call(setting, rows=8 if p.slow else min(64, p.subject.pool_rows(setting)))
        cases = [Case("order", call.but(values=values)) for values in VALUES]
        yield from p.pairs("order", str(setting), cases)


def two_calls(p: Prober, setting: Setting) -> Steps:
    """Two calls in one launch, where the implementation offers that: every dtype, and heads of an attention layer."""
    if p.impl.pair_fn is None:
        return
    layouts = ("contiguous", "odd_slice", "batched", "row_strided")
    call = p.call(setting, rows=5)
    yield from p.pairs("pair", "", [Case("pair", call.but(layout=layout)) for layout in layouts])
    head = plan.hidden_sizes(p.subject, (plan.HEAD,))[0]
    for dtype in plan.dtypes(p.subject):
        for narrow in dict.fromkeys((Setting(dtype, setting.hidden), Setting(dtype, head))):
            calls = [p.call(narrow, rows=number) for number in (1, 130)]
            if p.takes(calls[0]):
                yield from p.pairs("pair", str(narrow), [Case("pair", call) for call in calls])


def invariance(p: Prober, setting: Setting, thorough: bool) -> Steps:
    """Neighbours, position, memory, rows."""
    if not thorough:
        base = p.call(setting, rows=33)
        cases = [Case("repetition", base.but(before="interleaved"), base)]
        yield from p.pairs("repetition", str(setting), cases)
    thorough = thorough and not p.slow
    yield from neighbours(p, setting, (9, 40) if thorough else (9,), OTHERS)
    yield from position(p, setting, (37, 64, 200) if thorough else (37,))
    yield from memory(p, setting, (1, 2, 6, 40) if thorough else (1, 6))
    if p.impl.inplace:
        call = p.call(setting, rows=37)
        yield from p.pairs("inplace", str(setting), [Case("inplace", call, call.but(mode="functional"))])
    if thorough:
        yield from rows(p, setting, plan.ROWS)
    else:
        yield from rows(p, setting, plan.SOME_ROWS, compared=24)


def neighbours(p: Prober, setting: Setting, numbers: tuple[int, ...], contents: tuple[str, ...]) -> Steps:
    """What the other rows hold: same number of rows, same position, other neighbours."""
    for number in numbers:
        base = p.call(setting, rows=number)
        cases = [Case("neighbours", base.but(others=content), base) for content in contents]
        yield from p.pairs("neighbours", f"{setting}, {number} rows", cases)


def position(p: Prober, setting: Setting, numbers: tuple[int, ...]) -> Steps:
    """Where a row stands: the same rows, rolled."""
    for number in numbers:
        base = p.call(setting, rows=number)
        cases = [Case("position", base.but(shift=shift), base) for shift in plan.SHIFTS if shift < number]
        yield from p.pairs("position", f"{setting}, {number} rows", cases)


def memory(p: Prober, setting: Setting, numbers: tuple[int, ...]) -> Steps:
    """How the batch lies in memory: same rows, same positions, other strides and addresses."""
    activations = p.impl.op.activations
    for number in numbers:
        base = p.call(setting, rows=number)
        kinds = [(layout, "") for layout in LAYOUTS if layout != "contiguous"] + [("odd_weight", "")]
        if len(activations) > 1:
            kinds += [
                (layout, name) for layout in ("offset", "odd_slice", "row_strided") for name in activations
            ]
        calls = [base.but(layout=layout, which=which) for layout, which in kinds]
        calls = [call for call in calls if _taken(p, call)]
        yield from p.pairs(
            "memory", f"{setting}, {number} rows", [Case("memory", call, base) for call in calls]
        )


def _taken(p: Prober, call: Call) -> bool:
    """Whether the implementation takes a layout: it may refuse a rank or a stride of the last dimension."""
    if call.layout == "expanded" and p.impl.inplace:
        return False  # rows that share memory cannot be donated
    if call.layout not in ("batched", "transposed", "unit_stride", "column_strided"):
        return True
    return p.takes(call)


def base_rows(p: Prober, setting: Setting) -> int:
    """Rows of the call that others are compared with: as many as the pool has, fewer where a call is slow."""
    size = min(p.subject.pool_rows(setting), 300 if not p.slow or setting.hidden < 1024 else 64)
    while size > 8 and p.subject.cost(p.call(setting, rows=size)) > 3.0:
        size //= 2
    return size


def rows(
    p: Prober, setting: Setting, numbers: tuple[int, ...], *, compared: int = COMPARED, threads: int = 0
) -> Steps:
    """How many rows there are: each number against one batch; for few rows, several windows of the pool."""
    base = p.call(setting, rows=base_rows(p, setting), threads=threads if p.on_cpu else 0)
    if p.slow:
        compared = 4
        numbers = tuple(n for n in numbers if n in plan.SOME_ROWS and (n < 65 or setting.hidden < 1024))
    for number in numbers:
        if number == base.rows:
            continue
        windows = range(max(1, min(compared, base.rows) // number)) if number <= base.rows else (0,)
        starts = [(i * number) % base.rows for i in windows]
        cases = [Case("rows", base.but(rows=number, start=start), base) for start in starts]
        yield from p.pairs("rows", f"{setting}, {number} rows", cases, required=number <= 300)


def wide(p: Prober, setting: Setting) -> Steps:
    """Long rows: few of them, and many lone ones."""
    base = p.call(setting, rows=8)
    yield from p.pairs("repetition", str(setting), [Case("repetition", base.but(before="again"), base)])
    cases = [Case("position", base.but(shift=shift), base) for shift in (1, 3)]
    yield from p.pairs("position", str(setting), cases)
    cases = [Case("memory", base.but(layout=layout), base) for layout in ("offset", "odd_slice")]
    yield from p.pairs("memory", str(setting), cases, required=False)
    yield from wide_rows(p, setting, plan.FEW_ROWS)


def wide_rows(p: Prober, setting: Setting, numbers: tuple[int, ...]) -> Steps:
    """Long rows: each number against one batch."""
    size = 8 if p.slow else min(p.subject.pool_rows(setting), 64)
    base = p.call(setting, rows=size)
    for number in numbers:
        if number < size:
            starts = range(0, size, number) if number == 1 else range(0, min(size, 16), number)
            starts = starts[:2] if p.slow else starts
            cases = [Case("rows", base.but(rows=number, start=start), base) for start in starts]
            yield from p.pairs("rows", f"{setting}, {number} rows", cases, required=number < 8)


def tall(p: Prober, setting: Setting) -> Steps:
    """More rows than 2**15, of few columns where that saves much."""
    base = p.call(setting, rows=base_rows(p, setting))
    for number in plan.TALL:
        cases = [Case("rows", base.but(rows=number), base)]
        yield from p.pairs("rows", f"{setting}, {number} rows", cases, required=number > 32768)
    cases = [Case("position", base.but(rows=plan.TALL[1], shift=7), base.but(rows=plan.TALL[1]))]
    yield from p.pairs("position", f"{setting}, {plan.TALL[1]} rows", cases, required=False)


def selection(p: Prober, first: Setting) -> Steps:
    """Which implementation is chosen."""
    cases = [Case("selection", p.call(first, rows=2))]
    if (call := selecting.one_column(p.subject, first.dtype)) is not None:
        cases.append(Case("selection", call))
    yield from p.pairs("selection", "", cases)


def compiled(p: Prober, first: Setting, dtypes: tuple[str, ...]) -> Steps:
    """Eager against compiled: the op that a lowered graph calls, and what the compiler makes of the function."""
    call = p.call(first, rows=48)
    modes = ["op", "op_dynamic", "op_compiled"]
    if not p.impl.opaque:
        modes += ["traced", "traced_dynamic"]
    for mode in modes:
        calls = [call] if "dynamic" not in mode else [call.but(rows=5), call, call.but(rows=7, start=9)]
        if mode == "op":
            calls += [call.but(dtype=dtype, rows=9) for dtype in dtypes[1:]]
        cases = [Case("compiled", c.but(mode=mode), c) for c in calls]
        yield from p.pairs("compiled", mode, cases)
    if p.subject.device.type == "cuda":
        cases = [Case("graph", call.but(mode="graph", rows=n), call.but(rows=n)) for n in (1, 7, 48)]
        yield from p.pairs("graph", "", cases)


def last(p: Prober, first: Setting) -> Steps:
    """What takes seconds: torch's own check of the op, and Inductor."""
    call = p.call(first, rows=5)
    yield from p.pairs("opcheck", "", [Case("opcheck", call)])
    case = Case("compiled", call.but(mode="inductor", rows=48), call.but(rows=48))
    yield from p.pairs("compiled", "inductor", [case], required=False)
