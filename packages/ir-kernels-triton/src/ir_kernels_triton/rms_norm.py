# SPDX-License-Identifier: Apache-2.0
"""rms_norm and fused_add_rms_norm: from a call to a launch. Providers ``triton_batch_invariant`` and ``triton``.

Both are one kernel family. ``triton_batch_invariant`` sums in the canonical order and rounds exactly, so its bits are
``portable``'s; ``triton`` lets the compiler choose the order, contract and approximate. Rows are read in place while
two strides describe them (any contiguous, row-strided or sliced tensor, and q and k views of a qkv tensor); otherwise,
and where the last dimension is not contiguous, the tensor is copied first. Results are contiguous.

The in-place forms write the normalised row into ``x`` and the sum into ``x_residual``; the ``_functional`` forms
allocate both.
"""

import torch
from torch import Tensor

from ir_kernels_triton.launch_config import TRITON_NAMES, alignment, rms_spec, weight_alignment
from ir_kernels_triton.launcher import Kernel
from ir_kernels_triton.rows import MAX_ROWS, Rows, collapse, common_alignment, contiguous_rows, parts


class _Family:
    """The kernels of one row length, dtype pair, op and provider, on one device; made by hints and row strides."""

    __slots__ = ("_kernels", "_make", "align", "weight_align")

    def __init__(
        self, d: int, n: int, x: torch.dtype, w: torch.dtype | None, residual: bool, canonical: bool,
        device: torch.device,
    ) -> None:
        try:
            x_name, w_name = TRITON_NAMES[str(x)], None if w is None else TRITON_NAMES[str(w)]
        except KeyError as error:
            raise TypeError(f"the Triton norms take float16, bfloat16 and float32, not {error.args[0]}") from None
        self.align = alignment(d, x_name)
        self.weight_align = weight_alignment(d, x_name, w_name or x_name)
        self._kernels: dict[tuple[int, bool], Kernel] = {}
        self._make = lambda hints, inner: Kernel(
            rms_spec(d, n, x_name, w_name, hints=hints, inner=inner, residual=residual, canonical=canonical), device
        )

    def kernel(self, hints: int, inner: bool) -> Kernel:
        key = hints, inner
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._make(hints, inner)
        return kernel


_FAMILIES: dict[tuple[object, ...], _Family] = {}


def _run(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, y: Tensor, total: Tensor | None, rows: Rows,
    epsilon: float, variance_size: int | None, canonical: bool,
) -> None:
    """Launch; ``rows`` describes ``x, y`` or ``x, y, residual, total``."""
    d = x.shape[-1]
    w_dtype = None if weight is None else weight.dtype
    key = d, variance_size, x.dtype, w_dtype, residual is None, canonical, x.device
    family = _FAMILIES.get(key)
    if family is None:
        n = d if variance_size is None else min(variance_size, d)
        family = _FAMILIES[key] = _Family(d, n, x.dtype, w_dtype, residual is not None, canonical, x.device)
    read, written = x.data_ptr(), y.data_ptr()
    if residual is not None and total is not None:
        read |= residual.data_ptr()
        written |= total.data_ptr()
    hints = 0
    if common_alignment(written, rows, x.itemsize) % family.align == 0:
        fits = weight is None or weight.data_ptr() % family.weight_align == 0
        hints = 2 if fits and read % family.align == 0 else 1
    kernel = family.kernel(hints, rows.inner > 0)
    given = (x, y) if residual is None or total is None else (x, y, residual, total)
    for part, moved in ((rows, given),) if rows.count <= MAX_ROWS else parts(rows, given):
        w = x if weight is None else weight
        if residual is None:
            (x, y), (x_outer, y_outer), (x_step, y_step) = moved, part.outer, part.step
            kernel((x, x, w, y, x), part.count,
                   (part.inner, x_outer, x_step, 0, 0, y_outer, y_step, 0, 0, epsilon))
        else:
            x, y, r, s = moved
            (x_outer, y_outer, r_outer, s_outer), (x_step, y_step, r_step, s_step) = part.outer, part.step
            kernel((x, r, w, y, s), part.count,
                   (part.inner, x_outer, x_step, r_outer, r_step, y_outer, y_step, s_outer, s_step, epsilon))


def _fresh(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _unit(x: Tensor) -> Tensor:
    """``x`` with a contiguous last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None, canonical: bool) -> Tensor:
    if x.numel() == 0:
        return _fresh(x)
    if weight is not None and weight.stride(0) != 1:
        weight = weight.contiguous()
    rows: Rows | None = None
    if not x.is_contiguous():
        x = _unit(x)
        y = _fresh(x)
        rows = collapse(x, y)
        if rows is None:
            x = x.contiguous()
    else:
        y = torch.empty_like(x)
    if rows is None:
        rows = contiguous_rows(x.numel() // x.shape[-1], x.shape[-1], 2)
    _run(x, None, weight, y, None, rows, epsilon, variance_size, canonical)
    return y


def _add_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None, canonical: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return (x, residual) if inplace else (_fresh(x), _fresh(x))
    if weight is not None and weight.stride(0) != 1:
        weight = weight.contiguous()
    rows: Rows | None = None
    a, b = x, residual
    if not (x.is_contiguous() and residual.is_contiguous()):
        a, b = _unit(x), _unit(residual)
        rows = collapse(a, a, b, b) if inplace else collapse(a, (y := _fresh(x)), b, y)
        # Rows that share memory (an expanded tensor) cannot be written; torch says so when the result is copied back.
        if rows is None or (inplace and 0 in rows.outer + (rows.step if rows.inner else ())):
            a, b, rows = x.contiguous(), residual.contiguous(), None
    if rows is None:
        rows = contiguous_rows(x.numel() // x.shape[-1], x.shape[-1], 4)
    y, total = (a, b) if inplace else (_fresh(x), _fresh(x))
    _run(a, b, weight, y, total, rows, epsilon, variance_size, canonical)
    if not inplace:
        return y, total
    if a is not x:
        x.copy_(a)
    if b is not residual:
        residual.copy_(b)
    return x, residual


def rms_norm_batch_invariant(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """``rms_norm`` in the canonical order."""
    return _norm(x, weight, epsilon, variance_size, True)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """``rms_norm`` in the order that the compiler chooses."""
    return _norm(x, weight, epsilon, variance_size, False)


def fused_add_rms_norm_batch_invariant(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the canonical order, in place."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, True, True)


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the order that the compiler chooses, in place."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, False, True)


def fused_add_rms_norm_batch_invariant_functional(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the canonical order; the inputs stay."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, True, False)


def fused_add_rms_norm_functional(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the order that the compiler chooses; the inputs stay."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, False, False)
