# SPDX-License-Identifier: Apache-2.0
"""The table: each function of torch that the mode covers, in all its forms, and its cover.

A function has up to five forms: ``torch.x``, ``Tensor.x``, ``F.x``, an operator, and one in place. A dictionary, since
Dynamo looks a function up in it while it traces.
"""

from __future__ import annotations

import types
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ir_core.covering import attention, convolutions, elements, losses, norms, products, reductions
from ir_core.covering.einsum import einsum
from ir_core.covering.known import notice
from ir_core.covering.shapes import Cover, inplace

__all__ = ["COVERS", "notice"]

COVERS: Final[dict[Any, Cover]] = {}


def _cover(cover: Cover, *functions: Any) -> None:
    for function in functions:
        if function is not None:
            COVERS[function] = cover


def _named(cover: Cover, *names: str, inplace_too: bool = False) -> None:
    """Cover what torch, ``Tensor``, ``F``, ``torch.special`` and ``torch.linalg`` have under these names."""
    for name in names:
        for home in (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg):
            _cover(cover, getattr(home, name, None))
        if inplace_too:
            for home in (torch, Tensor, F):
                _cover(inplace(cover), getattr(home, f"{name}_", None))


# Products. An operator of a Tensor is a method of its own: ``@`` is ``Tensor.__matmul__``.
_cover(products.linear, F.linear)
_named(products.matmul, "matmul")
_cover(products.matmul, Tensor.__matmul__)
_cover(products.rmatmul, Tensor.__rmatmul__)
_named(products.bmm, "mm", "bmm", "mv")
_named(products.dot, "dot", "inner", "vdot")
_named(products.addmm, "addmm", "baddbmm", "addmv", inplace_too=True)
_named(products.addbmm, "addbmm", inplace_too=True)
_named(products.outer, "outer", "ger")
_cover(products.bilinear, F.bilinear)
_cover(einsum, torch.einsum)
for _count, _function in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
    _cover(convolutions.conv(_count, _function), _function)

# Reductions.
_cover(reductions.sum_, torch.sum, Tensor.sum)
_cover(reductions.mean, torch.mean, Tensor.mean)
_named(reductions.var, "var")
_named(reductions.std, "std")
_named(reductions.var_mean, "var_mean")
_named(reductions.std_mean, "std_mean")
_cover(reductions.norm, torch.norm, Tensor.norm)
_cover(reductions.vector_norm, torch.linalg.vector_norm)
_cover(reductions.normalize, F.normalize)
_cover(reductions.cosine_similarity, torch.cosine_similarity, F.cosine_similarity)
_cover(reductions.softmax, torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)
_cover(
    reductions.log_softmax, torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax
)
_cover(reductions.softmin, F.softmin)
_named(reductions.logsumexp, "logsumexp")
for _name in ("cumsum", "cumprod", "logcumsumexp"):
    for _home in (torch, Tensor):
        _function = getattr(_home, _name)
        _cover(reductions.cumulative(_function, _name), _function)
    _function = getattr(torch.ops.aten, _name).default  # as a compiler's own passes call it
    _cover(reductions.cumulative(_function, _name), _function)

# Norms, losses, attention.
_cover(norms.layer_norm, F.layer_norm, torch.layer_norm)
_cover(norms.rms_norm, F.rms_norm, torch.rms_norm)
_cover(norms.group_norm, F.group_norm)
_cover(norms.batch_norm, F.batch_norm)
_cover(losses.cross_entropy, F.cross_entropy)
_cover(losses.nll_loss, F.nll_loss)
_cover(losses.mse_loss, F.mse_loss)
_cover(attention.scaled_dot_product_attention, F.scaled_dot_product_attention)

# Element by element.
for _name in ("exp", "log", "cos", "sin", "tanh", "sigmoid", "sqrt", "rsqrt"):
    _named(getattr(elements, _name), _name, inplace_too=True)
_cover(elements.sigmoid, torch.special.expit)
_cover(elements.silu, F.silu, torch._C._nn.silu)
_cover(elements.gelu, F.gelu)
_cover(elements.softplus, F.softplus)
_cover(elements.logsigmoid, F.logsigmoid)
_cover(elements.glu, F.glu)
_cover(elements.elu, F.elu)
_cover(elements.mish, F.mish)
_cover(elements.dropout, F.dropout, torch.dropout)
_named(elements.pow_, "pow", inplace_too=True)
_cover(elements.pow_, Tensor.__pow__)
_cover(elements.rpow, Tensor.__rpow__)
_named(elements.add, "add", inplace_too=True)
_cover(elements.add, Tensor.__add__, Tensor.__radd__)
_cover(inplace(elements.add), Tensor.__iadd__)
_named(elements.sub, "sub", "subtract", inplace_too=True)
_cover(elements.sub, Tensor.__sub__)
_cover(inplace(elements.sub), Tensor.__isub__)
_cover(elements.rsub, torch.rsub, Tensor.__rsub__)
_named(elements.addcmul, "addcmul", inplace_too=True)
_named(elements.addcdiv, "addcdiv", inplace_too=True)
_named(elements.lerp, "lerp", inplace_too=True)
_named(elements.hypot, "hypot", inplace_too=True)

WRAPPED: Final = {
    function.__name__: cover
    for function, cover in COVERS.items()
    if isinstance(function, types.FunctionType) and hasattr(function, "__wrapped__")
}
"""Operators that torch wraps in Python (``2 ** x``), by name: Dynamo does not find such a function as a key."""
