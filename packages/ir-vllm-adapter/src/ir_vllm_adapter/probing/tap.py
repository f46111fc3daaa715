# SPDX-License-Identifier: Apache-2.0
"""A tap on every part of a model in vLLM's engine: the same row in must give the same row out, whatever its company.

Modules are judged by contents. The first time that a module is given a row, its answer is remembered; whenever it is
given these bits again, in another batch, at another place, in another chunk, the answer must have the same bits. For
attention, a row is its query and all keys and values of its sequence so far (``histories.py``).

Differences do not propagate: a row that differs is replaced by the remembered one, so every module is judged by itself.
A row that reaches a module with bits that no earlier run gave it, although all modules before agreed, was changed by an
operation between modules.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ir_vllm_adapter import kinds
from ir_vllm_adapter.probing import rows
from ir_vllm_adapter.probing.histories import Histories, Ints
from ir_vllm_adapter.probing.operations import Operations

KEPT: Final = 2 << 30
"""Bytes of answers that are kept at most. Beyond them a difference is found, and neither counted nor replaced."""
BETWEEN: Final = "glue"


@dataclass(frozen=True)
class Difference:
    """A row whose answer changed.

    Args:
        module: the module's path in the model; ``sampler`` for log-probabilities.
        kind, runs: what it runs (``kinds.Found``); kind ``glue`` for what lies before the module.
        case: which run of the engine it was seen in, and ``first`` in which the row's answer was remembered.
        position: the row's position in its sequence; -1 where that is not known.
        rows: rows of the call; ``first_rows`` of the call whose answer was remembered.
        elements: how many of the row's elements differ, of how many; 0, 0 where the remembered row was not kept.
        largest: the largest difference as a number.
        order: where in the forward pass the module is called.
        operation: which operation or kernel in it, where operations were watched.
    """

    module: str
    kind: str
    runs: str
    case: str
    first: str
    position: int
    rows: int
    first_rows: int
    elements: tuple[int, int] = (0, 0)
    largest: float = 0.0
    order: int = 0
    operation: str = ""


@dataclass
class _Answer:
    digest: int
    case: str
    rows: int
    outputs: tuple[Tensor, ...]  # of the whole call; empty where they were not kept
    index: int


@dataclass
class _Call:
    keys: Ints
    total: int
    order: int


@dataclass
class Tally:
    """What was compared of one part.

    Args:
        calls: how often it was called.
        compared: rows that came again, in a call with another number of rows or not.
        elsewhere: those among them whose call had another number of rows.
        differences: every row that differed, in the order in which it was seen.
        untold: why rows could not be judged.
    """

    calls: int = 0
    compared: int = 0
    elsewhere: int = 0
    differences: list[Difference] = field(default_factory=list)
    untold: Counter[str] = field(default_factory=Counter)


class Tap:
    """Hooks on a loaded model, active inside :meth:`running`.

    Args:
        model, runner: of vLLM's worker.
        operations: watches operations too, to say which of them is at fault.

    Attributes:
        tallies: by (kind, runs).
        case: the name of the run that is going on; set by the caller.
        reference: whether rows are expected to be new.
    """

    def __init__(self, model: Any, runner: Any, operations: Operations | None = None) -> None:
        self.operations = operations
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.case = ""
        self.reference = True
        self._active = False
        self._seen: dict[str, dict[int, _Answer]] = {}
        self._given: dict[str, set[int]] = {}
        self._kept = 0
        self._calls: list[_Call] = []
        self._known: np.ndarray[Any, np.dtype[np.bool_]] = np.zeros(0, dtype=np.bool_)
        self._order = 0
        self._positions: Ints = np.zeros(0, dtype=np.int64)
        self._before = "the model's input"
        self._histories = Histories(runner)
        self._ways_back: list[Callable[[], Any]] = [self._histories.close]
        hook = model.register_forward_pre_hook(self._pass_begins, with_kwargs=True)
        self._ways_back.append(hook.remove)
        for name, module in model.named_modules():
            found = kinds.of(module)
            if type(module).__name__ == "LogitsProcessor":
                found = kinds.head(model)
                name = f"{name} (lm_head)"
            if found is not None:
                self._watch(name, module, found)
        self._watch_sampler()

    # -- hooks ---------------------------------------------------------------------------------------------

    def _watch(self, name: str, module: Any, found: kinds.Found) -> None:
        self.tallies.setdefault((found.kind, found.runs), Tally())

        def before(module: Any, args: Any, kwargs: Any) -> None:
            if self._active:
                with _disable_current_modes():  # what the tap computes is no operation of the model
                    self._calls.append(self._asked(name, module, found, list(rows.tensors((args, kwargs)))))
                self._section(name, self._calls[-1].total)

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if self._active:
                with _disable_current_modes():
                    self._answered(name, found, self._calls.pop(), list(rows.tensors(output)))
                self._section(name, self._calls[-1].total if self._calls else len(self._known), ends=True)

        self._ways_back.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._ways_back.append(module.register_forward_hook(after, with_kwargs=True).remove)

    def _watch_sampler(self) -> None:
        """Log-probabilities: a function of vLLM's, in every module that has imported it, or a static method."""
        found = kinds.Found("sampler", "log-probabilities")
        self.tallies["sampler", found.runs] = Tally()

        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any, **kwargs: Any) -> Any:
                if not self._active:
                    return original(*args, **kwargs)
                given = list(rows.tensors((args, kwargs)))
                total = rows.count(given)
                self._order += 1
                with _disable_current_modes():
                    call = _Call(rows.keys(given, total), total, self._order)
                self._section("sampler", total)
                result = original(*args, **kwargs)
                with _disable_current_modes():
                    self._answered("sampler", found, call, list(rows.tensors(result)))
                self._section("sampler", total, ends=True)
                return result

            return watched

        name = "compute_token_logprobs"
        homes = [
            m for m in list(sys.modules.values()) if m is not None and name in getattr(m, "__dict__", {})
        ]
        for module in homes:
            original = vars(module)[name]
            setattr(module, name, around(original))
            self._ways_back.append(functools.partial(setattr, module, name, original))
        first = getattr(sys.modules.get("vllm.v1.sample.sampler"), "Sampler", None)
        if first is not None and "compute_logprobs" in vars(first):
            static = vars(first)["compute_logprobs"]
            first.compute_logprobs = staticmethod(around(static.__func__))
            self._ways_back.append(lambda: setattr(first, "compute_logprobs", static))

    def _pass_begins(self, module: Any, args: Any, kwargs: Any) -> None:
        self._calls.clear()
        self._order = 0
        self._before = "the model's input"
        given = list(rows.tensors((args, kwargs)))
        self._known = np.ones(rows.count(given[:1]), dtype=np.bool_)
        positions = kwargs.get("positions", given[1] if len(given) > 1 else None)
        if isinstance(positions, Tensor):
            self._positions = (
                positions.detach().reshape(-1, positions.shape[-1])[0].cpu().numpy().astype(np.int64)
            )

        if self._active and self.operations is not None:
            self.operations.begin()
            self.operations.total = len(self._known)

    def _section(self, name: str, total: int, *, ends: bool = False) -> None:
        if self.operations is not None:
            self.operations.total = total
            if ends:
                self.operations.leave(name)
            else:
                self.operations.enter(name)

    def _culprit(self) -> str:
        return "" if self.operations is None else self.operations.culprit()

    # -- judgement -----------------------------------------------------------------------------------------

    def _asked(self, name: str, module: Any, found: kinds.Found, given: list[Tensor]) -> _Call:
        total = rows.count(given)
        keys = rows.keys(given, total)
        self._order += 1
        self._expect(name, keys, total)
        if found.kind == "attention":
            tally = self.tallies[found.kind, found.runs]
            layer = str(getattr(module, "layer_name", name))
            shares = getattr(module, "kv_sharing_target_layer_name", None)
            window = getattr(module, "sliding_window", None)
            keys, untold = self._histories.keys(layer, given, shares=shares, window=window)
            if untold:
                tally.untold[untold] += 1
        return _Call(keys, total, self._order)

    def _expect(self, name: str, keys: Ints, total: int) -> None:
        """Rows that no run gave this module before, after all modules before it agreed: changed between modules."""
        known = self._given.setdefault(name, set())
        if not self.reference and total == len(self._known):
            fresh = np.array([key not in known for key in keys.tolist()], dtype=np.bool_)
            changed = np.flatnonzero(fresh & self._known)
            if changed.size:
                at = int(changed[0])
                where = f"{name}, after {self._before}"
                self.tallies.setdefault((BETWEEN, ""), Tally()).differences.append(
                    Difference(
                        where,
                        BETWEEN,
                        "",
                        self.case,
                        "",
                        self._position(at, total),
                        total,
                        0,
                        order=self._order,
                        operation=self._culprit(),
                    )
                )
            self._known &= ~fresh
        known.update(keys.tolist())

    def _position(self, row: int, total: int) -> int:
        return int(self._positions[row]) if total == len(self._positions) else -1

    def _answered(self, name: str, found: kinds.Found, call: _Call, outputs: list[Tensor]) -> None:
        tally = self.tallies[found.kind, found.runs]
        self._before = name
        tally.calls += 1
        count = len(call.keys)
        outputs = rows.rowed(outputs, call.total)
        if not outputs or not count:
            return
        answers = np.zeros(count, dtype=np.int64)
        for output in outputs:
            answers = rows.mix(answers, rows.digests(output[:count]))
        table = self._seen.setdefault(name, {})
        kept: tuple[Tensor, ...] | None = None
        for index, (key, digest) in enumerate(zip(call.keys.tolist(), answers.tolist(), strict=True)):
            there = table.get(key)
            if there is None:
                if kept is None:
                    kept = self._keep(outputs)
                table[key] = _Answer(digest, self.case, call.total, kept, index)
                continue
            tally.compared += 1
            tally.elsewhere += there.rows != call.total
            if there.digest != digest:
                tally.differences.append(self._difference(name, found, call, index, there, outputs))

    def _keep(self, outputs: list[Tensor]) -> tuple[Tensor, ...]:
        size = sum(output.numel() * output.element_size() for output in outputs)
        if self._kept + size > KEPT:
            return ()
        self._kept += size
        return tuple(output.detach().clone() for output in outputs)

    def _difference(
        self, name: str, found: kinds.Found, call: _Call, index: int, there: _Answer, outputs: list[Tensor]
    ) -> Difference:
        from ir_core.verification.bits import as_bits

        differing = total = 0
        largest = 0.0
        for output, kept in zip(outputs, there.outputs, strict=False):
            now, then = output[index], kept[there.index]
            total += now.numel()
            differing += int((as_bits(now) != as_bits(then)).sum())
            if now.is_floating_point():
                apart = (now.double() - then.double()).abs().nan_to_num(0.0, 0.0, 0.0)
                largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
            now.copy_(then)
        position = -1 if name == "sampler" else self._position(index, call.total)
        return Difference(
            name, found.kind, found.runs, self.case, there.case, position, call.total, there.rows,
            (differing, total), largest, call.order, self._culprit(),
        )  # fmt: skip

    # -- life ----------------------------------------------------------------------------------------------

    def run(self, case: str, action: Callable[[], Any], *, reference: bool = False) -> Any:
        """Judge what ``action`` makes the engine do, under the name ``case``."""
        self.case, self.reference, self._active = case, reference, True
        watching = contextlib.nullcontext() if self.operations is None else self.operations.running()
        if self.operations is not None:
            self.operations.reference = reference
        try:
            with torch.no_grad(), watching:
                return action()
        finally:
            self._active = False

    def close(self) -> None:
        """Take every hook off."""
        while self._ways_back:
            self._ways_back.pop()()
