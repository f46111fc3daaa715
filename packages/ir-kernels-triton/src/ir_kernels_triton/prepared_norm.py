# SPDX-License-Identifier: Apache-2.0
"""The prepared launches of one kind of norm: what is known of a call once its row length, dtypes, op, provider and
device are."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from ir_kernels_triton import compat
from ir_kernels_triton.arguments import Launch
from ir_kernels_triton.kernel_spec import TRITON_NAMES, alignment, weight_alignment
from ir_kernels_triton.launch_config import COPY_MISALIGNED_ABOVE, DEPENDENT_LAUNCH, rms_spec
from ir_kernels_triton.launcher import Kernel, RowLaunch, dependent_launch


class NormKind(NamedTuple):
    """What the kernels of a norm are chosen by: nothing of the number of rows, nor of how they lie in memory.

    A plain tuple in this order finds the same entry of :data:`PREPARED`; that is how the quick way asks.
    """

    row_elements: int
    variance_size: int | None
    x: torch.dtype
    weight: torch.dtype | None
    residual: bool
    """Whether a residual is added: fused_add_rms_norm."""
    canonical: bool
    device_index: int
    """As ``Tensor.get_device`` gives it: -1 is the CPU."""


class PreparedNorm:
    """The kernels and launches of one kind of call; compiled when first needed, for each layout of the rows."""

    __slots__ = (
        "_device", "_kind", "_launches", "_variance_elements", "_w", "_x", "alignment", "alignment_mask",
        "copies_misaligned", "empty", "itemsize", "quick_matrix", "quick_views", "rows_per_program", "weight_alignment",
    )  # fmt: skip

    def __init__(self, kind: NormKind, device: torch.device) -> None:
        """Raises TypeError when there is no kernel for a dtype."""
        try:
            self._x = TRITON_NAMES[str(kind.x)]
            self._w = None if kind.weight is None else TRITON_NAMES[str(kind.weight)]
        except KeyError as error:
            raise TypeError(
                f"the Triton norms take float16, bfloat16 and float32, not {error.args[0]}"
            ) from None
        d = kind.row_elements
        self._kind, self._device = kind, device
        self._variance_elements = d if kind.variance_size is None else min(kind.variance_size, d)
        self._launches: dict[tuple[bool, bool], RowLaunch] = {}
        self.alignment = alignment(d, self._x)
        """Bytes that each row's address must be a multiple of, for the promise of alignment."""
        self.weight_alignment = weight_alignment(d, self._x, self._w or self._x)
        """The same for the weight."""
        self.alignment_mask = max(self.alignment, self.weight_alignment) - 1
        """Bits of an address. Where they are 0 in all addresses, all are aligned."""
        self.copies_misaligned = d != self._variance_elements or d > COPY_MISALIGNED_ABOVE
        """Whether rows without that alignment are copied first."""
        self.empty = compat.empty_strided(device)
        """Allocates a result: ``empty(sizes, strides, dtype)``."""
        self.itemsize = kind.x.itemsize
        self.rows_per_program = 1
        self.quick_matrix: Launch | None = None
        """The launch over an aligned contiguous matrix, None before one was needed."""
        self.quick_views: Launch | None = None
        """The launch over aligned rows with two strides, as those of a q or k view are."""

    def launch(self, aligned: bool, two_strides: bool) -> RowLaunch:
        """The launch over rows that keep the promise of alignment or do not, with one stride or two."""
        found = self._launches.get((aligned, two_strides))
        if found is None:
            found = self._launches[aligned, two_strides] = self._prepare(aligned, two_strides)
        return found

    def _prepare(self, aligned: bool, two_strides: bool) -> RowLaunch:
        kind = self._kind
        spec = rms_spec(
            kind.row_elements,
            self._variance_elements,
            self._x,
            self._w,
            aligned=aligned,
            inner=two_strides,
            residual=kind.residual,
            canonical=kind.canonical,
            pdl=DEPENDENT_LAUNCH and dependent_launch(self._device),
        )
        kernel = Kernel(spec, self._device)
        if aligned and kernel.takes_pointers:
            self._prepare_quick(kernel, two_strides)
        if kind.residual:
            strided = {"x_ptr": "x", "residual_ptr": "r", "y_ptr": "y", "sum_ptr": "s"}
            return RowLaunch(kernel, strided, "epsilon", others=("w_ptr",))
        return RowLaunch(
            kernel, {"x_ptr": "x", "y_ptr": "y"}, "epsilon", others=("w_ptr",), fixed=WITHOUT_RESIDUAL
        )

    def _prepare_quick(self, kernel: Kernel, two_strides: bool) -> None:
        self.rows_per_program = kernel.spec.rows_per_program
        if not two_strides:
            self.quick_matrix = matrix_launch(kernel, self._kind.row_elements, self._kind.residual)
        elif not self._kind.residual:
            fixed = WITHOUT_RESIDUAL | {"y_inner": self._kind.row_elements}
            self.quick_views = kernel.prepare_here(QUICK_VIEWS, fixed)


WITHOUT_RESIDUAL: Final[dict[str, int | str]] = {
    "residual_ptr": "x_ptr",
    "sum_ptr": "x_ptr",
    "r_outer": 0,
    "r_inner": 0,
    "s_outer": 0,
    "s_inner": 0,
}
"""What the kernel takes for a residual and a sum that it neither reads nor writes."""

QUICK_NORM: Final = ("x_ptr", "w_ptr", "y_ptr", "rows", "epsilon")
QUICK_ADD: Final = ("x_ptr", "residual_ptr", "w_ptr", "rows", "epsilon")
QUICK_VIEWS: Final = ("x_ptr", "w_ptr", "y_ptr", "rows", "inner", "x_outer", "x_inner", "y_outer", "epsilon")


def matrix_launch(kernel: Kernel, d: int, residual: bool) -> Launch:
    """The launch of a norm's kernel over a contiguous matrix of ``d`` columns, while its device is the current one.

    It takes the values of ``QUICK_NORM``, or those of ``QUICK_ADD`` and writes into ``x`` and the residual.
    """
    outer = dict.fromkeys(("x_outer", "y_outer"), d)
    inner = dict.fromkeys(("inner", "x_inner", "r_inner", "y_inner", "s_inner"), 0)
    if residual:
        outer |= dict.fromkeys(("r_outer", "s_outer"), d)
        in_place = {"y_ptr": "x_ptr", "sum_ptr": "residual_ptr"}
        return kernel.prepare_here(QUICK_ADD, in_place | outer | inner)
    return kernel.prepare_here(QUICK_NORM, WITHOUT_RESIDUAL | outer | inner)


PREPARED: Final[dict[tuple[object, ...], PreparedNorm]] = {}
"""The kinds of calls so far."""


def prepare(kind: NormKind, device: torch.device) -> PreparedNorm:
    """Prepare the launches of a kind of call that was not met before."""
    made = PREPARED[kind] = PreparedNorm(kind, device)
    return made
