# SPDX-License-Identifier: Apache-2.0
"""Planted violations of batch invariance, each a bug that was shipped or could be, and honest neighbours.

They are implementations of some scratch ops in plain torch; what a Triton kernel does with masks, tiles and tuners
is imitated. :func:`register` makes the ops and :func:`unregister` takes them away; importing does nothing. The
verification must refute every mutant, by the probe that names its cause, and certify what is honest
(``docs/mutants.md`` is the table).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.op import IrOp

NORM: Final = "scratch_norm"
ADD_NORM: Final = "scratch_add_norm"
SCALED: Final = "scratch_scaled"
SOFTMAX: Final = "scratch_softmax"
LAYER_NORM: Final = "scratch_layer_norm"
OPS: Final = (NORM, ADD_NORM, SCALED, SOFTMAX, LAYER_NORM)
SETUP: Final = "mutants:register"
"""What a fresh process runs to have the mutants (``verify(setup=[SETUP])``)."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Args:
        name: its provider.
        fn: the implementation.
        bug: one sentence: what is wrong.
        probes: the probes that may name it; empty for an honest implementation.
        seen: where such a bug was met; empty when it is made up.
        op: the scratch op it implements.
        predicate: its ``supports_args``.
        inplace: whether it may write into its activations.
        functional: its form into memory of its own.
        order: the order that it declares.
        drawn: whether no planned case meets it, so that random ones have to.
    """

    name: str
    fn: Callable[..., Any]
    bug: str
    probes: tuple[str, ...] = ()
    seen: str = ""
    op: str = NORM
    predicate: Callable[..., Any] | None = None
    inplace: bool = False
    functional: Callable[..., Any] | None = None
    order: str = ""
    drawn: bool = False

    @property
    def honest(self) -> bool:
        return not self.probes


def all_mutants() -> list[Mutant]:
    """Every mutant and every honest implementation."""
    from mutants import arguments, drawn, history, honest, layout, modes, numbers, orders, rows

    kinds = (rows, layout, history, arguments, modes, orders, numbers, drawn, honest)
    return [mutant for kind in kinds for mutant in kind.MUTANTS]


def register() -> dict[str, IrOpImpl]:
    """Make the scratch ops and register everything; ``"op/provider"`` -> implementation. Again is no error."""
    from ir_core.op import IrOp

    if NORM not in IrOp.registry:
        _make_ops()
        for mutant in all_mutants():
            IrOp.registry[mutant.op].register_impl(
                mutant.name,
                supports_args=mutant.predicate,
                inplace=mutant.inplace,
                functional=mutant.functional,
                batch_invariant=True,
                order=mutant.order or None,
            )(mutant.fn)
    ops = (IrOp.registry[name] for name in OPS)
    builtin = ("native", "portable")
    return {f"{op.name}/{name}": impl for op in ops for name, impl in op.impls.items() if name not in builtin}


def unregister() -> None:
    """Take the scratch ops away."""
    from ir_core.op import IrOp

    for name in OPS:
        if name in IrOp.registry:
            IrOp.registry[name].unregister()


def _make_ops() -> None:
    from ir_core.op import register_op
    from ir_core.ops.canonical import TREE
    from ir_core.tolerances import bound, unit_roundoff

    norm: IrOp = register_op(_scratch_norm, name=NORM, has_reduction=True, orders=[TREE])
    add: IrOp = register_op(_scratch_add_norm, name=ADD_NORM, has_reduction=True, allow_inplace=True)
    scaled: IrOp = register_op(_scratch_scaled, name=SCALED, has_reduction=True)
    softmax: IrOp = register_op(_scratch_softmax, name=SOFTMAX, has_reduction=True)
    layer_norm: IrOp = register_op(_scratch_layer_norm, name=LAYER_NORM, has_reduction=True)
    norm._register_builtin("portable", batch_invariant=True)(_scratch_norm_portable)
    for op, generator in (
        (norm, _norm_inputs),
        (add, _add_inputs),
        (scaled, _scaled_inputs),
        (softmax, _softmax_inputs),
        (layer_norm, _norm_inputs),
    ):
        op.register_input_generator(generator)
    for op in (norm, add, scaled, layer_norm):
        op.register_values(epsilon=(1e-6, 1e-5, 1e-3))
    scaled.register_values(form=("plain", "half"))
    for op in (norm, add, scaled):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            # Three roundings of the result and the statistics in float32, as for rms_norm.
            op.override_tolerance(dtype, **bound(dtype, 3 * unit_roundoff(dtype) + 2.0**-16))


def _norm_inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.randn(num_tokens, hidden_size, dtype=dtype), torch.randn(hidden_size, dtype=dtype), 1e-5


def _add_inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
    x, weight, epsilon = _norm_inputs(num_tokens, hidden_size, dtype)
    return x, torch.randn(num_tokens, hidden_size, dtype=dtype), weight, epsilon


def _scaled_inputs(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, form: str = "half"
) -> tuple[Any, ...]:
    return *_norm_inputs(num_tokens, hidden_size, dtype), form


def _softmax_inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
    return (torch.randn(num_tokens, hidden_size, dtype=dtype) * 4,)


def _scratch_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    rstd = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x32 * rstd * weight.to(torch.float32)).to(x.dtype)


def _scratch_add_norm(x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    x32 = x.to(torch.float32) + x_residual.to(torch.float32)
    rstd = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x32 * rstd * weight.to(torch.float32)).to(x.dtype), x32.to(x.dtype)


def _scratch_norm_portable(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    from ir_core.ops.canonical import canonical_rstd

    x32 = x.to(torch.float32)
    return (x32 * canonical_rstd(x32, x.shape[-1], epsilon) * weight.to(torch.float32)).to(x.dtype)


def _scratch_scaled(x: Tensor, weight: Tensor, epsilon: float, form: str = "plain") -> Tensor:
    made = _scratch_norm(x.to(torch.float32), weight, epsilon)
    return (made if form == "plain" else made * 0.5).to(x.dtype)


def _scratch_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.to(torch.float32), -1).to(x.dtype)


def _scratch_layer_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    made = torch.nn.functional.layer_norm(
        x.to(torch.float32), x.shape[-1:], weight.to(torch.float32), None, epsilon
    )
    return made.to(x.dtype)


# -- what the implementations are made of ------------------------------------------------------------------


def blocked_sum(x: Tensor, block: int) -> Tensor:
    """Sum the last dimension in blocks of ``block`` elements (a power of two): a tree in each, then one by one.

    Element-wise additions only, so the order depends on ``block`` and the number of columns and nothing else.
    """
    n = x.shape[-1]
    blocks = -(-n // block)
    if blocks * block != n:
        x = torch.nn.functional.pad(x, (0, blocks * block - n))
    x = x.reshape(*x.shape[:-1], blocks, block)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    total = x[..., 0, :]
    for number in range(1, blocks):
        total = total + x[..., number, :]
    return total


def finish(x32: Tensor, total: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """The normalised rows, of float32 rows and the sums of their squares."""
    rstd = 1.0 / torch.sqrt(total / x32.shape[-1] + epsilon)
    return (x32 * rstd * weight.to(torch.float32)).to(dtype)


def norm(x: Tensor, weight: Tensor, epsilon: float, block: int = 64) -> Tensor:
    """An honest norm: the same bits for a row whatever stands beside it."""
    x32 = x.to(torch.float32)
    block <<= max(x.shape[-1] // 4096, 1).bit_length() - 1  # no thousand blocks
    return finish(x32, blocked_sum(x32 * x32, block), weight, epsilon, x.dtype)


def rows_of(x: Tensor) -> int:
    """Rows of the batch."""
    return x.numel() // x.shape[-1]


def mixed(x: Tensor, weight: Tensor, epsilon: float, other: Tensor, block: int = 16) -> Tensor:
    """The rows marked in ``other`` (a boolean a row) are summed in another order than the rest."""
    usual, unusual = norm(x, weight, epsilon), norm(x, weight, epsilon, block)
    return torch.where(other.reshape(*x.shape[:-1], 1), unusual, usual)
