# SPDX-License-Identifier: Apache-2.0
"""The probes, as one table: what each checks, what it costs, what a finding means, and what to do about one.

The order is that of attribution, from the most specific to the least: each probe holds fixed what the ones before it
vary, so the first that refutes names the cause. A kernel that treats odd rows differently is also seen by ``rows``,
and ``position`` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ir_core.verification import arguments, one_call, orders, selecting
from ir_core.verification.outcome import PASSED, Failed, Outcome

if TYPE_CHECKING:
    from ir_core.verification.calls import Call, Case
    from ir_core.verification.subject import Subject


@dataclass(frozen=True)
class Probe:
    """One question to an implementation.

    Args:
        name: what findings and cases call it.
        checks: what is checked, in a sentence.
        means: what a finding means.
        todo: what to do about one.
        run: asks the question about a case.
        calls: cost: how many calls of the case's size it makes.
        seconds: cost besides the calls.
        pair: whether it compares two calls on the rows that both hold; else it asks about one call.
    """

    name: str
    checks: str
    means: str
    todo: str
    run: Callable[[Subject, Case], Outcome]
    calls: float = 1.0
    seconds: float = 0.0
    pair: bool = False


def _compared(subject: Subject, case: Case) -> Outcome:
    found = subject.compare(case)
    return PASSED if found is None else Failed(str(found), found)


def _one(ask: Callable[[Subject, Call], Outcome]) -> Callable[[Subject, Case], Outcome]:
    return lambda subject, case: ask(subject, case.call)


def _runs(subject: Subject, case: Case) -> Outcome:
    subject.run(case.call)
    return PASSED


_TABLE: Final = (
    Probe(
        "selection",
        "The implementation that is chosen is the same for every number of rows and layout, and asked again.",
        "Its predicate (or that of another candidate) decides by rows or memory: adding a row changes what runs.",
        "A predicate decides from dtypes, ranks and the last dimension, nothing else.",
        _one(selecting.selection),
        calls=2.0,
    ),
    Probe(
        "inputs",
        "Inputs come back unmodified; an in-place implementation may change its activations.",
        "It writes into memory that the caller still owns.",
        "An implementation owns its inputs only when it is registered with inplace=True.",
        _one(one_call.inputs),
        calls=2.0,
    ),
    Probe(
        "aliasing",
        "Outputs share memory with no input, no other output, and nothing that an earlier call returned.",
        "A result changes when its input does, or at the next call.",
        "Allocate the outputs in each call; a kernel's static buffer is the next call's too.",
        _one(one_call.aliasing),
        calls=2.0,
    ),
    Probe(
        "repetition",
        "The same call gives the same bits again, ten times, and after calls with other shapes and dtypes.",
        "It depends on chance (atomics), on a counter, or on a cache whose key lacks something.",
        "Look for atomic additions, autotuning while serving, and workspaces that are not cleared.",
        _compared,
        pair=True,
    ),
    Probe(
        "arguments",
        "Another weight, epsilon or option between two calls is heeded, and the first call then gives its bits again.",
        "Something derived from an argument is kept under a key that lacks its value: another layer gets it.",
        "Derive it in each call, or let the key hold the tensor's identity, version and memory.",
        _one(arguments.arguments),
        calls=12.0,
    ),
    Probe(
        "threads",
        "Four threads that call at once get the bits that each gets alone.",
        "Calls share a buffer, a cache or a launcher's state.",
        "Look for module-level buffers and caches that a call writes.",
        _one(one_call.threads),
        calls=28.0,
    ),
    Probe(
        "neighbours",
        "A row's bits stay when the other rows hold something else: zero, huge, subnormal, Inf, NaN, copies.",
        "Rows share a scale, a statistic or a masked lane.",
        "Mask loads with zeros instead of multiplying, and compute every scale of one row alone.",
        _compared,
        pair=True,
    ),
    Probe(
        "position",
        "A row's bits stay when the batch is rolled.",
        "Where a row stands in a tile, a program or a vector decides how it is summed.",
        "Give the rows of the last tile, and those of every program, the same path.",
        _compared,
        pair=True,
    ),
    Probe(
        "memory",
        "A row's bits stay when strides, addresses, ranks or storages differ.",
        "Alignment or contiguity chooses another vector width, layout or kernel.",
        "Fix the order of every reduction by the number of columns alone; copy what does not fit.",
        _compared,
        pair=True,
    ),
    Probe(
        "rows",
        "A row's bits stay when there are more or fewer rows.",
        "The number of rows chooses a tile, a split or a kernel: the classic violation of batch invariance.",
        "Fix the order of every reduction by the number of columns alone.",
        _compared,
        pair=True,
    ),
    Probe(
        "inplace",
        "In place a row gets the bits that it gets with functional semantics.",
        "Results are written before everything was read, or there are two kernels.",
        "Read whole rows before writing, and use one kernel for both.",
        _compared,
        pair=True,
    ),
    Probe(
        "pair",
        "Two calls in one launch have the bits of two calls, in either order, and memory of their own.",
        "The launch for two calls reduces in another order, or mixes them up.",
        "Let both launches share the code of one row.",
        _one(one_call.pair),
        calls=8.0,
    ),
    Probe(
        "modes",
        "torch's inference mode, recorded gradients, autocast and deterministic algorithms change no bit.",
        "It looks at a mode, or calls a function of torch that does.",
        "Compute in explicit dtypes with operations that autocast leaves alone; do not ask which mode is on.",
        _compared,
        pair=True,
    ),
    Probe(
        "compiled",
        "Eager and compiled calls give the same bits, with static and dynamic rows.",
        "The compiler fuses, reorders or retypes what it can look into.",
        "Register it with opaque=True, or find what the compiler does differently.",
        _compared,
        pair=True,
    ),
    Probe(
        "graph",
        "A CUDA graph and an eager call give the same bits.",
        "A launch depends on something that a capture freezes.",
        "Choose launches by shapes and dtypes, not by what a tensor holds.",
        _compared,
        pair=True,
    ),
    Probe(
        "history",
        "A fresh process that makes its calls in another order gets the same bits.",
        "It keeps what its first call chose or saw.",
        "Choose configurations by the static arguments of each call, and keep them under all of these.",
        _compared,
        pair=True,
    ),
    Probe(
        "order",
        "An implementation that declares an order has the bits of the order's reference, in every element.",
        "It computes another arithmetic than it says; where it agrees with itself, it is invariant all the same.",
        "Follow the order's page step by step: grouping of sums, roundings, exact root and division.",
        _one(orders.order),
        calls=2.0,
    ),
    Probe(
        "runs",
        "A call with arguments that it accepts does not raise.",
        "Its predicate promises what its code does not keep.",
        "Refuse in the predicate, with a reason.",
        _runs,
    ),
    Probe(
        "numerics",
        "Results are within the op's tolerance of a float64 reference.",
        "It computes something else, or the bound does not fit the op; the finding says which is likelier.",
        "The bound is the op's tolerance (op.get_tolerance) around a float64 result.",
        _one(one_call.numerics),
        calls=2.0,
    ),
    Probe(
        "fake",
        "Shape, dtype, strides and device are those that the fake implementation says.",
        "A compiled graph is planned for another result than it gets.",
        "The fake implementation is the op's native one: return its shapes, dtypes and strides.",
        _one(one_call.fake),
        calls=2.0,
    ),
    Probe(
        "opcheck",
        "torch.library.opcheck accepts the torch op of the implementation.",
        "Its schema, fake or gradient registration does not fit what it does.",
        "torch.library.opcheck's own explanation is in PyTorch's custom operators manual.",
        _one(one_call.opcheck),
        calls=2.0,
        seconds=2.0,
    ),
)

PROBES: Final[dict[str, Probe]] = {probe.name: probe for probe in _TABLE}
"""The probes by name, in the order of attribution."""
ATTRIBUTION: Final = tuple(PROBES)
COMPILING: Final = {
    "op_compiled": 1.0,
    "op_dynamic": 1.0,
    "traced": 1.5,
    "traced_dynamic": 1.5,
    "inductor": 15.0,
}
"""Seconds that a mode takes before its first call."""


def expected(subject: Subject, case: Case, *, first: bool = True) -> float:
    """Expected seconds of a case; ``first``: its mode was not compiled yet."""
    probe = PROBES[case.probe]
    one = subject.cost(case.call)
    seconds = probe.calls * one + probe.seconds + (COMPILING.get(case.call.mode, 0.0) if first else 0.0)
    if case.call.before == "interleaved":
        seconds += 4 * one
    elif case.call.before == "again":
        seconds += (subject.repeats(case.call) - 1) * one
    return seconds
