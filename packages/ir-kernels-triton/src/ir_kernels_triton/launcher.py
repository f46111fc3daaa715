# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels, and their launches with little host work.

A launch is prepared once for each kind of call: ``Kernel(spec, device).prepare(given, fixed)`` compiles the kernel,
resolves every argument by name and returns a flat function of the values that change. All kernels of this package are
launched so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ir_kernels_triton import compat
from ir_kernels_triton.arguments import Arrangement, Launch
from ir_kernels_triton.kernel_spec import KernelSpec
from ir_kernels_triton.rows import MAX_ROWS, Rows, parts

current_device = getattr(torch._C, "_cuda_getDevice", lambda: -1)  # absent from builds for the CPU


def dependent_launch(device: torch.device) -> bool:
    """Whether ``device`` has programmatic dependent launch."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


class Kernel:
    """One compiled kernel on one device."""

    __slots__ = ("_device", "_launch", "pointer", "spec")

    def __init__(self, spec: KernelSpec, device: torch.device) -> None:
        """Compile ``spec`` for ``device`` and load it; the CPU takes kernels that Triton interprets."""
        self.spec = spec
        self._device = device.index if device.type == "cuda" else None
        with nullcontext() if self._device is None else torch.cuda.device(device):
            self._launch = compat.launch(spec)
        self.pointer: Callable[[Tensor], Any] = Tensor.data_ptr if self.takes_pointers else _itself
        """What a launch takes for a tensor: its address, or the tensor where Triton's own launch asks for it."""

    @property
    def takes_pointers(self) -> bool:
        """Whether launches take addresses of tensors."""
        return self._launch.takes_pointers

    def prepare_here(self, given: Sequence[str], fixed: Mapping[str, int | str]) -> Launch:
        """A launch for callers that have made the kernel's device the current one; see :meth:`prepare`."""
        return self._launch.prepare(Arrangement(self.spec.names, given, fixed), self._device or 0)

    def prepare(self, given: Sequence[str], fixed: Mapping[str, int | str]) -> Launch:
        """A launch on the current stream of the kernel's device: ``launch(number of programs, *given)``.

        Args:
            given: names of the arguments that change from call to call, in the order in which a call gives them. A
                tensor is given as :attr:`pointer` makes it.
            fixed: the other arguments: an integer, or the name of a given argument whose value is repeated.

        Raises:
            TypeError: an argument of the kernel is missing or named twice, or a name is none of its arguments.
        """
        launch, device = self.prepare_here(given, fixed), self._device
        if device is None:
            return launch

        def anywhere(programs: int, *values: Any) -> None:
            if device == current_device():
                launch(programs, *values)
            else:
                with torch.cuda.device(device):
                    launch(programs, *values)

        return anywhere


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class RowLaunch:
    """Launches of one kernel over the rows of tensors, as many as the number of rows takes."""

    __slots__ = ("_launch", "_pointer", "_rows_per_program")

    def __init__(
        self,
        kernel: Kernel,
        strided: Mapping[str, str],
        scalar: str | None = None,
        *,
        others: Sequence[str] = (),
        fixed: Mapping[str, int | str] | None = None,
    ) -> None:
        """Prepare the launches of ``kernel``, which takes ``rows`` and ``inner`` as :class:`~.rows.Rows` has them.

        Args:
            strided: pointers to the first row of each tensor, each with the name of its strides: ``x`` for ``x_outer``
                and ``x_inner``.
            scalar: the argument that is neither a pointer nor about rows, if there is one.
            others: pointers to what all rows share.
            fixed: as :meth:`Kernel.prepare` takes it.
        """
        outer, inner = ([f"{name}_{which}" for name in strided.values()] for which in ("outer", "inner"))
        given = [*strided, *others, "rows", "inner", *outer, *inner, *(() if scalar is None else (scalar,))]
        self._launch = kernel.prepare(given, fixed or {})
        self._pointer, self._rows_per_program = kernel.pointer, kernel.spec.rows_per_program

    def __call__(
        self, rows: Rows, strided: tuple[Tensor, ...], others: tuple[Tensor, ...], *scalar: float
    ) -> None:
        """Launch over ``rows`` of the tensors ``strided``; ``scalar`` is one number if the kernel takes one."""
        pointer, step = self._pointer, self._rows_per_program
        shared = [pointer(tensor) for tensor in others]
        for part, tensors in ((rows, strided),) if rows.number <= MAX_ROWS else parts(rows, strided):
            number, inner, outer, inner_steps = part
            moved = [pointer(tensor) for tensor in tensors]
            self._launch(-(-number // step), *moved, *shared, number, inner, *outer, *inner_steps, *scalar)
