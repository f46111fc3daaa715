# SPDX-License-Identifier: Apache-2.0
"""What each vLLM version does. Version questions are answered here and nowhere else."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

OLDEST: Final = (0, 20)
"""The first release with vLLM IR; before it there is no seam that the adapter knows."""
TESTED: Final = ("0.20.0", "0.26.0", "0.32.0", "0.33.0")
"""Versions that the test sessions run against."""


@dataclass(frozen=True)
class Host:
    """The vLLM of this environment.

    Args:
        version: as its metadata says; "" when it is absent.
        verdict: "absent", "too old", "tested", "untested" (between or beyond the tested ones).
        line: one sentence for the user where there is something to say, else "".
    """

    version: str
    verdict: Literal["absent", "too old", "tested", "untested"]
    line: str

    @property
    def supported(self) -> bool:
        """Whether the adapter does anything in it."""
        return self.verdict in ("tested", "untested")


def parse(text: str) -> tuple[int, int]:
    """(major, minor) of a version; development builds ("0.33.0rc1.dev3+g12") count as their release.

    Raises:
        ValueError: it does not begin with two numbers.
    """
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


def host() -> Host:
    """What vLLM is here, from package metadata alone: nothing of vLLM is imported."""
    try:
        text = version("vllm")
        parsed = parse(text)
    except PackageNotFoundError:
        return Host("", "absent", "vLLM is not installed: ir-vllm-adapter has nothing to do.")
    except ValueError:
        return Host(text, "untested", f"vLLM {text!r} is no version that can be compared; treated as new.")
    if parsed < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        line = f"vLLM {text} is older than {oldest}: ir-vllm-adapter needs {oldest} and does nothing."
        return Host(text, "too old", line)
    if any(parse(tested) == parsed for tested in TESTED):
        return Host(text, "tested", "")
    line = f"ir-vllm-adapter is tested with vLLM {', '.join(TESTED)}; this is {text}."
    return Host(text, "untested", line)


# -- what differs between versions, each asked of the vLLM that is here ------------------------------------


def ir_present() -> bool:
    """Whether vLLM's IR can be imported. Imports it."""
    try:
        import vllm.ir.op
        import vllm.ir.ops  # noqa: F401
    except ImportError:
        return False
    return True


def ir_op_names() -> tuple[str, ...]:
    """Ops that the imported vLLM IR really has; () without an IR."""
    module = sys.modules.get("vllm.ir.op")
    return () if module is None else tuple(module.IrOp.registry)


def fused_rounding() -> str:
    """What the layers' own fused add rounds where ir-core's op does not (before 0.26), or "".

    vLLM 0.26 moved the fused add into its IR, with the rounding points that ir-core's op has.
    """
    if "fused_add_rms_norm" in ir_op_names() or not ir_op_names():
        return ""
    return (
        "RMSNorm with a residual rounds to the activation's dtype before it multiplies by the weight, and "
        "GemmaRMSNorm rounds the bfloat16 sum before it normalises"
    )


def set_default_order(theirs: Any, names: list[str]) -> Callable[[], object]:
    """Give an op of vLLM's IR an order for when no list is set; returns the way back.

    ``set_default`` came in 0.26. Before, only a scope can set an order, so one is entered and stays open.
    """
    if hasattr(theirs, "set_default"):
        before = theirs.get_priority()
        theirs.set_default(names)
        made = theirs.get_priority()
        return lambda: theirs.set_default(before) if theirs.get_priority() == made else None
    scope = contextlib.ExitStack()
    scope.enter_context(theirs.set_priority(names))
    return scope.close


BATCH_INVARIANT: Final = (
    "vllm.model_executor.determinism.batch_invariant",
    "vllm.model_executor.layers.batch_invariant",
)
"""Where vLLM keeps its batch-invariant functions: from 0.32 on, and before."""


def batch_invariant_module() -> Any:
    """vLLM's module of batch-invariant functions, imported; ``None`` where it has none that we know."""
    for name in BATCH_INVARIANT:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    return None


def reductions_overridden() -> bool:
    """Whether vLLM has replaced ATen's reductions by its batch-invariant ones in this process.

    It does so in ``init_batch_invariance``, after the worker's device is set up.
    """
    modules = (sys.modules.get(name) for name in BATCH_INVARIANT)
    return any(getattr(module, "_batch_invariant_MODE", False) for module in modules)


def inductor_batch_invariant() -> bool:
    """Whether Inductor's own batch-invariant switch is on (torch 2.13 has it; vLLM sets it from 0.33 on)."""
    import torch._inductor.config as config

    return bool(getattr(config, "batch_invariant", False))


def attention_without_causality() -> bool:
    """Whether the unified Triton attention kernel also lets a query see every key: 0.20's does not."""
    with contextlib.suppress(PackageNotFoundError, ValueError):
        return parse(version("vllm")) > (0, 20)
    return True
