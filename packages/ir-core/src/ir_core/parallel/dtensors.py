# SPDX-License-Identifier: Apache-2.0
"""DTensor's row- and column-wise plans with an ordered sum.

torch's own plans multiply local shards, round, and turn the partial results into whole ones by an all-reduce in the
model's dtype. Nothing below ``F.linear`` can put that right, since the rounding comes first. So the whole layer is
computed here: either in a module of ours (the styles), or where ``F.linear`` meets DTensors (:class:`OrderedPlans`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel as _Colwise
from torch.distributed.tensor.parallel import RowwiseParallel as _Rowwise
from torch.overrides import TorchFunctionMode

from ir_core.errors import ArgumentError
from ir_core.parallel.linears import column_parallel_linear, row_parallel_linear


def linear_of_dtensors(x: DTensor, weight: DTensor, bias: DTensor | None = None) -> DTensor:
    """``F.linear`` of DTensors on a mesh of one dimension, with bits that do not depend on its size.

    =============  =================  ==============  ====================================================
    ``weight``     ``x``              ``bias``        result
    =============  =================  ==============  ====================================================
    ``Shard(1)``   last dimension     ``Replicate``   ``Replicate``: the sum over ranks is done, in order
    ``Shard(0)``   ``Replicate``      ``Shard(0)``    sharded in the last dimension
    =============  =================  ==============  ====================================================

    Raises:
        ArgumentError: other placements, a mesh of more dimensions, or not 1, 2, 4 or 8 ranks.
    """
    mesh = weight.device_mesh if isinstance(weight, DTensor) else None
    if mesh is None or mesh.ndim != 1 or not isinstance(x, DTensor) or x.device_mesh != mesh:
        raise _refused(x, weight, bias)
    last = (Shard(x.ndim - 1), Shard(-1))
    (of_weight,), (of_x,) = weight.placements, x.placements
    of_bias = None if bias is None else bias.placements[0] if isinstance(bias, DTensor) else Replicate()
    group = mesh.get_group()
    local_weight = weight.to_local()
    local_bias = bias.to_local() if isinstance(bias, DTensor) else bias
    if of_weight == Shard(1) and of_x in last and of_bias in (None, Replicate()):
        y = row_parallel_linear(x.to_local(), local_weight, local_bias, group=group)
        return DTensor.from_local(y, mesh, [Replicate()], run_check=False)
    if of_weight == Shard(0) and of_x == Replicate() and of_bias in (None, Shard(0)):
        local_x = x.to_local(grad_placements=[Replicate()])
        y = column_parallel_linear(local_x, local_weight, local_bias, group=group)
        return DTensor.from_local(y, mesh, [Shard(y.ndim - 1)], run_check=False)
    raise _refused(x, weight, bias)


def _refused(x: Any, weight: Any, bias: Any) -> ArgumentError:
    def said(t: Any) -> str:
        return f"{t.placements} on {t.device_mesh}" if isinstance(t, DTensor) else type(t).__name__

    return ArgumentError(
        "A linear layer of DTensors has placements without an order.",
        why=f"x: {said(x)}; weight: {said(weight)}; bias: {said(bias)}. A sum over ranks is defined for a weight that "
        "is sharded over a mesh of one dimension, in its rows or its columns.",
        fix="Shard x in its last dimension for a weight in Shard(1); replicate it for one in Shard(0).",
    )


class OrderedLinear(torch.nn.Linear):
    """What the styles make of a ``torch.nn.Linear``: the same parameters, and the forward that is ordered."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_of_dtensors(input, self.weight, self.bias)  # type: ignore[arg-type]


class RowwiseParallel(_Rowwise):
    """``torch.distributed.tensor.parallel.RowwiseParallel`` whose sum over ranks is ordered; the same arguments.

    An embedding stays torch's own: a sum with zeros is exact in any order.
    """

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        return super()._apply(_ordered(module), device_mesh)


class ColwiseParallel(_Colwise):
    """``torch.distributed.tensor.parallel.ColwiseParallel`` whose input's gradient is ordered; the same arguments."""

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        return super()._apply(_ordered(module), device_mesh)


def _ordered(module: torch.nn.Module) -> torch.nn.Module:
    if type(module) is torch.nn.Linear:
        module.__class__ = OrderedLinear
    elif isinstance(module, torch.nn.Linear) and not isinstance(module, OrderedLinear):
        raise ArgumentError(
            f"{type(module).__qualname__} is a torch.nn.Linear with something of its own.",
            why="Its forward may do more than the product that has an order.",
            fix="Call ir_core.parallel.row_parallel_linear or column_parallel_linear in it.",
        )
    return module


class OrderedPlans(TorchFunctionMode):
    """Inside this ``with`` block ``F.linear`` of DTensors is :func:`linear_of_dtensors`: torch's own plans are ordered.

    It holds in its own thread, as every mode of torch does. Layers that call something else than ``F.linear`` on
    DTensors (``torch.matmul``) are not reached.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear and any(isinstance(arg, DTensor) for arg in args):
            return linear_of_dtensors(*args, **{"x" if k == "input" else k: v for k, v in kwargs.items()})
        return func(*args, **kwargs)
