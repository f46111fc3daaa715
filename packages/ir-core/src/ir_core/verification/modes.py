# SPDX-License-Identifier: Apache-2.0
"""How a call can run: as it stands, in place, through the compiler, in a CUDA graph.

``eager``           the implementation's function
``functional``      with copies of what it would overwrite
``inference``       under ``torch.inference_mode``, as vLLM runs; the arguments are inference tensors
``grad``            with gradients recorded and wanted of the activations (every other mode runs without)
``autocast``        under ``torch.autocast`` to bfloat16 (float16 where the rows are that)
``deterministic``   with ``torch.use_deterministic_algorithms``, which also fills new memory with NaN
``op``              the torch op that a lowered graph calls
``op_compiled``     that op inside a graph made by ``torch.compile``
``op_dynamic``      the same with the number of rows left open
``traced``          the compiler looks into the function (implementations that are not opaque)
``traced_dynamic``  the same with the number of rows left open
``inductor``        ``op_compiled`` through Inductor
``graph``           captured in a CUDA graph and replayed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from ir_core import torch_library
from ir_core.errors import CertificateError

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl

# Dynamo counts graphs by code object, and the torch ops of all implementations are called through one of its own. A
# few shapes and dtypes, static and dynamic, of a hundred implementations; beyond the limit Dynamo would give up.
_GRAPHS: Final = 4096

AMBIENT: Final = ("inference", "grad", "autocast", "deterministic")
"""Modes of torch that surround a call."""


def runner(impl: IrOpImpl, mode: str) -> Callable[[list[Any]], Any]:
    """The function that runs arguments in this mode.

    Raises:
        CertificateError: there is no such mode.
    """
    overload = torch_library.of(impl.op).provider(impl.provider)
    plain: dict[str, Callable[[list[Any]], Any]] = {
        "eager": lambda args: impl.impl_fn(*args),
        "functional": lambda args: impl.func_impl_fn(*args),
        "op": lambda args: overload(*args),
        "inference": lambda args: _inference(impl, args),
        "grad": lambda args: _grad(impl, args),
        "autocast": lambda args: _autocast(impl, args),
        "deterministic": lambda args: _deterministic(impl, args),
        "graph": lambda args: _graphed(impl, args),
    }
    if mode in plain:
        return plain[mode]
    compiled: dict[str, tuple[Callable[..., Any], str, bool]] = {
        "op_compiled": (overload, "aot_eager", False),
        "op_dynamic": (overload, "aot_eager", True),
        "inductor": (overload, "inductor", False),
        "traced": (impl.func_impl_fn if impl.inplace else impl.impl_fn, "aot_eager", False),
        "traced_dynamic": (impl.func_impl_fn if impl.inplace else impl.impl_fn, "aot_eager", True),
    }
    if mode not in compiled:
        raise CertificateError(
            f"There is no mode '{mode}'.", why=f"There are {', '.join((*plain, *compiled))}."
        )
    return _compiled(*compiled[mode])


def _inference(impl: IrOpImpl, args: list[Any]) -> Any:
    with torch.inference_mode():
        return impl.func_impl_fn(
            *(a.clone(memory_format=torch.preserve_format) if _is(a) else a for a in args)
        )


def _grad(impl: IrOpImpl, args: list[Any]) -> Any:
    with torch.enable_grad():
        for position in impl.op.activation_indices:
            if _is(args[position]) and args[position].dtype.is_floating_point:
                args[position].requires_grad_()
        return impl.func_impl_fn(*args)


def _autocast(impl: IrOpImpl, args: list[Any]) -> Any:
    first = next(a for a in args if _is(a))
    narrow = first.dtype if first.dtype == torch.float16 else torch.bfloat16
    with torch.autocast(first.device.type, narrow):
        return impl.func_impl_fn(*args)


def _deterministic(impl: IrOpImpl, args: list[Any]) -> Any:
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        return impl.func_impl_fn(*args)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _compiled(fn: Callable[..., Any], backend: str, dynamic: bool) -> Callable[[list[Any]], Any]:
    import torch._dynamo.config as dynamo

    graph = torch.compile(fn, fullgraph=True, backend=backend, dynamic=dynamic)

    def run(args: list[Any]) -> Any:
        with dynamo.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS * 64), torch.no_grad():
            return graph(*args)

    return run


def _graphed(impl: IrOpImpl, args: list[Any]) -> Any:
    """Warm up on a side stream as CUDA graphs ask for, capture, replay once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        impl.func_impl_fn(*args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = impl.func_impl_fn(*args)
    graph.replay()
    torch.cuda.synchronize()
    return results
