# SPDX-License-Identifier: Apache-2.0
"""The one place that knows internals of Triton (3.6 and 3.7) and torch: compile a kernel, and launch it without the
JIT's binder.

``kernel[grid](...)`` binds, specialises and hashes every argument at every call. A compiled kernel's own ``run`` takes
the grid, the stream and the arguments. If a Triton release moves it, the launch falls back to ``kernel[grid]`` and
says so once in the log: slower by some microseconds, the same bits.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ir_kernels_triton.launch_config import KernelSpec

logger = logging.getLogger(__name__)

Launch = Callable[[int, int, tuple[Any, ...]], None]
"""``launch(programs, device index, runtime arguments)``; ``takes_pointers``: pointers are integers, else tensors."""


def jit_function(spec: KernelSpec) -> Any:
    """The ``triton.jit`` function of a spec (its interpreted form under TRITON_INTERPRET=1)."""
    return getattr(importlib.import_module(spec.module), spec.kernel)


def is_interpreted(fn: Any) -> bool:
    """Whether Triton interprets this kernel; decided when the kernel's module was imported."""
    return not isinstance(fn, JITFunction)


def source(spec: KernelSpec) -> ASTSource:
    """What the compiler compiles: the same for every call, every device and the static proof."""
    signature = dict(spec.signature) | {name: "constexpr" for name, _ in spec.constants}
    fn = jit_function(spec)
    return ASTSource(fn, {name: signature[name] for name in fn.arg_names}, dict(spec.constants), {})


def compile_for(spec: KernelSpec, target: Any) -> Any:
    """Compile a spec for ``target`` (a ``GPUTarget``); needs no GPU."""
    return triton.compile(source(spec), target=target, options=spec.options())


_complained = False


def _complain(why: str) -> None:
    global _complained
    if not _complained:
        _complained = True
        logger.warning(
            "Triton %s has another launch interface than the one known here (%s): kernels go through kernel[grid], "
            "which costs several microseconds more a call. Bits are the same.",
            triton.__version__,
            why,
        )


class SlowLaunch:
    """Launch through ``kernel[grid]``: the interpreter, and Triton releases whose internals are not known."""

    takes_pointers = False

    def __init__(self, spec: KernelSpec) -> None:
        self._fn = jit_function(spec)
        self._kwargs = dict(spec.constants)
        if not is_interpreted(self._fn):
            self._kwargs |= spec.options()

    def __call__(self, programs: int, device: int, args: tuple[Any, ...]) -> None:
        self._fn[(programs,)](*args, **self._kwargs)


def _hook(chain: Any) -> Any:
    """A profiler's hook, or None for an empty chain of them, so that a plain launch calls nothing."""
    return None if chain is None or not getattr(chain, "calls", True) else chain


class DirectLaunch:
    """Launch through the compiled kernel's own launcher, with pointers as integers."""

    takes_pointers = True
    __slots__ = ("_function", "_kernel", "_knobs", "_lean", "_metadata", "_run", "_stream", "_tail")

    def __init__(self, spec: KernelSpec) -> None:
        """Compile for the current device and load; raises AttributeError when the internals have moved."""
        driver = triton.runtime.driver.active
        self._kernel = compile_for(spec, driver.get_current_target())
        self._run = self._kernel.run
        self._function = self._kernel.function
        self._metadata = self._kernel.packed_metadata
        self._knobs = triton.knobs.runtime
        self._stream = torch._C._cuda_getCurrentRawStream
        constants = dict(spec.constants)  # the launcher counts them among the arguments, and skips them
        self._tail = tuple(constants[name] for name in jit_function(spec).arg_names[len(spec.signature) :])
        self._lean = _without_constants(driver, spec, self._kernel.metadata)
        _hook(self._knobs.launch_enter_hook), _hook(self._knobs.launch_exit_hook)

    def __call__(self, programs: int, device: int, args: tuple[Any, ...]) -> None:
        stream, args, about = self._stream(device), args + self._tail, None
        enter, leave = _hook(self._knobs.launch_enter_hook), _hook(self._knobs.launch_exit_hook)
        if enter is not None:
            about = self._kernel.launch_metadata((programs, 1, 1), stream, *args)
        self._run(programs, 1, 1, stream, self._function, self._metadata, about, enter, leave, *args)

    def short(self, rows: int, device: int) -> Callable[[int, tuple[Any, ...]], None]:
        """``launch(number of rows, runtime arguments)`` on ``device``, ``rows`` of them a program: the shortest way.

        ``CompiledKernel.run`` is a launcher in Python around one in C. While it would do nothing but pass on what it
        has (no scratch memory, no profiler's hook), the one in C is called, made for the runtime arguments alone: to
        pass on as many constants, and skip them, takes it 0.4 us.
        """
        c, before, about = _c_launcher(self._lean, self._function, self._metadata)
        knobs, stream = self._knobs, self._stream

        def launch(number: int, args: tuple[Any, ...]) -> None:
            try:
                hooked = knobs.launch_enter_hook.calls or knobs.launch_exit_hook.calls
            except AttributeError:  # a plain function, or None
                hooked = True
            if hooked or c is None:
                self((number + rows - 1) // rows, device, args)
            elif about is None:
                c((number + rows - 1) // rows, 1, 1, stream(device), *before, *args)
            else:
                c((number + rows - 1) // rows, 1, 1, stream(device), *before, *about, args)

        return launch


def _without_constants(driver: Any, spec: KernelSpec, metadata: Any) -> Any:
    """Triton's launcher for a compiled kernel that takes the runtime arguments alone."""
    source = SimpleNamespace(fn=jit_function(spec), constants={}, signature=dict(spec.signature))
    return driver.launcher_cls(source, metadata)


def _c_launcher(
    run: Any, function: int, metadata: Any
) -> tuple[Callable[..., None] | None, tuple[Any, ...], tuple[Any, ...] | None]:
    """Triton's launcher in C, what stands between the stream and the kernel's arguments, and how it learns of these.

    Triton 3.6 makes a launcher for each signature and takes the arguments one by one (the last value is None); 3.7 has
    one for all, which takes a description of them and one tuple. Nothing for a kernel that needs more than a call.
    """
    none = None, (), None
    if not all(hasattr(run, name) for name in ("launch", "global_scratch_size", "profile_scratch_size")):
        return none
    if run.global_scratch_size or run.profile_scratch_size:
        return none
    flags = function, run.launch_cooperative_grid, run.launch_pdl
    if hasattr(run, "kernel_signature"):
        return (
            run.launch,
            (*flags, metadata, None, None, None, None, None),
            (run.arg_annotations, run.kernel_signature),
        )
    return run.launch, (*flags, None, None, metadata, None, None, None), None


def launch(spec: KernelSpec) -> SlowLaunch | DirectLaunch:
    """Prepare a spec for the current device."""
    if is_interpreted(jit_function(spec)):
        return SlowLaunch(spec)
    try:
        return DirectLaunch(spec)
    except (AttributeError, TypeError) as error:
        _complain(f"{type(error).__name__}: {error}")
        return SlowLaunch(spec)


def empty_strided(
    device: torch.device,
) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]:
    """``empty(sizes, strides, dtype)`` on ``device``, which is the current one when it is called.

    The function that Inductor's generated code allocates with, where this torch has it: half of what
    ``torch.empty_like`` takes.
    """
    if device.type == "cuda":
        try:
            guards = importlib.import_module("torch._C._dynamo.guards")
        except ImportError:
            guards = None
        if found := getattr(guards, "_empty_strided_cuda", None):
            return found  # type: ignore[no-any-return]
    return lambda sizes, strides, dtype: torch.empty_strided(sizes, strides, dtype=dtype, device=device)
