# SPDX-License-Identifier: Apache-2.0
"""How a call can run: as it stands, in place, through the compiler, in a CUDA graph.

``eager``           the implementation's function
``functional``      with copies of what it would overwrite
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

from ir_core.errors import CertificateError

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl

Run = "Callable[[list[Any]], Any]"

# Graphs of one implementation: a few shapes and dtypes, static and dynamic. Beyond the limit Dynamo would give up.
_GRAPHS: Final = 64


def runner(impl: IrOpImpl, mode: str) -> Callable[[list[Any]], Any]:
    """The function that runs arguments in this mode.

    Raises:
        CertificateError: there is no such mode.
    """
    overload = impl.op._library.provider(impl.provider)
    plain: dict[str, Callable[[list[Any]], Any]] = {
        "eager": lambda args: impl.impl_fn(*args),
        "functional": lambda args: impl.func_impl_fn(*args),
        "op": lambda args: overload(*args),
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
