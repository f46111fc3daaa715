# SPDX-License-Identifier: Apache-2.0
"""Arguments of an op that stand for a call: fake tensors, which take no memory and need no device."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch._subclasses.fake_tensor import FakeTensorMode

if TYPE_CHECKING:
    from ir_core.op import IrOp

_SCALARS: dict[str, Any] = {"float": 1e-6, "int": 1, "bool": False, "str": ""}


def fake_arguments(
    op: IrOp,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    *,
    weight_dtype: torch.dtype | None = None,
    given: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    """The complete argument list of a call of ``op``.

    Activations have ``shape`` and ``dtype``, and the dimensions behind the first that the op's input generator gives
    them where that are more. Other tensors and scalars are what the generator makes for rows of ``shape[-1]``
    elements; without a generator a tensor has one dimension of that length.

    Args:
        given: values of single parameters; for a tensor only ``None``. Also of what the op's input generator takes
            beside rows, length and dtype: ``out=6144`` for the rows of a weight.
    """
    given = dict(given or {})
    more = _generator_parameters(op)
    if unknown := sorted(set(given) - set(op.params) - set(more)):
        known = ", ".join(dict.fromkeys((*op.params, *more)))
        raise typer.BadParameter(f"{op.name} has no parameter {', '.join(unknown)}; it has {known}")
    with FakeTensorMode(), torch.device(device):
        example = _generated(op, shape[-1], dtype, {name: given[name] for name in more if name in given})
        values: list[Any] = []
        for name, parameter in op.signature.parameters.items():
            tensor = name in op.tensor_params
            if name in given:
                if tensor and given[name] is not None:
                    raise typer.BadParameter(f"{name} is a tensor; --arg can only make it none")
                _check(name, parameter.annotation, given[name])
                values.append(given[name])
            elif name in op.activations:
                like = example.get(name)
                inner = (
                    like.shape[1:]
                    if isinstance(like, torch.Tensor) and like.dim() > len(shape)
                    else shape[-1:]
                )
                values.append(torch.empty((*shape[:-1], *inner), dtype=dtype))
            elif tensor and name in example and example[name] is None:
                values.append(None)
            elif tensor:
                like = example.get(name)
                size = tuple(like.shape) if isinstance(like, torch.Tensor) else shape[-1:]
                values.append(torch.empty(size, dtype=weight_dtype or getattr(like, "dtype", dtype)))
            elif name in example:
                values.append(example[name])
            elif parameter.default is not inspect.Parameter.empty:
                values.append(parameter.default)
            else:
                kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
                values.append(_SCALARS.get(kind))
    return tuple(values)


def _check(name: str, annotation: Any, value: Any) -> None:
    """Refuse a value that the parameter's annotation does not allow, where that is plain to see."""
    allowed = {float: (float, int), int: (int,), bool: (bool,), str: (str,)}
    kinds = [
        kind for kind in (getattr(annotation, "__args__", None) or (annotation,)) if isinstance(kind, type)
    ]
    if not kinds or not all(kind in allowed or kind is type(None) for kind in kinds):
        return
    if not any(isinstance(value, allowed.get(kind, (type(None),))) for kind in kinds):
        wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise typer.BadParameter(f"{name} is {value!r}, and takes {wanted}")


def _generator_parameters(op: IrOp) -> list[str]:
    """What the op's input generator takes that the op does not."""
    if op.input_generator is None:
        return []
    own = ("num_tokens", "hidden_size", "dtype", "device", *op.params)
    return [name for name in inspect.signature(op.input_generator).parameters if name not in own]


def _generated(op: IrOp, last: int, dtype: torch.dtype, more: dict[str, Any]) -> dict[str, Any]:
    """What the op's input generator makes, by parameter; empty if it makes nothing of fake tensors."""
    if not op.has_input_generator:
        return {}
    try:
        made = op.generate_inputs(num_tokens=2, hidden_size=last, dtype=dtype, **more)
        return dict(zip(op.params, op.bind(made, {}), strict=True))
    except Exception:  # a generator may look at values, which fake tensors do not have
        return {}


def describe(op: IrOp, args: tuple[Any, ...]) -> dict[str, str]:
    """The arguments in words, by parameter."""
    return {
        name: f"{str(arg.dtype).removeprefix('torch.')}[{'x'.join(map(str, arg.shape))}]"
        if isinstance(arg, torch.Tensor)
        else repr(arg)
        for name, arg in zip(op.params, args, strict=True)
    }
