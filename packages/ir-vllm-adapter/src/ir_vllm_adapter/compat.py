# SPDX-License-Identifier: Apache-2.0
"""What each vLLM version does. Version questions are answered here and nowhere else."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

OLDEST: Final = (0, 20)
"""The first release with vLLM IR; before it there is no seam that the adapter knows."""
TESTED: Final = ("0.20.0", "0.26.0", "0.32.0", "0.33.0")
"""Versions that the test sessions run against."""
IR_GONE: Final = (0, 34)
"""vLLM 0.33 announces that its IR is removed in this release: the layer seam alone remains."""


@dataclass(frozen=True)
class Behaviour:
    """What a range of vLLM versions does.

    Args:
        since: the first version of the range.
        ir_ops: ops of vLLM's IR.
        priority: when vLLM installs the IR priorities: at each forward pass, once at worker start, or never (no IR).
        fused_rounding: what the layer's own fused add does where it differs from ir-core's op, or "".
        inductor_switch: whether vLLM sets Inductor's batch-invariant switch in batch-invariant mode.
    """

    since: tuple[int, int]
    ir_ops: tuple[str, ...]
    priority: Literal["forward pass", "worker start", "never"]
    fused_rounding: str = ""
    inductor_switch: bool = False


_TWO: Final = ("rms_norm", "fused_add_rms_norm")
_THREE: Final = (*_TWO, "gelu_and_mul_sparse")

TABLE: Final = (
    Behaviour(
        (0, 20),
        ("rms_norm",),
        "forward pass",
        fused_rounding="RMSNorm with a residual rounds to the activation's dtype before it multiplies by the weight, "
        "and GemmaRMSNorm rounds the bfloat16 sum before it normalises",
    ),
    Behaviour((0, 26), _TWO, "worker start"),
    Behaviour((0, 32), _THREE, "worker start"),
    Behaviour((0, 33), _THREE, "worker start", inductor_switch=True),
    Behaviour(IR_GONE, (), "never", inductor_switch=True),
)


@dataclass(frozen=True)
class Host:
    """The vLLM of this environment.

    Args:
        version: as its metadata says; "" when it is absent.
        verdict: "absent", "too old", "tested", "untested" (between or beyond the tested ones).
        line: one sentence for the user where there is something to say, else "".
        behaviour: the row of the table, None when the adapter does nothing.
    """

    version: str
    verdict: Literal["absent", "too old", "tested", "untested"]
    line: str
    behaviour: Behaviour | None


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
        return Host("", "absent", "vLLM is not installed: ir-vllm-adapter has nothing to do.", None)
    except ValueError:
        newest = TABLE[-2]
        return Host(
            text, "untested", f"vLLM {text!r} is no version that can be compared; treated as new.", newest
        )
    if parsed < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Host(
            text,
            "too old",
            f"vLLM {text} is older than {oldest}: ir-vllm-adapter needs {oldest} and does nothing.",
            None,
        )
    behaviour = [row for row in TABLE if row.since <= parsed][-1]
    if any(parse(tested) == parsed for tested in TESTED):
        return Host(text, "tested", "", behaviour)
    tested = ", ".join(TESTED)
    return Host(text, "untested", f"ir-vllm-adapter is tested with vLLM {tested}; this is {text}.", behaviour)


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


def reductions_overridden() -> bool:
    """Whether vLLM has replaced ATen's reductions by its batch-invariant ones in this process.

    It does so in ``init_batch_invariance``, after the worker's device is set up. The module moved in 0.32.
    """
    for name in (
        "vllm.model_executor.determinism.batch_invariant",
        "vllm.model_executor.layers.batch_invariant",
    ):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "_batch_invariant_MODE", False):
            return True
    return False


def inductor_batch_invariant() -> bool:
    """Whether Inductor's own batch-invariant switch is on (torch 2.13 has it; vLLM sets it from 0.33 on)."""
    import torch._inductor.config as config

    return bool(getattr(config, "batch_invariant", False))
