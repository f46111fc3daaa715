# SPDX-License-Identifier: Apache-2.0
"""The rows that calls are made of, and how a call's arguments are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ir_core.errors import CertificateError
from ir_core.verification import variants
from ir_core.verification.layouts import LAYOUTS, contiguous, offset

if TYPE_CHECKING:
    from ir_core.op import IrOp
    from ir_core.verification.calls import Call, Setting

POOL_ROWS: Final = 300
POOL_ELEMENTS: Final = 1 << 22
"""A pool has 300 rows, fewer where that would be more than 16 MB of float32: 64 rows of 65536 columns."""

# Scale of the rows of a pool, in turn. Most are as generated. A rounding difference in a term like an epsilon of
# 1e-5 or 1e-6 shows only in rows whose mean square is of that size.
_SCALES: Final = (1.0, 1.0, 2.0**-8, 1.0, 1.0, 2.0**-10, 1.0, 37.0)


def pool_rows(hidden: int) -> int:
    """Rows of a pool: a function of the number of columns alone."""
    return max(8, min(POOL_ROWS, POOL_ELEMENTS // hidden))


def generate(op: IrOp, rows: int, hidden: int, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """The op's generated arguments, complete, the same for the same seed on every machine of a kind (on the CPU)."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        args = op.generate_inputs(num_tokens=rows, hidden_size=hidden, dtype=dtype)
    return op.apply_arg_defaults(args)


def make_pool(
    op: IrOp, setting: Setting, seed: int, device: torch.device, scaled: bool = True
) -> tuple[Any, ...]:
    """Complete arguments whose activations hold the pool's rows; not ``scaled``, they are as generated.

    Raises:
        CertificateError: the activations do not carry the generated number of rows.
    """
    rows = pool_rows(setting.hidden)
    args = list(variants.apply(op, setting, generate(op, rows, setting.hidden, setting.torch_dtype, seed)))
    for position, arg in enumerate(args):
        if not isinstance(arg, Tensor):
            continue
        if position in op.activation_indices:
            if arg.dim() < 2 or arg.shape[0] != rows:
                raise CertificateError(
                    f"The input generator of op '{op.name}' made {op.params[position]} of shape {tuple(arg.shape)} "
                    f"for {rows} rows.",
                    fix="An activation's first dimension is the row.",
                )
            if scaled and arg.dtype.is_floating_point and arg.element_size() > 1:
                scale = torch.tensor(_SCALES, dtype=torch.float32)[torch.arange(rows) % len(_SCALES)]
                arg = (arg.float() * scale.view(-1, *[1] * (arg.dim() - 1))).to(arg.dtype)
        args[position] = arg.to(device)
    return tuple(args)


def _content(kind: str, rows: Tensor, pool: Tensor) -> Tensor:
    """What stands in the rows that are not looked at."""
    if kind == "copies":
        return pool[:1].expand_as(rows)
    if kind == "random":
        return rows.flip(0).roll(1, -1)
    if not rows.dtype.is_floating_point:
        return torch.full_like(rows, {"zero": 0, "huge": 100, "tiny": 1}.get(kind, 3))
    limits = torch.finfo(rows.dtype)
    value = {
        "zero": 0.0,
        "minus zero": -0.0,
        "huge": limits.max / 2,
        "tiny": limits.tiny,
        "subnormal": limits.smallest_normal * limits.eps,
        "Inf": math.inf,
        "NaN": math.nan,
    }[kind]
    return torch.full_like(rows, value)


OTHERS: Final = ("random", "zero", "copies", "huge", "tiny", "subnormal", "minus zero", "Inf", "NaN")
"""Contents of the rows that are not looked at."""


def arguments(op: IrOp, call: Call, pool: Sequence[Any]) -> list[Any]:
    """Fresh arguments of a call; nothing in them shares memory with the pool."""
    args: list[Any] = []
    layout = LAYOUTS.get(call.layout)
    if layout is None and call.layout != "odd_weight":
        raise CertificateError(f"There is no layout '{call.layout}'.", why=f"There are {', '.join(LAYOUTS)}.")
    for position, arg in enumerate(pool):
        name = op.params[position]
        if not isinstance(arg, Tensor):
            args.append(arg)
        elif position in op.activation_indices:
            rows = arg[call.indices(arg.shape[0]).to(arg.device)]
            if call.others:
                rows[1::2] = _content(call.others, rows[1::2], arg)
            chosen = layout if layout is not None and call.which in ("", name) else contiguous
            args.append(chosen(rows))
        else:
            args.append((offset if call.layout == "odd_weight" else contiguous)(arg))
    return args
