# SPDX-License-Identifier: Apache-2.0
"""linear: from a call to a launch. Provider ``triton_batch_invariant``.

fp16 and bf16 on SM 9.0 have the order ``chain16``, float32 everywhere ``fma_chain``. Three kernels, one order: weights
stream once for few rows, tiles through tensor descriptors for many, and tiles by plain loads for whatever is not
aligned, on other devices, and in the interpreter. Which one runs depends on rows and layout, and no bit does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ir_core.ops.matmul import check as check_op
from ir_kernels_triton import compat, linear_config
from ir_kernels_triton.arguments import Launch
from ir_kernels_triton.kernel_spec import TRITON_NAMES, KernelSpec
from ir_kernels_triton.launcher import Kernel, current_device

Run = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""``run(x, weight, bias or x, y)`` for matrices of one kind."""

MAX_RUNS: Final = 8192
"""Kinds of calls that are remembered; beyond, all are forgotten and looked up again."""

_KERNELS: dict[tuple[KernelSpec, int], tuple[Kernel, Launch]] = {}
_RUNS: dict[tuple[object, ...], Run] = {}
_ALLOCATORS: dict[int, Callable[..., Tensor]] = {}


def linear_batch_invariant(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the order of x's dtype; see :func:`ir_core.ops.linear`.

    Raises ArgumentError when the arguments are no call of ``linear``, TypeError for a dtype without a kernel.
    """
    shape = x.shape
    if len(shape) != 2:
        check(x, weight, bias)
        flat = x.reshape(math.prod(shape[:-1]), shape[-1])
        return linear_batch_invariant(flat, weight, bias).view(*shape[:-1], weight.shape[0])
    index = x.get_device()
    key = (
        shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype,
        None if bias is None else bias.dtype, (x.data_ptr() | weight.data_ptr()) & 15 == 0, index,
    )  # fmt: skip
    run = _RUNS.get(key)
    if run is None:
        check(x, weight, bias)
        run = _prepare(key, x, weight, bias)
    elif bias is not None and bias.shape[0] != weight.shape[0]:
        check(x, weight, bias)
    columns = weight.shape[0]
    y = _ALLOCATORS[index]((shape[0], columns), (columns, 1), x.dtype)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if index < 0 or index == current_device():
        run(x, weight, x if bias is None else bias, y)
    else:
        with torch.cuda.device(index):
            run(x, weight, x if bias is None else bias, y)
    return y


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise, with the values, unless the arguments are a call that the kernels take."""

    check_op(x, weight, bias)
    if str(x.dtype) not in TRITON_NAMES:
        raise TypeError(f"the Triton linear takes float16, bfloat16 and float32, not {x.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, it is on {tensor.device}")


def _prepare(key: tuple[object, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> Run:
    """Choose and compile what runs calls of this kind."""
    if len(_RUNS) >= MAX_RUNS:
        _RUNS.clear()
    index = x.get_device()
    if index not in _ALLOCATORS:
        _ALLOCATORS[index] = compat.empty_strided(x.device)
    rows, k = x.shape
    n = weight.shape[0]
    if not rows or not n:
        run: Run = nothing
    elif not k:
        run = no_terms if bias is None else _bias_alone
    else:
        even = aligned(x) and aligned(weight)
        generation = torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
        wide = even and generation[0] == 9 and x.element_size() == 2 and not _interpreted()
        choice = linear_config.choose(rows, n, k) if wide else None
        if isinstance(choice, linear_config.Stream):
            run = stream_run(choice, x, weight, bias is not None)
        elif choice is not None:
            run = bulk_run(choice, x, weight, bias is not None)
        else:
            run = tile_run(x, weight, bias is not None, even)
    _RUNS[key] = run
    return run


def _interpreted() -> bool:
    from ir_kernels_triton import linear_tile_kernel

    return compat.is_interpreted(linear_tile_kernel.linear_tile)


def aligned(matrix: Tensor) -> bool:
    """Whether each row is contiguous, starts at a multiple of 16 bytes, and is a multiple of 16 bytes long."""
    size, (rows, k), (step, along) = matrix.element_size(), matrix.shape, matrix.stride()
    apart = rows == 1 or (
        step >= k and step * size % 16 == 0
    )  # a tensor descriptor takes no rows that overlap
    return apart and along == 1 and k * size % 16 == 0 and matrix.data_ptr() % 16 == 0


def _run(spec: KernelSpec, device: torch.device, programs: int, numbers: tuple[int, ...]) -> Run:
    """``run`` of one compiled kernel: the addresses change, the rest is known now.

    One launch a kernel takes every argument: there are too many kinds of calls to write each one's numbers into a
    function of its own.
    """
    kernel, launch = _compiled(spec, device)
    at = kernel.pointer
    return lambda x, w, b, y: launch(programs, at(x), at(w), at(b), at(y), *numbers)


def _compiled(spec: KernelSpec, device: torch.device) -> tuple[Kernel, Launch]:
    key = spec, -1 if device.index is None else device.index
    if key not in _KERNELS:
        made = Kernel(spec, device)
        _KERNELS[key] = made, made.prepare_here(spec.names, {})
    return _KERNELS[key]


def stream_run(choice: linear_config.Stream, x: Tensor, weight: Tensor, bias: bool) -> Run:
    """``run`` of ``linear_stream``, for up to ``choice.BT`` rows a tile."""
    (rows, k), n = x.shape, weight.shape[0]
    spec = linear_config.stream_spec(choice, k, TRITON_NAMES[str(x.dtype)], bias=bias)
    numbers = (rows, n, k, x.stride(0), weight.stride(0), n)
    return _run(spec, x.device, choice.programs(rows, n), numbers)


def tile_run(x: Tensor, weight: Tensor, bias: bool, aligned: bool) -> Run:
    """``run`` of ``linear_tile``, of matrices or of batches of them."""
    (rows, k), n = x.shape[-2:], weight.shape[-2]
    batches, steps = (
        (x.shape[0], (x.stride(0), weight.stride(0), rows * n)) if x.dim() == 3 else (1, (0, 0, 0))
    )
    spec = linear_config.tile_spec(
        rows, TRITON_NAMES[str(x.dtype)], aligned=aligned, bias=bias, interpret=_interpreted()
    )
    constants = dict(spec.constants)
    programs = batches * -(-rows // constants["BM"]) * -(-n // constants["BN"])
    return _run(spec, x.device, programs, (rows, n, k, *x.stride()[-2:], *weight.stride()[-2:], n, *steps))


def bulk_run(choice: linear_config.Bulk, x: Tensor, weight: Tensor, bias: bool) -> Run:
    """``run`` of ``linear_bulk``."""
    (rows, k), n = x.shape, weight.shape[0]
    spec = linear_config.bulk_spec(choice, TRITON_NAMES[str(x.dtype)], bias=bias)
    kernel, launch = _compiled(spec, x.device)
    programs = choice.programs(rows, n)
    width = choice.BN // 2 if choice.HALVES else choice.BN
    describe, at = compat.descriptor, kernel.pointer
    of_x = describe(kernel, (rows, k), (x.stride(0), 1), [choice.BM, choice.BK])
    of_w = describe(kernel, (n, k), (weight.stride(0), 1), [choice.BN, choice.BK])
    of_y = describe(kernel, (rows, n), (n, 1), [choice.BM, width])
    if not choice.MORE:
        return lambda x, w, b, y: launch(programs, of_x(x), of_w(w), of_y(y), at(b), rows, n, k)
    of_w2 = describe(kernel, (n, k), (weight.stride(0), 1), [choice.MORE, choice.BK])
    of_y2 = describe(kernel, (rows, n), (n, 1), [choice.BM, choice.MORE])
    return lambda x, w, b, y: launch(
        programs, of_x(x), of_w(w), of_y(y), at(b), rows, n, k, of_w2(w), of_y2(y)
    )


def nothing(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """No outputs."""


def no_terms(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """K = 0 and no bias."""
    y.zero_()


def _bias_alone(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """K = 0: +0 and the bias."""
    y.copy_((bias.float() + 0.0).expand_as(y))
