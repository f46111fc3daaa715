# SPDX-License-Identifier: Apache-2.0
"""The rows that calls are made of, and how a call's arguments are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ir_core.errors import CertificateError
from ir_core.verification import variants
from ir_core.verification.layouts import LAYOUTS, Free, contiguous, offset

if TYPE_CHECKING:
    from ir_core.meaning import Meaning
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


def generate(op: Meaning, rows: int, hidden: int, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """The op's generated arguments, complete, the same for the same seed on every machine of a kind (on the CPU)."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        args = op.generate_inputs(num_tokens=rows, hidden_size=hidden, dtype=dtype)
    return op.apply_arg_defaults(args)


def make_pool(
    op: Meaning,
    setting: Setting,
    seed: int,
    device: torch.device,
    scaled: bool = True,
    values: str = "",
    statics: str = "",
) -> tuple[Any, ...]:
    """Complete arguments whose activations hold the pool's rows.

    Args:
        op, setting, seed, device: what for.
        scaled: whether some rows are of another scale; else they are as generated, for which tolerances are meant.
        values: what the rows hold, a key of :data:`VALUES`.
        statics: which other arguments have other values (:class:`Call`).

    Raises:
        CertificateError: the activations do not carry the generated number of rows.
    """
    rows = pool_rows(setting.hidden)
    args = list(variants.apply(op, setting, generate(op, rows, setting.hidden, setting.torch_dtype, seed)))
    if statics:
        _, _, number = statics.partition("#")
        other = generate(op, 2, setting.hidden, setting.torch_dtype, seed + 7919 * int(number or 1))
        args = variants.redraw(op, statics, setting, args, other)
    if values not in VALUES:
        raise CertificateError(f"There are no values '{values}'.", why=f"There are {', '.join(VALUES)}.")
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
            if values:
                arg = VALUES[values](arg, seed + position)
            elif scaled and arg.dtype.is_floating_point and arg.element_size() > 1:
                scale = torch.tensor(_SCALES, dtype=torch.float32)[torch.arange(rows) % len(_SCALES)]
                arg = (arg.float() * scale.view(-1, *[1] * (arg.dim() - 1))).to(arg.dtype)
        args[position] = arg.to(device)
    if values == "cancelling":
        _cancel_activations(op, args)
    return tuple(args)


def _cancelling(t: Tensor, seed: int) -> Tensor:
    """Each element stands beside its negative, in an order of chance: a row's exact sum is zero.

    Rows differ in scale, so that another order of the additions leaves another remainder.
    """
    if not t.dtype.is_floating_point:
        return t
    generator = torch.Generator().manual_seed(seed)
    n, half = t.shape[-1], t.shape[-1] // 2
    made = t.clone()
    made[..., half : 2 * half] = -made[..., :half]
    if n % 2:
        made[..., -1] = 0.0
    return made[..., torch.randperm(n, generator=generator)]


def _cancel_activations(op: Meaning, args: list[Any]) -> None:
    """In every other row a further activation is the first one's negative: their sum is exactly zero."""
    first, *others = op.activation_indices
    for position in others:
        mine, theirs = args[position], args[first]
        if isinstance(mine, Tensor) and mine.shape == theirs.shape and mine.dtype.is_floating_point:
            mine[::2] = -theirs[::2].to(mine.dtype)


def _spread(t: Tensor, seed: int) -> Tensor:
    """Exponents over a wide range: the order of additions shows in every row."""
    if not t.dtype.is_floating_point or t.element_size() == 1:
        return t
    generator = torch.Generator().manual_seed(seed)
    reach = 6.0 if t.dtype == torch.float16 else 20.0
    powers = (torch.rand(t.shape, generator=generator) * 2 * reach - reach).round()
    return (t.float() * torch.exp2(powers)).to(t.dtype)


def _integers(t: Tensor, seed: int) -> Tensor:
    """Small integers: sums are exact, roundings of the result are ties."""
    return (t.float() * 2).round().to(t.dtype) if t.dtype.is_floating_point else t


def _edges(t: Tensor, seed: int) -> Tensor:
    """Single elements at the edge of the format: huge, subnormal, -0, Inf, NaN; one kind in a row."""
    if not t.dtype.is_floating_point or t.element_size() == 1:
        return t
    limits = torch.finfo(t.dtype)
    kinds = (
        limits.max / 2,
        limits.smallest_normal * limits.eps,
        -0.0,
        math.inf,
        math.nan,
        limits.tiny,
        -math.inf,
    )
    generator = torch.Generator().manual_seed(seed)
    made = t.clone().reshape(t.shape[0], -1)
    columns = torch.randint(made.shape[1], (made.shape[0],), generator=generator)
    for row in range(1, made.shape[0], 2):  # every other row is usual
        made[row, columns[row]] = kinds[row // 2 % len(kinds)]
    return made.reshape(t.shape)


VALUES: Final[dict[str, Callable[[Tensor, int], Tensor]]] = {
    "": lambda t, seed: t,
    "cancelling": _cancelling,
    "spread": _spread,
    "integers": _integers,
    "edges": _edges,
}
"""What the rows of a pool hold, by name; empty: what the op's generator makes, of several scales."""


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


def arguments(op: Meaning, call: Call, pool: Sequence[Any]) -> list[Any]:
    """Fresh arguments of a call; nothing in them shares memory with the pool."""
    free = Free.parse(call.layout) if call.layout.startswith("free:") else None
    layout = contiguous if free is not None else LAYOUTS.get(call.layout)
    if layout is None and call.layout != "odd_weight":
        raise CertificateError(f"There is no layout '{call.layout}'.", why=f"There are {', '.join(LAYOUTS)}.")
    args: list[Any] = []
    laid: list[int] = []
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
            if call.which in ("", name):
                laid.append(position)
        else:
            args.append((offset if call.layout == "odd_weight" else contiguous)(arg))
            if free is not None and free.statics and not call.which:
                laid.append(position)
    if free is not None:
        made = free.apply([args[i] for i in laid], [i in op.activation_indices for i in laid])
        for position, arg in zip(laid, made, strict=True):
            args[position] = arg
    return args
