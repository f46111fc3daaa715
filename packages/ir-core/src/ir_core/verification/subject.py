# SPDX-License-Identifier: Apache-2.0
"""One implementation on one device: run calls of it, compare them, know what they cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from ir_core import catalog, facts, torch_library
from ir_core.errors import ArgumentError, CertificateError
from ir_core.verification import bits, modes, pool
from ir_core.verification.calls import Call, Case, Setting

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.target import Target

KEPT_POOLS: Final = 4
KEPT_ELEMENTS: Final = 1 << 24
"""Results kept for comparison, in elements."""

REPEATS: Final = 10
"""Repetitions of a cheap call: chance, and counters with a small period, show."""


@dataclass(frozen=True)
class Difference:
    """Where two calls differ.

    Args:
        case: the two calls.
        differing, compared: elements of the rows that both calls have.
        rows: how many of those rows differ.
        row, base_row: position of the first such row in the call and in the base.
        output, column: the first differing element.
        got, expected: that element in the call and in the base.
    """

    case: Case
    differing: int
    compared: int
    rows: int
    row: int
    base_row: int
    output: int
    column: int
    got: str
    expected: str

    def __str__(self) -> str:
        where = f"output {self.output}, row {self.row}, column {self.column}"
        return (
            f"{where}: {self.got}, in the other call {self.expected}; "
            f"{self.differing} of {self.compared} elements in {self.rows} row{'s' if self.rows != 1 else ''} differ"
        )


class Subject:
    """An implementation under verification.

    Args:
        impl: the implementation.
        target: its device.
        seed: of all inputs.
    """

    def __init__(self, impl: IrOpImpl, target: Target, seed: int = 0) -> None:
        self.impl, self.op, self.target, self.seed = impl, impl.op, target, seed
        self.device = torch.device(target.device)
        self.threads = torch.get_num_threads()
        self._pools: OrderedDict[tuple[Any, ...], tuple[Any, ...]] = OrderedDict()
        self._results: OrderedDict[Call, list[Tensor]] = OrderedDict()
        self._runners: dict[str, Callable[[list[Any]], Any]] = {}
        self._costs: dict[tuple[int, int], float] = {}
        self._kept = 0
        self.calls = 0

    # -- inputs --------------------------------------------------------------------------------------------

    def call(self, setting: Setting, **fields: Any) -> Call:
        """A call in a setting, with this subject's seed."""
        return Call(**{"seed": self.seed, **vars(setting), **fields})

    def pool(self, call: Call, scaled: bool = True) -> tuple[Any, ...]:
        """The pool that a call's rows come from; the last few are kept."""
        key = (call.setting, call.seed, call.values, call.statics, scaled)
        if key not in self._pools:
            self._pools[key] = pool.make_pool(
                self.op, call.setting, call.seed, self.device, scaled, call.values, call.statics
            )
            while len(self._pools) > KEPT_POOLS:
                self._pools.popitem(last=False)
        self._pools.move_to_end(key)
        return self._pools[key]

    def generated(self, call: Call) -> list[Any]:
        """Arguments of a call with rows as the op's generator makes them, for which its tolerances are meant."""
        return pool.arguments(self.op, call, self.pool(call.but(values=""), scaled=False))

    def pool_rows(self, setting: Setting) -> int:
        return pool.pool_rows(setting.hidden)

    def arguments(self, call: Call) -> list[Any]:
        """Fresh arguments of a call."""
        return pool.arguments(self.op, call, self.pool(call))

    def refusal(self, setting: Setting) -> str | None:
        """Why the implementation does not take this setting, or ``None``."""
        return self.refusal_of(self.arguments(self.call(setting, rows=2)))

    def refusal_of(self, args: list[Any]) -> str | None:
        """Why the op or the implementation does not take these arguments, or ``None``."""
        if self.op.check_fn is not None:
            try:
                facts.check(self.op.check_fn, self.op.params, self.op.activations, args, [])
            except ArgumentError as error:
                return f"no call of the op: {error.what}"
        return self.impl.refusal(args, [])

    @property
    def native(self) -> IrOpImpl:
        """What the op means."""
        return catalog.known(self.op)["native"]

    @property
    def overload(self) -> Any:
        """The torch op that a lowered graph calls."""
        return torch_library.of(self.op).provider(self.impl.provider)

    @property
    def interpreted(self) -> bool:
        """Whether it can run here only because Triton interprets its kernels."""
        feature = "triton_interpreter"
        if feature not in self.target.features or self.impl.requires is None:
            return False
        compiled = dataclasses.replace(self.target, features=self.target.features - {feature})
        return not self.impl.requires.check(compiled)

    # -- calls ---------------------------------------------------------------------------------------------

    def outputs(self, results: Any, rows: int) -> list[Tensor]:
        """The outputs as matrices with one row a row of the batch.

        Raises:
            CertificateError: an output does not carry the rows.
        """
        tensors = results if isinstance(results, tuple | list) else (results,)
        found: list[Tensor] = []
        for number, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.numel() % rows:
                raise CertificateError(f"Output {number} of {self.impl.label} does not carry {rows} rows.")
            found.append(tensor.detach().reshape(rows, -1))
        return found

    def run(self, call: Call) -> list[Tensor]:
        """Run a call on fresh arguments; its outputs as matrices."""
        self._prelude(call)
        args = self.arguments(call)
        run = self._runners.get(call.mode)
        if run is None:
            run = self._runners[call.mode] = modes.runner(self.impl, call.mode)
        with threads(call.threads or self.threads):
            start = time.perf_counter()
            results = run(args)
            found = self.outputs(results, call.rows)
            self._synchronize()
            spent = time.perf_counter() - start
        self.calls += 1
        if call.mode == "eager":
            size = (call.rows, call.elements)
            self._costs[size] = min(spent, self._costs.get(size, spent))
        return found

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _prelude(self, call: Call) -> None:
        """What ran before: the same call, or other shapes, dtypes and contents."""
        plain = call.but(before="", mode="eager", threads=0)
        if call.before == "interleaved":
            others = [name for name in ("bfloat16", "float32") if name != call.dtype]
            for dtype in others:
                for hidden in (call.hidden, 2 * call.hidden + 1, max(call.hidden // 2 + 3, 4), call.hidden):
                    setting = Setting(dtype, hidden)
                    with contextlib.suppress(Exception):  # what this other call cannot do is not the question
                        if self.refusal(setting) is None:
                            self.run(Call(dtype, hidden, rows=5, others="huge", seed=call.seed))
            self.run(plain.but(rows=3, others="huge"))

    def result(self, call: Call) -> list[Tensor]:
        """:meth:`run`, remembered."""
        if call.before or call.mode != "eager":
            return self.run(call)
        if call not in self._results:
            made = self._results[call] = self.run(call)
            self._kept += sum(out.numel() for out in made)
            while self._kept > KEPT_ELEMENTS and len(self._results) > 1:
                _, dropped = self._results.popitem(last=False)
                self._kept -= sum(out.numel() for out in dropped)
        return self._results[call]

    # -- comparisons ---------------------------------------------------------------------------------------

    def compare(self, case: Case) -> Difference | None:
        """Run a case; ``None`` when the rows that both calls have agree in every bit."""
        call, base = case.call, case.base
        if base is None:
            raise CertificateError(f"The case {case.key()} has no other call to compare with.")
        theirs = self.result(base)
        places = shared_rows(_Rows.of(call), _Rows.of(base), self.pool_rows(call.setting))
        for _ in range(self.repeats(call) if call.before == "again" else 1):
            found = difference(case, self.run(call), theirs, *places)
            if found is not None:
                return found
        return None

    def repeats(self, call: Call) -> int:
        """How often a call is repeated to see whether it repeats itself."""
        return REPEATS if self.cost(call) < 0.02 else 2

    # -- cost ----------------------------------------------------------------------------------------------

    def cost(self, call: Call) -> float:
        """Expected seconds of a call: the cheapest of what was measured, scaled up to its size."""
        return min(
            (s * max(1.0, call.rows / r, call.elements / e) for (r, e), s in self._costs.items()),
            default=0.1,
        )


class _Rows(NamedTuple):
    """What decides which row of the pool stands where."""

    rows: int
    start: int
    shift: int
    others: bool
    expanded: bool

    @classmethod
    def of(cls, call: Call) -> _Rows:
        return cls(call.rows, call.start, call.shift, bool(call.others), call.layout == "expanded")


@functools.lru_cache(maxsize=256)
def _tracked(which: _Rows, size: int) -> Tensor:
    """The row of the pool at each position, -1 where the position holds something else."""
    rows = Call("", 1, rows=which.rows, start=which.start, shift=which.shift).indices(size)
    if which.others:
        rows[1::2] = -1
    if which.expanded:
        rows[:] = rows[0].clone()
    if which.rows > size and not which.shift:
        rows[size:] = -1  # the same rows at other positions: what the position probe asks about
    return rows


@functools.lru_cache(maxsize=256)
def shared_rows(call: _Rows, base: _Rows, size: int) -> tuple[Tensor, Tensor]:
    """Positions of the rows that both calls hold, in the call and in the base."""
    mine, theirs = _tracked(call, size), _tracked(base, size)
    place = torch.full((size,), -1)
    positions = torch.arange(len(theirs)).flip(0)  # of several positions of a row the first
    kept = theirs[positions] >= 0
    place[theirs[positions[kept]]] = positions[kept]
    here = torch.nonzero(mine >= 0).flatten()
    there = place[mine[here]]
    keep = there >= 0
    return here[keep], there[keep]


def difference(
    case: Case, mine: list[Tensor], theirs: list[Tensor], here: Tensor, there: Tensor
) -> Difference | None:
    """The first difference between rows ``here`` of ``mine`` and rows ``there`` of ``theirs``."""
    if len(mine) != len(theirs) or any(
        a.dtype != b.dtype or a[0].shape != b[0].shape for a, b in zip(mine, theirs, strict=True)
    ):
        raise CertificateError("Two calls with the same static arguments gave outputs of other kinds.")
    first: tuple[int, int, int] | None = None
    differing = compared = 0
    rows: set[int] = set()
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        unequal = bits.as_bits(a[here.to(a.device)]) != bits.as_bits(b[there.to(b.device)])
        compared += unequal.numel()
        count = int(unequal.sum())
        differing += count
        if count:
            rows.update(torch.nonzero(unequal.any(-1)).flatten().tolist())
            if first is None:
                row, column = torch.nonzero(unequal)[0].tolist()
                first = (number, row, column)
    if first is None:
        return None
    number, row, column = first
    position, base_position = int(here[row]), int(there[row])
    return Difference(
        case=case,
        differing=differing,
        compared=compared,
        rows=len(rows),
        row=position,
        base_row=base_position,
        output=number,
        column=column,
        got=bits.show(mine[number], position, column),
        expected=bits.show(theirs[number], base_position, column),
    )


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Run with so many threads of torch on the CPU; 0 leaves them."""
    before = torch.get_num_threads()
    if not number or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
