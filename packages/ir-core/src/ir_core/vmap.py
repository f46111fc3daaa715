# SPDX-License-Identifier: Apache-2.0
"""``torch.func.vmap`` of an op: one call with one more batch dimension where that says the same.

Where it does not, the op is called once for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ir_core.meaning import Meaning


def kernel(op: Meaning, overload: OpOverload[..., Any]) -> Callable[..., Any]:
    """The kernel of ``overload`` for tensors under ``vmap``."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        dims = [*in_dims, *[None] * (len(op.params) - len(in_dims))]
        results = _call(op, overload, info.batch_size, op.bind(args, {}), dims)
        return results, (0,) * len(results) if isinstance(results, tuple) else 0

    def batched(keyset: Any, *args: Any) -> Any:
        # As torch.library.register_vmap does, which would import all of functorch when an op is defined.
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        interpreter: Any = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(interpreter, rule, overload, *args)

    return batched


def _call(
    op: Meaning, overload: OpOverload[..., Any], size: int, args: Sequence[Any], dims: Sequence[int | None]
) -> Any:
    """Call the op on all ``size`` samples; the results have them in their first dimension."""
    activations = [i for i in op.activation_indices if args[i] is not None]
    ranks = {args[i].dim() - (dims[i] is not None) for i in activations}
    others = [dim for i, dim in enumerate(dims) if i not in op.activation_indices]
    if len(ranks) == 1 and not any(dim is not None for dim in others):
        together = list(args)
        for i in activations:
            together[i] = _in_front(args[i], dims[i], size)
        return overload(*together)
    fronted = [
        _in_front(arg, dim, size) if isinstance(arg, Tensor) else arg
        for arg, dim in zip(args, dims, strict=True)
    ]
    results = [
        overload(*(arg[n] if isinstance(arg, Tensor) else arg for arg in fronted)) for n in range(size)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
    return torch.stack(results)


def _in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``tensor`` with its samples in the first dimension; one that is the same for all is repeated."""
    if dim is None:  # each sample has memory of its own: it may be donated
        return tensor.unsqueeze(0).repeat(size, *[1] * tensor.dim())
    return tensor.movedim(dim, 0)
