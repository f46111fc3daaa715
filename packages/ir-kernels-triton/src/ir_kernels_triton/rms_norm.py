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

from collections.abc import Callable

import torch
from torch import Tensor

from ir_kernels_triton import compat
from ir_kernels_triton.launch_config import (
    COPY_MISALIGNED_FROM,
    PDL,
    TRITON_NAMES,
    alignment,
    rms_spec,
    weight_alignment,
)
from ir_kernels_triton.launcher import Kernel, current_device
from ir_kernels_triton.rows import (
    MAX_ROWS,
    Rows,
    collapse,
    common_alignment,
    contiguous_rows,
    is_plain,
    parts,
)


class _Family:
    """The kernels of one row length, dtype pair, op and provider, on one device."""

    __slots__ = (
        "_kernels", "_make", "align", "copies", "empty", "itemsize", "low_bits", "quick", "quick_inner", "weight_align",
    )  # fmt: skip

    def __init__(
        self,
        d: int,
        variance_size: int | None,
        x: torch.dtype,
        w: torch.dtype | None,
        residual: bool,
        canonical: bool,
        device: torch.device,
    ) -> None:
        try:
            x_name, w_name = TRITON_NAMES[str(x)], None if w is None else TRITON_NAMES[str(w)]
        except KeyError as error:
            raise TypeError(
                f"the Triton norms take float16, bfloat16 and float32, not {error.args[0]}"
            ) from None
        n = d if variance_size is None else min(variance_size, d)
        self.align = alignment(d, x_name)
        self.weight_align = weight_alignment(d, x_name, w_name or x_name)
        self.low_bits = max(self.align, self.weight_align) - 1
        """Where these are 0 in all addresses, all are aligned."""
        self.empty = compat.empty_strided(device)
        self.copies = d != n or d > COPY_MISALIGNED_FROM
        self._kernels: dict[tuple[bool, bool], Kernel] = {}
        self.quick: Callable[[int, tuple[int | float, ...]], None] | None = None
        self.quick_inner: Callable[[int, tuple[int | float, ...]], None] | None = None
        self.itemsize = x.itemsize
        self._make: Callable[[bool, bool], Kernel] = lambda aligned, inner: Kernel(
            rms_spec(
                d,
                n,
                x_name,
                w_name,
                aligned=aligned,
                inner=inner,
                residual=residual,
                canonical=canonical,
                pdl=PDL and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0),
            ),
            device,
        )

    def kernel(self, aligned: bool, inner: bool) -> Kernel:
        key = aligned, inner
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._make(aligned, inner)
            if aligned and kernel.takes_pointers:
                if inner:
                    self.quick_inner = kernel.launch_here
                else:
                    self.quick = kernel.launch_here
        return kernel


_FAMILIES: dict[tuple[object, ...], _Family] = {}


def _length(x: Tensor) -> int:
    if not x.dim():
        raise ValueError("x must have at least one dimension, it has none")
    return x.shape[-1]


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


def _family(
    x: Tensor, residual: bool, weight: Tensor | None, variance_size: int | None, canonical: bool
) -> _Family:
    w_dtype = None if weight is None else weight.dtype
    key = x.shape[-1], variance_size, x.dtype, w_dtype, residual, canonical, x.get_device()
    family = _FAMILIES.get(key)
    if family is None:
        family = _FAMILIES[key] = _Family(*key[:-1], x.device)
    return family


def _unit(x: Tensor) -> Tensor:
    """``x`` with a contiguous last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _fresh(x: Tensor) -> Tensor:
    """A contiguous tensor for a result; the allocator aligns it, and its rows are a multiple of the promise long."""
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

    Launches and returns the normalised rows (into ``x``, and the sum into the residual, when there is one); None, and
    nothing has happened, if the call is another, or its kernel is not there yet.
    """
    shape = x.shape
    if not (dims := len(shape)):
        return None
    d = shape[-1]
    w_dtype = None if weight is None else weight.dtype
    device = x.get_device()
    family = _FAMILIES.get((d, variance_size, x.dtype, w_dtype, residual is not None, canonical, device))
    if family is None or (device >= 0 and device != current_device()):  # a CPU must not wake CUDA
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
        if (launch := family.quick) is None or strides != (d, 1) or not 0 < rows <= MAX_ROWS:
            return None
        if residual is None:
            if addresses & family.low_bits:
                return None
            y = family.empty((rows, d), strides, x.dtype)
            launch(rows, (x_at, x_at, w_at, y.data_ptr(), x_at, rows, 0, d, 0, 0, 0, d, 0, 0, 0, epsilon))
            return y
        r_at = residual.data_ptr()
        if (
            (addresses | r_at) & family.low_bits
            or residual.stride() != strides
            or residual.shape != shape
            or residual.get_device() != device
        ):
            return None
        launch(rows, (x_at, r_at, w_at, x_at, r_at, rows, 0, d, 0, d, 0, d, 0, d, 0, epsilon))
        return x
    if dims == 3 and residual is None and (launch := family.quick_inner) is not None:
        outer, step, one = strides
        heads = shape[1]
        rows = shape[0] * heads
        addresses |= (outer | step) * family.itemsize
        if one != 1 or not 0 < rows <= MAX_ROWS or addresses & family.low_bits:
            return None
        y_outer = heads * d
        y = family.empty((shape[0], heads, d), (y_outer, d, 1), x.dtype)
        launch(
            rows,
            (x_at, x_at, w_at, y.data_ptr(), x_at, rows, heads, outer, step, 0, 0, y_outer, d, 0, 0, epsilon),
        )
        return y
    return None


def _norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None, canonical: bool
) -> Tensor:
    y = _fresh(x)
    if x.numel() == 0:
        return y
    d = _length(x)
    weight = None if weight is None else _row(weight, x)
    rows: Rows | None = None
    if not is_plain(x):
        x = _unit(x)
        rows = collapse(x, y)
        if rows is None:
            x = _copy(x)
    if rows is None:
        rows = contiguous_rows(x.numel() // d, (d, d), x.dim())
    family = _family(x, False, weight, variance_size, canonical)
    aligned = common_alignment(x.data_ptr(), rows, x.itemsize) % family.align == 0 and (
        weight is None or weight.data_ptr() % family.weight_align == 0
    )
    if not aligned and family.copies:
        return _norm(_copy(x), None if weight is None else _copy(weight), epsilon, variance_size, canonical)
    kernel = family.kernel(aligned, rows.inner > 0)
    given = x, y
    for part, (a, b) in ((rows, given),) if rows.number <= MAX_ROWS else parts(rows, given):
        (a_outer, b_outer), (a_step, b_step) = part.outer, part.step
        strides = (a_outer, a_step, 0, 0, b_outer, b_step, 0, 0)
        kernel((a, a, a if weight is None else weight, b, a), part.number, (part.inner, *strides, epsilon))
    return y


def _add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None,
    canonical: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    if residual.shape != x.shape:
        raise ValueError(f"x_residual must have x's shape {tuple(x.shape)}, it has {tuple(residual.shape)}")
    _beside("x_residual", residual, x)
    if x.numel() == 0:
        return (x, residual) if inplace else (_fresh(x), _fresh(x))
    d = _length(x)
    weight = None if weight is None else _row(weight, x)
    family = _family(x, True, weight, variance_size, canonical)
    a, b = x, residual
    y, total = (x, residual) if inplace else (_fresh(x), _fresh(x))
    rows: Rows | None = None
    if not (is_plain(x) and is_plain(residual)):
        a, b = _unit(x), _unit(residual)
        rows = collapse(a, b, y, total)
        if rows is None:
            a, b = _copy(x), _copy(residual)
    if rows is None:
        rows = contiguous_rows(x.numel() // d, (d, d, d, d), x.dim())
    aligned = common_alignment(a.data_ptr() | b.data_ptr(), rows, x.itemsize) % family.align == 0
    if inplace and (not aligned or a is not x or b is not residual or _overlaps(rows)):
        # Results are written with aligned 16-byte stores, row by row: what cannot take them gets a copy.
        y, total = _add_norm(x, residual, weight, epsilon, variance_size, canonical, False)
        return x.copy_(y), residual.copy_(total)
    aligned = aligned and (weight is None or weight.data_ptr() % family.weight_align == 0)
    if not aligned and family.copies:
        w = None if weight is None else _copy(weight)
        y, total = _add_norm(_copy(x), _copy(residual), w, epsilon, variance_size, canonical, False)
        return (x.copy_(y), residual.copy_(total)) if inplace else (y, total)
    kernel = family.kernel(aligned, rows.inner > 0)
    given = a, b, y, total
    for part, (p, q, r, s) in ((rows, given),) if rows.number <= MAX_ROWS else parts(rows, given):
        strides = [stride for pair in zip(part.outer, part.step, strict=True) for stride in pair]
        kernel((p, q, p if weight is None else weight, r, s), part.number, (part.inner, *strides, epsilon))
    return y, total


def _overlaps(rows: Rows) -> bool:
    """Whether rows share memory, as those of an expanded tensor do."""
    return 0 in rows.outer or (rows.inner > 1 and 0 in rows.step)


def rms_norm_batch_invariant(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """``rms_norm`` in the canonical order."""
    y = _quick(x, None, weight, epsilon, variance_size, True)
    return _norm(x, weight, epsilon, variance_size, True) if y is None else y


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """``rms_norm`` in the order that the compiler chooses."""
    y = _quick(x, None, weight, epsilon, variance_size, False)
    return _norm(x, weight, epsilon, variance_size, False) if y is None else y


def fused_add_rms_norm_batch_invariant(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the canonical order, in place."""
    if _quick(x, x_residual, weight, epsilon, variance_size, True) is not None:
        return x, x_residual
    return _add_norm(x, x_residual, weight, epsilon, variance_size, True, True)


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``fused_add_rms_norm`` in the order that the compiler chooses, in place."""
    if _quick(x, x_residual, weight, epsilon, variance_size, False) is not None:
        return x, x_residual
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
