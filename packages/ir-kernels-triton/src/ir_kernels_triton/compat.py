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

from ir_kernels_triton.arguments import Arrangement, Launch
from ir_kernels_triton.kernel_spec import KernelSpec

logger = logging.getLogger(__name__)


def jit_function(spec: KernelSpec) -> Any:
    """The ``triton.jit`` function of a spec, or its interpreted form."""
    return getattr(importlib.import_module(spec.module), spec.kernel)


def is_interpreted(fn: Any) -> bool:
    """Whether Triton interprets this kernel.

    Triton reads TRITON_INTERPRET when it decorates a kernel, so the kernel itself is asked: no second parser of the
    variable can come to another answer.
    """
    return not isinstance(fn, JITFunction)


def source(spec: KernelSpec) -> ASTSource:
    """What the compiler compiles: the same for every call, every device and the static proof."""
    signature = dict(spec.signature) | {name: "constexpr" for name, _ in spec.constants}
    fn = jit_function(spec)
    kind: Any = ASTSource
    if getattr(fn, "is_gluon", bool)():  # a kernel with explicit layouts
        kind = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource
    return kind(fn, {name: signature[name] for name in fn.arg_names}, dict(spec.constants), {})


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
    """Whether a call gives addresses of tensors as integers; the tensors themselves otherwise."""

    def __init__(self, spec: KernelSpec) -> None:
        self._fn = jit_function(spec)
        self._kwargs = dict(spec.constants)
        if not is_interpreted(self._fn):
            self._kwargs |= spec.options()
        elif "INTERPRET" in self._kwargs:
            self._kwargs["INTERPRET"] = True

    def prepare(self, arrange: Arrangement, device: int) -> Launch:
        """A launch of which all but the arguments that change are known; ``device`` is the current one."""
        return arrange.function(
            ["$fn[(programs,)]({arguments}, **$kwargs)"], {"fn": self._fn, "kwargs": self._kwargs}
        )


def _hook(chain: Any) -> Any:
    """A profiler's hook, or None for an empty chain of them, so that a plain launch calls nothing."""
    return None if chain is None or not getattr(chain, "calls", True) else chain


class DirectLaunch:
    """Launch through the compiled kernel's own launcher, with pointers as integers."""

    takes_pointers = True
    __slots__ = ("_constants", "_function", "_kernel", "_knobs", "_lean", "_metadata", "_run", "_stream")

    def __init__(self, spec: KernelSpec) -> None:
        """Compile for the current device and load; raises AttributeError when the internals have moved."""
        driver = triton.runtime.driver.active
        self._kernel = compile_for(spec, driver.get_current_target())
        self._run = self._kernel.run
        self._function = self._kernel.function
        self._metadata = self._kernel.packed_metadata
        self._knobs = triton.knobs.runtime
        self._stream = torch._C._cuda_getCurrentRawStream
        constants = dict(spec.constants)  # ``run`` counts them among the arguments, and skips them
        self._constants = tuple(
            constants[name] for name in jit_function(spec).arg_names[len(spec.signature) :]
        )
        self._lean = _without_constants(driver, spec, self._kernel.metadata)
        _hook(self._knobs.launch_enter_hook), _hook(self._knobs.launch_exit_hook)

    def _complete(self, programs: int, device: int, args: tuple[Any, ...]) -> None:
        """Launch with scratch memory and a profiler's hooks, as Triton itself would."""
        stream, args, about = self._stream(device), args + self._constants, None
        enter, leave = _hook(self._knobs.launch_enter_hook), _hook(self._knobs.launch_exit_hook)
        if enter is not None:
            about = self._kernel.launch_metadata((programs, 1, 1), stream, *args)
        self._run(programs, 1, 1, stream, self._function, self._metadata, about, enter, leave, *args)

    def prepare(self, arrange: Arrangement, device: int) -> Launch:
        """A launch of which all but the arguments that change are known; ``device`` is the current one.

        ``CompiledKernel.run`` is a launcher in Python around one in C. While it would do nothing but pass on what it
        has (no scratch memory, no profiler's hook), the one in C is called, made for the runtime arguments alone: to
        pass on as many constants, and skip them, takes it 0.4 us.
        """
        lean = self._lean
        space = {
            "c": _c_launcher(lean),
            "complete": self._complete,
            "device": device,
            "function": self._function,
            "hook": _hook,
            "knobs": self._knobs,
            "metadata": self._metadata,
            "stream": self._stream,
        }
        complete = "$complete(programs, $device, ({arguments},))"
        if space["c"] is None:
            return arrange.function([complete], space)
        space |= {"cooperative": lean.launch_cooperative_grid, "dependent": lean.launch_pdl}
        start = "$c(programs, 1, 1, $stream($device), $function, $cooperative, $dependent"
        if hasattr(
            lean, "kernel_signature"
        ):  # Triton 3.7: one launcher for all kernels, which takes their description
            space |= {"annotations": lean.arg_annotations, "signature": lean.kernel_signature}
            direct = f"{start}, $metadata, None, None, None, None, None, $annotations, $signature, ({{arguments}},))"
        else:  # Triton 3.6: one for each signature, which takes the arguments one by one
            direct = f"{start}, None, None, $metadata, None, None, None, {{arguments}})"
        return arrange.function(
            [
                "try:",
                "    $plain = not ($knobs.launch_enter_hook.calls or $knobs.launch_exit_hook.calls)",
                "except AttributeError:  # a plain function, or None",
                "    $plain = $hook($knobs.launch_enter_hook) is $hook($knobs.launch_exit_hook) is None",
                "if $plain:",
                f"    {direct}",
                "else:",
                f"    {complete}",
            ],
            space,
        )


def _without_constants(driver: Any, spec: KernelSpec, metadata: Any) -> Any:
    """Triton's launcher for a compiled kernel that takes the runtime arguments alone."""
    source = SimpleNamespace(fn=jit_function(spec), constants={}, signature=dict(spec.signature))
    return driver.launcher_cls(source, metadata)


def _c_launcher(run: Any) -> Callable[..., None] | None:
    """Triton's launcher in C; None where it is not known, or the kernel needs scratch memory at each launch."""
    if not all(hasattr(run, name) for name in ("launch", "global_scratch_size", "profile_scratch_size")):
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    return run.launch  # type: ignore[no-any-return]


def launch(spec: KernelSpec) -> SlowLaunch | DirectLaunch:
    """Compile a spec for the current device."""
    if is_interpreted(jit_function(spec)):
        return SlowLaunch(spec)
    try:
        return DirectLaunch(spec)
    except (AttributeError, TypeError) as error:
        _complain(f"{type(error).__name__}: {error}")
        return SlowLaunch(spec)


class Described:
    """What a launch reads of a tensor descriptor: Triton's own checks, at each call, what is checked once here."""

    __slots__ = ("base", "padding", "round_f32_to_tf32", "shape", "strides")

    def __init__(self, base: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.base, self.shape, self.strides = base, shape, strides
        self.padding, self.round_f32_to_tf32 = "zero", False


def descriptor(kernel: Any, shape: tuple[int, ...], strides: tuple[int, ...], block: list[int]) -> Any:
    """``describe(tensor)``: what a launch of ``kernel`` takes for a tensor descriptor of blocks of this shape."""
    if kernel.takes_pointers:
        return lambda base: Described(base, shape, strides)
    from triton.tools.tensor_descriptor import TensorDescriptor

    return lambda base: TensorDescriptor(base, list(shape), list(strides), block)


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
