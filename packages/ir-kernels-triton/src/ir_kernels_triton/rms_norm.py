# SPDX-License-Identifier: Apache-2.0
"""rms_norm and fused_add_rms_norm: from a call to a launch. Providers ``triton_batch_invariant`` and ``triton``.

Both are one kernel family. ``triton_batch_invariant`` sums in the canonical order and rounds exactly, so its bits are
``portable``'s; ``triton`` lets the compiler choose the order, contract and approximate. Rows are read in place while
two strides describe them (any contiguous, row-strided or sliced tensor, and q and k views of a qkv tensor); otherwise,
where the last dimension is not contiguous, and for misaligned rows longer than 16384 (or with ``variance_size``), the
tensor is copied first. Results are contiguous.

The in-place forms write the normalised row into ``x`` and the sum into ``x_residual``; the ``_functional`` forms
allocate both.
"""

import torch
from torch import Tensor

from ir_kernels_triton.launcher import current_device
from ir_kernels_triton.prepared_norm import PREPARED, NormKind, PreparedNorm, prepare
from ir_kernels_triton.rows import MAX_ROWS, Rows, copied, readable, row_starts

CANONICAL, FREE = True, False
"""Which order the short way asks for: by position, since a keyword takes time at each call."""


def _has_rows(x: Tensor) -> None:
    if not x.dim():
        raise ValueError("x must have at least one dimension, it has none")


def _row(weight: Tensor, x: Tensor) -> Tensor:
    """The weight as one contiguous row of ``x``'s length, beside it."""
    d = x.shape[-1]
    if weight.shape != (d,):
        raise ValueError(f"weight must be one row of {d} elements, it has the shape {tuple(weight.shape)}")
    _beside("weight", weight, x)
    return weight.contiguous()


def _beside(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, it is on {tensor.device}")


def _prepared(
    x: Tensor, residual: bool, weight: Tensor | None, variance_size: int | None, canonical: bool
) -> PreparedNorm:
    w_dtype = None if weight is None else weight.dtype
    kind = x.shape[-1], variance_size, x.dtype, w_dtype, residual, canonical, x.get_device()
    return PREPARED.get(kind) or prepare(NormKind(*kind), x.device)


def _fresh(x: Tensor) -> Tensor:
    """A contiguous tensor for a result.

    It keeps the promise of alignment: the allocator aligns its start, and a row's length is a multiple of an access.
    """
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _quick(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None,
    canonical: bool,
) -> Tensor | None:
    """The common calls with the least host work: aligned rows of a plain matrix, or of a q or k view ``[M, H, D]``.

    Launches and returns the normalised rows; with a residual they are ``x``, and the sum is written into the residual.
    Returns None without a launch for any other call, and for a call whose kernel has not been compiled yet.
    """
    shape = x.shape
    if not (dims := len(shape)):
        return None
    d = shape[-1]
    w_dtype = None if weight is None else weight.dtype
    device = x.get_device()
    prepared = PREPARED.get((d, variance_size, x.dtype, w_dtype, residual is not None, canonical, device))
    if prepared is None or (
        device >= 0 and device != current_device()
    ):  # asked of a GPU only: the question initialises CUDA
        return None
    x_at = addresses = w_at = x.data_ptr()
    if weight is not None:
        if weight.shape != (d,) or weight.get_device() != device or not weight.is_contiguous():
            return None
        w_at = weight.data_ptr()
        addresses |= w_at
    strides = x.stride()
    if dims == 2:
        rows = shape[0]
        # The strides of a matrix, also where it has one row: see rows.is_plain.
        if (launch := prepared.quick_matrix) is None or strides != (d, 1) or not 0 < rows <= MAX_ROWS:
            return None
        if residual is None:
            if addresses & prepared.alignment_mask:
                return None
            y = prepared.empty((rows, d), strides, x.dtype)
            launch(
                -(-rows // prepared.rows_per_program), x_at, w_at, y.data_ptr(), rows, epsilon
            )  # QUICK_NORM
            return y
        r_at = residual.data_ptr()
        if (
            (addresses | r_at) & prepared.alignment_mask
            or residual.stride() != strides
            or residual.shape != shape
            or residual.get_device() != device
        ):
            return None
        launch(-(-rows // prepared.rows_per_program), x_at, r_at, w_at, rows, epsilon)  # QUICK_ADD
        return x
    if dims == 3 and residual is None and (launch := prepared.quick_views) is not None:
        outer, step, one = strides
        heads = shape[1]
        rows = shape[0] * heads
        addresses |= (outer | step) * prepared.itemsize
        if one != 1 or not 0 < rows <= MAX_ROWS or addresses & prepared.alignment_mask:
            return None
        y_outer = heads * d
        y = prepared.empty((shape[0], heads, d), (y_outer, d, 1), x.dtype)
        programs = -(-rows // prepared.rows_per_program)
        launch(programs, x_at, w_at, y.data_ptr(), rows, heads, outer, step, y_outer, epsilon)  # QUICK_VIEWS
        return y
    return None


def _norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None, canonical: bool
) -> Tensor:
    y = _fresh(x)
    if x.numel() == 0:
        return y
    _has_rows(x)
    weight = None if weight is None else _row(weight, x)
    rows, (x,) = readable((x,), (y,))
    prepared = _prepared(x, False, weight, variance_size, canonical)
    aligned = row_starts(x.data_ptr(), rows, x.itemsize) % prepared.alignment == 0 and (
        weight is None or weight.data_ptr() % prepared.weight_alignment == 0
    )
    if not aligned and prepared.copies_misaligned:
        return _norm(copied(x), None if weight is None else copied(weight), epsilon, variance_size, canonical)
    launch = prepared.launch(aligned, rows.inner > 0)
    launch(rows, (x, y), (x if weight is None else weight,), epsilon)
    return y


def _add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None,
    *,
    canonical: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    if residual.shape != x.shape:
        raise ValueError(f"x_residual must have x's shape {tuple(x.shape)}, it has {tuple(residual.shape)}")
    _beside("x_residual", residual, x)
    if x.numel() == 0:
        return (x, residual) if inplace else (_fresh(x), _fresh(x))
    _has_rows(x)
    weight = None if weight is None else _row(weight, x)
    y, total = (x, residual) if inplace else (_fresh(x), _fresh(x))
    rows, (a, b) = readable((x, residual), (y, total))
    prepared = _prepared(x, True, weight, variance_size, canonical)
    aligned = row_starts(a.data_ptr() | b.data_ptr(), rows, x.itemsize) % prepared.alignment == 0
    if inplace and (not aligned or a is not x or b is not residual or _overlaps(rows)):
        # Results are written with aligned 16-byte stores, row by row: what cannot take them gets a copy.
        y, total = _add_norm(x, residual, weight, epsilon, variance_size, canonical=canonical, inplace=False)
        return x.copy_(y), residual.copy_(total)
    aligned = aligned and (weight is None or weight.data_ptr() % prepared.weight_alignment == 0)
    if not aligned and prepared.copies_misaligned:
        w = None if weight is None else copied(weight)
        y, total = _add_norm(
            copied(x), copied(residual), w, epsilon, variance_size, canonical=canonical, inplace=False
        )
        return (x.copy_(y), residual.copy_(total)) if inplace else (y, total)
    launch = prepared.launch(aligned, rows.inner > 0)
    launch(rows, (a, b, y, total), (a if weight is None else weight,), epsilon)
    return y, total


def _overlaps(rows: Rows) -> bool:
    """Whether rows share memory, as those of an expanded tensor do."""
    return 0 in rows.outer or (rows.inner > 1 and 0 in rows.step)


def rms_norm_batch_invariant(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """``rms_norm`` in the canonical order."""
    y = _quick(x, None, weight, epsilon, variance_size, CANONICAL)
    return _norm(x, weight, epsilon, variance_size, canonical=True) if y is None else y


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """``rms_norm`` in the order that the compiler chooses."""
    y = _quick(x, None, weight, epsilon, variance_size, FREE)
    return _norm(x, weight, epsilon, variance_size, canonical=False) if y is None else y


def fused_add_rms_norm_batch_invariant(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the canonical order, in place."""
    if _quick(x, x_residual, weight, epsilon, variance_size, CANONICAL) is not None:
        return x, x_residual
    return _add_norm(x, x_residual, weight, epsilon, variance_size, canonical=True, inplace=True)


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the order that the compiler chooses, in place."""
    if _quick(x, x_residual, weight, epsilon, variance_size, FREE) is not None:
        return x, x_residual
    return _add_norm(x, x_residual, weight, epsilon, variance_size, canonical=False, inplace=True)


def fused_add_rms_norm_batch_invariant_functional(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the canonical order; the inputs stay."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, canonical=True, inplace=False)


def fused_add_rms_norm_functional(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the order that the compiler chooses; the inputs stay."""
    return _add_norm(x, x_residual, weight, epsilon, variance_size, canonical=False, inplace=False)
