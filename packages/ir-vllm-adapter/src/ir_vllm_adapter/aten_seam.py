# SPDX-License-Identifier: Apache-2.0
"""The ATen seam (all versions): what stands behind the ATen ops that vLLM overrides in batch-invariant mode.

=============================  ==========================  ====================================================
function of vLLM's             op of ir-core               behind which ATen ops
=============================  ==========================  ====================================================
``matmul_persistent``          ``linear``                  mm, addmm, matmul, linear (SM 8.x; Hopper keeps cuBLAS)
``bmm_batch_invariant``        ``bmm``                     bmm
``log_softmax``                ``log_softmax``             _log_softmax: the logprobs of the sampler
``softmax_batch_invariant``    ``softmax``                 softmax, _softmax
``mean_dim``                   ``mean``                    mean.dim
=============================  ==========================  ====================================================

vLLM gives ATen these functions of one module of its own when a worker's device is set up. They are replaced before
that, so that vLLM registers ours, on its own keys and for its own devices; nothing is registered here. An op that
ir-core does not have is left alone, and so is a dtype for which it would be slower (``takeover.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from ir_vllm_adapter import compat, graph_ops, takeover
from ir_vllm_adapter.attachment import ATTACHED
from ir_vllm_adapter.counters import CALLS

Call = Callable[..., Any]


def _matmul(op: Call, a: Any, b: Any, bias: Any = None) -> Any:
    """``matmul_persistent``: a ``[M, K]``, b ``[K, N]``, any strides."""
    return op(a, b.t(), bias)


def _bmm(op: Call, a: Any, b: Any, *, out: Any = None) -> Any:
    """``bmm_batch_invariant``: a ``[B, M, K]``, b ``[B, K, N]``."""
    found = op(a, b.transpose(1, 2))
    return found if out is None else out.copy_(found)


def _log_softmax(op: Call, x: Any, dim: int = -1) -> Any:
    """``log_softmax``."""
    return _over(op, x, dim)


def _softmax(op: Call, x: Any, dim: int, more: Any = None) -> Any:
    """``softmax_batch_invariant``: ATen passes a dtype (softmax) or whether to convert to float32 (_softmax)."""
    if more:
        x = x.float() if more is True else x.to(more)
    return _over(op, x, dim)


def _mean(op: Call, x: Any, dim: int, keepdim: bool = False, dtype: Any = None) -> Any:
    """``mean_dim``: one dimension."""
    if dtype is not None:
        x = x.to(dtype)
    found = op(x.movedim(dim, -1).contiguous())
    return found.unsqueeze(dim % x.dim()) if keepdim else found


def _over(op: Call, x: Any, dim: int) -> Any:
    """An op over the last dimension, over another one."""
    if dim in (-1, x.dim() - 1):
        return op(x)
    return op(x.movedim(dim, -1).contiguous()).movedim(-1, dim).contiguous()


POINTS: Final[dict[str, tuple[str, Call]]] = {
    "matmul_persistent": ("linear", _matmul),
    "bmm_batch_invariant": ("bmm", _bmm),
    "log_softmax": ("log_softmax", _log_softmax),
    "softmax_batch_invariant": ("softmax", _softmax),
    "mean_dim": ("mean", _mean),
}
"""Functions of vLLM's module, the ops of ir-core behind them, and how a call becomes one of the op's."""

REGISTERED: Final = frozenset({"bmm_batch_invariant", "softmax_batch_invariant"})
"""Those that ATen holds itself; the others are called by what it holds."""


def install() -> None:
    """Stand behind vLLM's overrides, before it makes them. Idempotent."""
    module = compat.batch_invariant_module()
    if module is None:
        return
    late = compat.reductions_overridden()
    for name, (op_name, call) in POINTS.items():
        if late and name in REGISTERED:
            continue  # ATen has vLLM's function already
        found = _decision(op_name)
        if found is None:
            continue
        if found.runs and ATTACHED.wrap(module, name, functools.partial(_around, op_name, call, found)):
            found = found.at(f"{module.__name__}.{name}")
        ATTACHED.takeovers[op_name] = found


def _decision(name: str) -> takeover.Takeover | None:
    """What is taken over of an op; ``None`` where ir-core has no such op or nothing was asked for."""
    from ir_core import get_op
    from ir_core.catalog import op_names

    if name in ATTACHED.takeovers:
        return ATTACHED.takeovers[name]
    if name not in op_names() or not takeover.wanted(name):
        return None
    return takeover.decide(get_op(name), _samples(name))


def _samples(name: str) -> list[tuple[Any, ...]]:
    """Complete arguments of a call for each dtype."""
    import torch

    from ir_core import get_op

    shapes = {"linear": ((1, 64), (8, 64)), "bmm": ((2, 1, 64), (2, 8, 64))}.get(name, ((1, 64),))
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    given = [tuple(torch.empty(shape, dtype=dtype) for shape in shapes) for dtype in dtypes]
    return [get_op(name).apply_arg_defaults(args) for args in given]


def _around(name: str, call: Call, found: takeover.Takeover, original: Call) -> Call:
    """A function of vLLM's, with ir-core's op in place of its kernel."""
    import torch

    from ir_core import get_op

    op = get_op(name)
    in_graph, node = torch.compiler.is_compiling, graph_ops.selecting(op)
    key = f"aten:{name}/selected at the call"
    runs = takeover.dtypes_of(found)

    def counted(*args: Any) -> Any:
        CALLS[key] += 1
        return op(*args)

    eager = takeover.once(functools.partial(call, counted), original)

    def stands_behind(x: Any, *args: Any, **kwargs: Any) -> Any:
        # ATen keeps what it was given: once taken back, the call goes to vLLM's own.
        if x.dtype not in runs or name not in ATTACHED.takeovers:
            return original(x, *args, **kwargs)
        return call(node, x, *args, **kwargs) if in_graph() else eager(x, *args, **kwargs)

    return stands_behind
