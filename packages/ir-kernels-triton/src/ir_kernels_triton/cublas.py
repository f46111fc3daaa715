# SPDX-License-Identifier: Apache-2.0
"""linear by cuBLASLt, where it was seen to have the order's bits and to be faster. Provider ``cublas``.

A library's kernel proves nothing by its name. So a plan (one algorithm, for one kind of call: rows, N, K, dtype, bias,
strides) is used only after it was compared with the Triton kernels on this device, bit by bit, at these very numbers
of rows, on random operands and on operands of widely spread exponents, which tell orders apart. The comparison is
made when a kind of call is first seen, outside of a CUDA graph's capture, and takes some ten milliseconds; the fastest
of the plans that pass is kept for the life of the process, if it beats the Triton kernel. A kind of call that is first
seen in a capture, that is not aligned, or of which no plan passes, runs the Triton kernels: the same bits.

Nothing is stored beyond the process: another cuBLAS, driver or device is another process.

In batch-invariant mode selection takes this provider for more than a few rows where certificates of the device say
that it and ``triton_batch_invariant`` have the order (``predicates.many_rows``); else where a policy names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ir_kernels_triton import cublas_lt, linear
from ir_kernels_triton.predicates import FROM_ROWS

MOST_KINDS: Final = 4096
"""Kinds of calls that are looked at; further ones run the Triton kernels. Each length of a prompt is one."""
REPEATS: Final = (3, 20)
"""Launches that are timed together: fewer of a long one."""
ENOUGH: Final = 0.5
"""Milliseconds of launches that are timed."""
HOLD: Final = 1_000_000
"""Cycles, about 0.5 ms: as long as a host takes for so many launches."""
STRETCH: Final = 1 << 24
"""Elements of an operand that are made at once, by way of wider types."""


def linear_chain16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the order of x's dtype; see :func:`ir_core.ops.linear`."""
    shape = x.shape
    if len(shape) == 2 and shape[0] >= FROM_ROWS and x.is_cuda and x.element_size() == 2:
        key = (
            shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype, bias is not None,
            (x.data_ptr() | weight.data_ptr()) & 15 == 0, x.get_device(),
        )  # fmt: skip
        run = _CHOSEN.get(key, _unknown)
        if run is _unknown and len(_CHOSEN) < MOST_KINDS and not torch.cuda.is_current_stream_capturing():
            run = _CHOSEN[key] = _choose(x, weight, bias)
        if run is not None and run is not _unknown:
            if bias is not None:
                linear.check(x, weight, bias)
                bias = bias.contiguous()
            y = torch.empty((shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
            with torch.cuda.device(x.device):
                run(x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr())
            return y
    elif len(shape) > 2 and x.is_cuda:
        linear.check(x, weight, bias)
        flat = x.reshape(-1, shape[-1]) if shape[-1] else x.reshape(shape[:-1].numel(), 0)
        return linear_chain16(flat, weight, bias).view(*shape[:-1], weight.shape[0])
    return linear.linear_batch_invariant(x, weight, bias)


Run = Callable[[int, int, int, int], None]


def _unknown(x: int, weight: int, bias: int, y: int) -> None:
    """Stands for a kind of call that was not looked at yet."""


_CHOSEN: dict[tuple[object, ...], Run | None] = {}


def _choose(x: Tensor, weight: Tensor, bias: Tensor | None) -> Run | None:
    """The fastest plan with the order's bits, or None where the Triton kernels run."""
    linear.check(x, weight, bias)
    if not linear.aligned(x) or not linear.aligned(weight) or weight.shape[0] % 8 or not x.numel():
        return None
    try:
        return _fastest(x, weight, bias)
    except torch.cuda.OutOfMemoryError:  # the comparison needs the operands twice more
        return None


def _fastest(x: Tensor, weight: Tensor, bias: Tensor | None) -> Run | None:
    with torch.cuda.device(x.device), torch.no_grad():
        tests = [_operands(x, weight, bias, spread) for spread in (0, 12)]
        wanted = [linear.linear_batch_invariant(*operands) for operands in tests]
        y = torch.empty_like(wanted[0])
        try:
            plan = cublas_lt.Plan(x, weight, y, bias=bias is not None)
        except cublas_lt.CublasError:
            return None
        passed = [run for run in map(plan.runner, plan.offers) if _has_bits(run, tests, wanted, y)]
        if not passed:
            return None
        best = _milliseconds(lambda: linear.linear_batch_invariant(*tests[0]))
        chosen: Run | None = None
        addresses = _addresses(tests[0], y)
        for run in passed:
            if (took := _milliseconds(lambda run=run: run(*addresses))) < best:  # type: ignore[misc]
                best, chosen = took, run
        return chosen


def _operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, spread: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random operands with the strides of a call; exponents spread over ``2**-spread`` to ``2**spread``."""
    made = []
    generator = torch.Generator(x.device).manual_seed(16)
    for like in (x, weight):
        operand = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=x.device)
        for part in operand.split(max(STRETCH // like.shape[1], 1)):
            values = torch.randn(part.shape, device=x.device, generator=generator)
            if spread:
                values *= torch.exp2(
                    torch.empty_like(values).random_(-spread, spread + 1, generator=generator)
                )
            part.copy_(values)
        made.append(operand)
    third = (
        None if bias is None else torch.randn(bias.shape, device=x.device, generator=generator).to(bias.dtype)
    )
    return made[0], made[1], third


def _addresses(operands: tuple[Tensor, Tensor, Tensor | None], y: Tensor) -> tuple[int, int, int, int]:
    x, weight, bias = operands
    return x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()


def _has_bits(
    run: Run, tests: list[tuple[Tensor, Tensor, Tensor | None]], wanted: list[Tensor], y: Tensor
) -> bool:
    for operands, want in zip(tests, wanted, strict=True):
        y.fill_(torch.nan)
        try:
            run(*_addresses(operands, y))
        except cublas_lt.CublasError:
            return False
        if not torch.equal(y.view(torch.int16), want.view(torch.int16)):
            return False
    return True


def _milliseconds(call: Callable[[], object]) -> float:
    """Of one of some calls in a row, on the device: it is held up until the host has queued them all."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    took = ENOUGH
    for turn in range(2):  # the first for one call: its time says how many are timed
        count = min(max(math.ceil(ENOUGH / max(took, 1e-3)), REPEATS[0]), REPEATS[1]) if turn else 1
        torch.cuda._sleep(HOLD)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        took = float(begin.elapsed_time(end)) / count
    return took
