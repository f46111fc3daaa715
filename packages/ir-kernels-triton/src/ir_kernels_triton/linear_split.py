# SPDX-License-Identifier: Apache-2.0
"""linear and linear_partial in the order ``chain16x8``: from a call to launches.

For few rows each of the 8 chunks has programs of its own, and a second kernel adds what they leave; for many rows one
program computes the chunks of its tile one after the other. Which of them runs depends on rows and layout, and no bit
does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ir_core.ops.chunks import CHUNKS, chunk_length
from ir_core.ops.matmul_x8 import check as check_partial
from ir_kernels_triton import compat, linear_split_config
from ir_kernels_triton.arguments import Launch
from ir_kernels_triton.kernel_spec import TRITON_NAMES, KernelSpec
from ir_kernels_triton.launcher import Kernel, current_device
from ir_kernels_triton.linear import MAX_RUNS, Run, aligned, check, no_terms, nothing

_KERNELS: dict[tuple[KernelSpec, int], tuple[Kernel, Launch]] = {}
_RUNS: dict[tuple[object, ...], Run] = {}


def linear_x8(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the order ``chain16x8``; see :func:`ir_core.ops.linear`.

    Raises ArgumentError when the arguments are no call of ``linear``, TypeError for a dtype without a kernel.
    """
    check(x, weight, bias)
    return _product(x, weight, bias, CHUNKS, x.dtype)


def linear_partial_x8(x: Tensor, weight: Tensor, chunks: int = 8) -> Tensor:
    """A subtree of ``chain16x8`` in float32; see :func:`ir_core.ops.linear_partial`.

    Raises ArgumentError when the arguments are no call of ``linear_partial``, TypeError for a dtype without a kernel.
    """
    check_partial(x, weight, chunks)
    check(x, weight, None)
    return _product(x, weight, None, chunks, torch.float32)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, chunks: int, out: torch.dtype) -> Tensor:
    shape = x.shape
    if len(shape) != 2:
        x = x.reshape(math.prod(shape[:-1]), shape[-1])
    index = x.get_device()
    key = (
        x.shape, x.stride(), x.dtype, weight.shape, weight.stride(), bias is None, chunks, out,
        (x.data_ptr() | weight.data_ptr()) & 15 == 0, index,
    )  # fmt: skip
    run = _RUNS.get(key)
    if run is None:
        if len(_RUNS) >= MAX_RUNS:
            _RUNS.clear()
        run = _RUNS[key] = _prepare(x, weight, bias is not None, chunks, out)
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=out, device=x.device)
    if bias is not None:
        bias = bias.contiguous()
    if index < 0 or index == current_device():
        run(x, weight, x if bias is None else bias, y)
    else:
        with torch.cuda.device(index):
            run(x, weight, x if bias is None else bias, y)
    return y if len(shape) == 2 else y.view(*shape[:-1], weight.shape[0])


def _prepare(x: Tensor, weight: Tensor, bias: bool, chunks: int, out: torch.dtype) -> Run:
    """Choose and compile what runs calls of this kind."""
    (rows, k), n = x.shape, weight.shape[0]
    if not rows or not n:
        return nothing
    if not k:
        return _bias_alone if bias else no_terms
    even = aligned(x) and aligned(weight)
    split = chunks > 1 and rows <= linear_split_config.SPLIT_ROWS
    wide = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9 and x.element_size() == 2
    whole = (
        chunk_length(k, chunks) % linear_split_config.BULK.BK == 0 and k == chunk_length(k, chunks) * chunks
    )
    if wide and even and whole and not split and n % 8 == 0 and not interpreted():
        return bulk_run(linear_split_config.BULK, x, weight, bias, chunks, out)
    return tile_run(x, weight, bias, chunks, out, even, split)


def interpreted() -> bool:
    """Whether Triton interprets the kernels here."""
    from ir_kernels_triton import linear_split_kernel

    return compat.is_interpreted(linear_split_kernel.split_tile)


def _compiled(spec: KernelSpec, device: torch.device) -> tuple[Kernel, Launch]:
    key = spec, -1 if device.index is None else device.index
    if key not in _KERNELS:
        made = Kernel(spec, device)
        _KERNELS[key] = made, made.prepare_here(spec.names, {})
    return _KERNELS[key]


def tile_run(
    x: Tensor,
    weight: Tensor,
    bias: bool,
    chunks: int,
    out: torch.dtype,
    even: bool,
    split: bool,
    choice: linear_split_config.Tile | None = None,
) -> Run:
    """``run`` of ``split_tile``; with ``split`` each chunk by itself, and ``split_fold`` behind it."""
    (rows, k), n = x.shape, weight.shape[0]
    dtype, result = TRITON_NAMES[str(x.dtype)], TRITON_NAMES[str(out)]
    length = chunk_length(k, chunks)
    interpret = interpreted()
    pdl = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0) and not interpret
    if choice is None:
        choice = linear_split_config.tile(rows, dtype, split=split, interpret=interpret)
    parts = chunks if split else 1
    kernel, launch = _compiled(
        linear_split_config.tile_spec(
            choice,
            dtype,
            "fp32" if split else result,
            chunks // parts,
            aligned=even,
            bias=bias and not split,
            pdl=pdl,
            interpret=interpret,
        ),
        x.device,
    )
    programs, at = parts * choice.programs(rows, n), kernel.pointer
    numbers = (rows, n, k, length, *x.stride(), *weight.stride(), rows * n)
    if not split:
        return lambda x, w, b, y: launch(programs, at(x), at(w), at(b), at(y), *numbers)
    folder, fold = _compiled(
        linear_split_config.fold_spec(dtype, result, chunks, bias=bias, pdl=pdl, interpret=interpret),
        x.device,
    )
    folds, of = -(-rows * n // linear_split_config.FOLD), folder.pointer

    def both(x: Tensor, w: Tensor, b: Tensor, y: Tensor) -> None:
        partial = torch.empty((chunks, rows, n), dtype=torch.float32, device=y.device)
        launch(programs, at(x), at(w), at(b), at(partial), *numbers)
        fold(folds, of(partial), of(b), of(y), rows * n, n)

    return both


def bulk_run(
    choice: linear_split_config.Tile, x: Tensor, weight: Tensor, bias: bool, chunks: int, out: torch.dtype
) -> Run:
    """``run`` of ``split_bulk``."""
    (rows, k), n = x.shape, weight.shape[0]
    spec = linear_split_config.bulk_spec(
        choice, TRITON_NAMES[str(x.dtype)], TRITON_NAMES[str(out)], chunks, bias=bias
    )
    kernel, launch = _compiled(spec, x.device)
    programs, steps = choice.programs(rows, n), chunk_length(k, chunks) // choice.BK
    describe, at = compat.descriptor, kernel.pointer
    of_x = describe(kernel, (rows, k), (x.stride(0), 1), [choice.BM, choice.BK])
    of_w = describe(kernel, (n, k), (weight.stride(0), 1), [choice.BN, choice.BK])
    of_y = describe(kernel, (rows, n), (n, 1), [choice.BM, choice.BN])
    return lambda x, w, b, y: launch(programs, of_x(x), of_w(w), of_y(y), at(b), rows, n, steps)


def _bias_alone(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """K = 0: +0 and the bias."""
    y.copy_((bias.float() + 0.0).expand_as(y))
