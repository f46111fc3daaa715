# SPDX-License-Identifier: Apache-2.0
"""Plain data as text that is the same in every process: sets sorted, dictionaries by key, tensors by their bytes."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

import torch

_SIMPLE: Final = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)
_TORCH: Final = (torch.dtype, torch.device, torch.layout, torch.memory_format)
MOST_BYTES: Final = 1 << 20
"""A larger tensor is a data file in all but name: copying and hashing it would take longer than all the rest."""


class NotPlain(Exception):  # noqa: N818  a question answered, not an error
    """The value is not plain data; ``args[0]`` is what it is."""


def text(value: Any, other: Callable[[Any], str | None], depth: int = 0) -> str:
    """A value as text.

    Args:
        value: numbers, strings, containers of them, enumerations, dataclasses, small tensors on the CPU.
        other: asked about everything else inside it; its text, or ``None`` if it has none.

    Raises:
        NotPlain: there is something in it that has no such text.
    """
    if depth > 20:
        raise NotPlain("data nested more than 20 deep, or in itself")
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    kind = type(value)
    if kind in _SIMPLE or kind in _TORCH:
        return f"{kind.__name__} {value!r}"
    if isinstance(value, PurePath):
        return f"path {value}"
    if isinstance(value, types.CodeType):
        return code_digest(value)

    def inner(item: Any) -> str:
        return text(item, other, depth + 1)

    if isinstance(value, (tuple, list)):
        return f"{kind.__qualname__}[{', '.join(map(inner, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{kind.__qualname__}{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, Mapping) and kind.__module__ in ("builtins", "collections"):
        items = sorted(f"{inner(key)}: {inner(item)}" for key, item in value.items())
        return f"{kind.__qualname__}{{{', '.join(items)}}}"
    if isinstance(value, types.SimpleNamespace):
        return f"namespace {inner(vars(value))}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f"{f.name}={inner(getattr(value, f.name, None))}" for f in dataclasses.fields(value)]
        return f"{kind.__qualname__}({', '.join(fields)})"
    if kind in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu":
        return _tensor(value)
    found = other(value)
    if found is None:
        raise NotPlain(f"{kind.__module__}.{kind.__qualname__}")
    return found


def _tensor(value: torch.Tensor) -> str:
    size = value.numel() * value.element_size()
    if size > MOST_BYTES or value.layout is not torch.strided:
        raise NotPlain(f"a tensor of {size} bytes")
    flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    content = bytes(flat.view(torch.uint8).tolist())
    return f"tensor {value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"


def code_digest(code: types.CodeType) -> str:
    """Digest of compiled code, for functions that are in no file (a notebook, ``exec``)."""
    constants = ", ".join(text(constant, lambda value: repr(type(value))) for constant in code.co_consts)
    parts = (code.co_code.hex(), code.co_exceptiontable.hex(), code.co_names, code.co_varnames)
    shape = (code.co_freevars, code.co_cellvars, code.co_flags, code.co_argcount, code.co_kwonlyargcount)
    return hashlib.sha256(repr((parts, shape, constants)).encode()).hexdigest()
