# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels, launched with little host work.

What reaches the compiler is a ``KernelSpec``: no argument is specialised on its value or alignment. So the number of
rows, strides and addresses never cause a compilation; only a new row length, dtype or flag does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ir_kernels_triton import compat
from ir_kernels_triton.launch_config import KernelSpec

Scalar = int | float
current_device = getattr(torch._C, "_cuda_getDevice", lambda: -1)  # absent from builds for the CPU


class Kernel:
    """One compiled kernel on one device."""

    __slots__ = ("_device", "_launch", "_rows", "launch_here")

    def __init__(self, spec: KernelSpec, device: torch.device) -> None:
        """Compile ``spec`` for ``device`` and load it; the CPU takes kernels that Triton interprets."""
        self._device = device.index if device.type == "cuda" else None
        self._rows = spec.rows
        with nullcontext() if self._device is None else torch.cuda.device(device):
            self._launch = compat.launch(spec)
        short = getattr(self._launch, "short", None)
        self.launch_here: Callable[[int, tuple[Any, ...]], None] = (
            short(self._rows, self._device or 0) if short else self._divided
        )
        """:meth:`launch` while the kernel's device is the current one."""

    @property
    def takes_pointers(self) -> bool:
        """Whether :meth:`launch` may be used."""
        return self._launch.takes_pointers

    def __call__(self, tensors: tuple[Tensor, ...], rows: int, scalars: tuple[Scalar, ...]) -> None:
        """Launch over ``rows`` rows on the current stream: pointers, number of rows, then ``scalars``."""
        self.launch(rows, (*self._given(tensors), rows, *scalars))

    def over(self, programs: int, tensors: tuple[Tensor, ...], scalars: tuple[Scalar, ...]) -> None:
        """Launch ``programs`` programs on the current stream: pointers, then ``scalars``."""
        self.launch(programs * self._rows, (*self._given(tensors), *scalars))

    def _given(self, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return tuple(t.data_ptr() for t in tensors) if self._launch.takes_pointers else tensors

    def launch(self, rows: int, args: tuple[Any, ...]) -> None:
        """The same with all arguments as the kernel takes them, tensors as addresses."""
        device = self._device
        if device is None or device == current_device():
            self.launch_here(rows, args)
        else:
            with torch.cuda.device(device):
                self.launch_here(rows, args)

    def _divided(self, rows: int, args: tuple[Any, ...]) -> None:
        self._launch((rows + self._rows - 1) // self._rows, self._device or 0, args)
