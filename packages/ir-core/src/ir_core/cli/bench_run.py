# SPDX-License-Identifier: Apache-2.0
"""Timing: each implementation of an op on one device, and the device's own copy of as many bytes beside it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from importlib_metadata import PackageNotFoundError, version
from torch import Tensor

from ir_core import catalog, platforms
from ir_core.errors import IrError
from ir_core.op import get_op

if TYPE_CHECKING:
    from ir_core.op import IrOp

COLD: Final = 1 << 30
"""Bytes written between two calls on an accelerator: none finds its inputs in a cache (H100: 50 MB), and the 0.3 ms
that it takes let the host get ahead, so that launches are not in the numbers."""


def run(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: str,
    providers: Sequence[str] | None,
    seconds: float,
    advance: Callable[..., None],
) -> dict[str, Any]:
    """Time the implementations of one op; those that refuse the arguments are listed with their reason.

    Raises:
        UnknownProviderError: one of ``providers`` is none of the op's.
        IrError: the op has no input generator.
    """
    op = get_op(name)
    names = list(providers or op.impls)
    for provider in names:
        if provider not in op.impls:
            raise catalog.unknown_provider(op, provider)
    target = platforms.target_of(torch.device(device))
    cases: list[dict[str, Any]] = []
    for shape in shapes:
        args = arguments(op, shape, dtype, device)
        moved = sum(tensor.nbytes for tensor in tensors(args)) + sum(
            tensor.nbytes for tensor in tensors(_outputs(op.impls["native"].func_impl_fn(*args)))
        )
        copy = copy_time(moved, device, seconds)
        for provider in names:
            advance(f"{provider} {'x'.join(map(str, shape))}")
            case: dict[str, Any] = {"shape": list(shape), "provider": provider, "bytes": moved}
            impl = op.impls[provider]
            reason = why_not(op, provider, target, args)
            if reason is None:
                times = measure(lambda impl=impl, args=args: impl.impl_fn(*args), device, seconds)  # type: ignore[misc]
                middle = statistics.median(times)
                case |= {
                    "microseconds": middle * 1e6,
                    "spread": (max(times) - min(times)) / middle if len(times) < 4 else spread(times),
                    "samples": len(times),
                    "gigabytes_per_second": moved / middle / 1e9,
                    "copy_gigabytes_per_second": moved / copy / 1e9,
                    "share_of_copy": copy / middle,
                }
            else:
                case["reason"] = reason
            cases.append(case)
    notes = []
    if "triton_interpreter" in target.features and target.kind == "cpu":
        notes.append("Triton's implementations ran in its interpreter: their times say nothing about a GPU.")
    return {
        "op": name,
        "dtype": str(dtype).removeprefix("torch."),
        "machine": machine(target.describe()),
        "cases": cases,
        "notes": notes,
    }


def arguments(op: IrOp, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Arguments from the op's input generator, their activations reshaped to ``shape``.

    Raises:
        IrError: the op has no input generator, or it makes nothing of this dtype.
    """
    rows = 1
    for size in shape[:-1]:
        rows *= size
    try:
        with torch.device(device):
            made = op.generate_inputs(num_tokens=rows, hidden_size=shape[-1], dtype=dtype)
    except IrError:
        raise
    except Exception as error:
        raise IrError(
            f"The input generator of {op.name} makes no {str(dtype).removeprefix('torch.')} inputs of that shape.",
            why=f"{type(error).__name__}: {error}",
            fix="Choose another --dtype or --shape.",
        ) from error
    return tuple(
        arg.reshape(*shape[:-1], arg.shape[-1]) if i in op.activation_indices else arg
        for i, arg in enumerate(op.apply_arg_defaults(made))
    )


def why_not(op: IrOp, provider: str, target: Any, args: tuple[Any, ...]) -> str | None:
    """Why an implementation cannot run on these arguments, or ``None``."""
    impl = op.impls[provider]
    try:
        if not (verdict := impl.requires.check(target)):
            return str(verdict)
        impl.load()
        return impl.refusal(args, [])
    except IrError as error:
        return error.what


def measure(call: Callable[[], object], device: str, seconds: float) -> list[float]:
    """Seconds a call, sampled for about ``seconds``; a call on an accelerator begins with cold caches."""
    call()  # compile, allocate
    if not device.startswith("cuda"):
        return _measure_here(call, seconds)
    cold = torch.empty(COLD, dtype=torch.int8, device=device)
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 5 or time.perf_counter() < deadline:
        pairs = []
        for _ in range(10):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cold.zero_()  # also keeps the device busy while the host gets ahead of it
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize(device)
        samples += [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
    return samples


def _measure_here(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds a call on the CPU; short calls are timed in blocks of about a millisecond."""
    # torch.utils.benchmark would do the same, and imports numpy, which ir-core does not depend on.
    samples: list[float] = []
    block = 1
    deadline = time.perf_counter() + seconds
    while not samples or time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(block):
            call()
        once = (time.perf_counter() - start) / block
        if once * block < 5e-4:
            block *= 2
            continue
        samples.append(once)
    return samples


def spread(times: list[float]) -> float:
    """Distance between the quartiles over the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def copy_time(moved: int, device: str, seconds: float) -> float:
    """Seconds that the device's own copy takes to read and write ``moved`` bytes in total."""
    source = torch.empty(max(moved // 2, 1), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return statistics.median(measure(lambda: target.copy_(source), device, seconds))


def tensors(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among some values."""
    return [value for value in values if isinstance(value, Tensor)]


def _outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def machine(target: str) -> dict[str, Any]:
    """What the numbers depend on."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return {
        "target": target,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
    }
