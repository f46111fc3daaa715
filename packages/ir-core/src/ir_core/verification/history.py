# SPDX-License-Identifier: Apache-2.0
"""The history probe: a fresh process that makes its calls in another order gets the same bits.

A kernel that tunes itself on its first call, or keeps a configuration under a key that lacks something, is
consistent within a process and different between two. So a second process runs some of the calls, dtypes in
reverse order and first with other numbers of rows, and tells the digests of the rows.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ir_core.verification import bits
from ir_core.verification.calls import Call, Setting

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.verification.subject import Subject

ROWS: Final = 48
IMPL_SECONDS: Final = 4.0
"""Time that the other process gives one implementation."""


def calls_for(settings: Sequence[Setting], seed: int = 0) -> list[tuple[Call, Call]]:
    """(first call, compared call) in the order of the fresh process. The number of rows of the first call, and what
    its other arguments hold, are not those that this process began with."""
    wanted = [s for s in settings if not s.variant and s.hidden <= 4096]
    narrow = min((s.hidden for s in wanted), default=0)
    return [
        (
            Call(**vars(s), rows=300 if s.hidden == narrow else 1, statics="#1", seed=seed),
            Call(**vars(s), rows=ROWS, seed=seed),
        )
        for s in reversed(wanted)
    ]


class Child:
    """The other process; it works while this one goes on.

    Args:
        impls: what it verifies.
        device: where.
        setup: ``module`` or ``module:function``, imported (and called) there first.
        seed: of the inputs.
    """

    def __init__(self, impls: Sequence[IrOpImpl], device: str, setup: Sequence[str], seed: int) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        request = {
            "impls": [[impl.op.name, impl.provider] for impl in impls],
            "modules": sorted({m for impl in impls if (m := _home(impl))}),
            "setup": list(setup),
            "device": device,
            "seed": seed,
            "path": sys.path,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ir_core.verification.history"],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "IR_STRICT": "0"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode())
        self._process.stdin.close()

    def results(self, seconds: float) -> dict[str, Any]:
        """Wait so long at most; ``"op/provider"`` -> call key -> digests, or an error text."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.seek(0)
        found: dict[str, Any] = {}
        for line in self._out.read().decode(errors="replace").splitlines():
            try:
                found.update(json.loads(line))
            except ValueError:  # something printed, or the last line of a process that was stopped
                continue
        return found

    def close(self) -> None:
        """Stop it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._out.close()


def _home(impl: IrOpImpl) -> str:
    """The module whose import registers an implementation, as far as that can be guessed."""
    module = "" if impl.point is not None else getattr(impl.impl_fn, "__module__", "")
    return "" if module == "__main__" else module


def compare(subject: Subject, told: dict[str, Any]) -> tuple[Call, str] | None:
    """The first call whose rows the fresh process computed otherwise, and a sentence about it."""
    for key, (began, there) in told.items():
        dtype, _, hidden = key.partition("|")
        call = Call(dtype, int(hidden), rows=ROWS, seed=subject.seed)
        here = bits.row_digests(subject.result(call))
        wrong = [row for row, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
        if wrong:
            return call, (
                f"a fresh process whose first call has {began} row{'s' if began != 1 else ''} gives row {wrong[0]} "
                f"of {len(there)} other bits than this process ({len(wrong)} rows differ)"
            )
    return None


def key_of(call: Call) -> str:
    return f"{call.dtype}|{call.hidden}"


def prepare(setup: Sequence[str], modules: Sequence[str] = ()) -> None:
    """Import what registers implementations: ``module`` or ``module:function``, which is called.

    Raises:
        ImportError, AttributeError: a module or function of ``setup`` does not exist.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # a guess
            continue
    for path in setup:
        name, _, function = path.partition(":")
        found = importlib.import_module(name)
        if function:
            getattr(found, function)()


def _main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]  # what the other process can import, this one can
    import torch

    from ir_core import platforms
    from ir_core.op import get_op
    from ir_core.verification import plan
    from ir_core.verification.subject import Subject

    prepare(request["setup"], request["modules"])
    target = platforms.target_of(torch.device(request["device"]))
    for op_name, provider in request["impls"]:
        label = f"{op_name}/{provider}"
        told: dict[str, Any] = {}
        try:
            impl = get_op(op_name).impls[provider]
            subject = Subject(impl, target, request["seed"])
            small, middle = plan.hidden_sizes(subject, (plan.SMALL,)), plan.hidden_sizes(subject, plan.MIDDLE)
            dtypes = plan.dtypes(subject)
            settings = [Setting(d, h) for d in dtypes for h in small] + [
                Setting(dtypes[0], h) for h in middle
            ]
            until = time.monotonic() + IMPL_SECONDS
            for first, call in calls_for(settings, request["seed"]):
                if (told and time.monotonic() > until) or subject.cost(call) > IMPL_SECONDS:
                    continue
                if subject.refusal(call.setting) is None:
                    if subject.cost(first) < IMPL_SECONDS:
                        with contextlib.suppress(Exception):  # the op may not take these other arguments
                            subject.run(first)
                    told[key_of(call)] = (first.rows, bits.row_digests(subject.run(call)))
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps({label: told}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
