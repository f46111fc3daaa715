# SPDX-License-Identifier: Apache-2.0
"""Functions with an op's own signature, made from source text: calling them packs nothing into ``*args``."""

from __future__ import annotations

import inspect
import itertools
import linecache
from collections.abc import Callable, Sequence
from typing import Any

_number = itertools.count()


def signature_source(signature: inspect.Signature, space: dict[str, Any]) -> str:
    """The parameter list as source; default values go into ``space``."""
    parts: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.default is parameter.empty:
            parts.append(name)
        else:
            space[f"default_{name}"] = parameter.default
            parts.append(f"{name}=default_{name}")
    return ", ".join(parts)


def gradient_test(tensor_params: dict[str, str]) -> str:
    """An expression that is true when an argument wants a gradient; parameters with their torch schema types."""
    tests = {
        "Tensor": "{p}.requires_grad",
        "Optional[Tensor]": "({p} is not None and {p}.requires_grad)",
    }
    some = "any(t is not None and t.requires_grad for t in {p} or ())"  # lists of tensors
    return " or ".join(tests.get(kind, some).format(p=param) for param, kind in tensor_params.items()) or "False"


def build(name: str, first: str, signature: inspect.Signature, body: Sequence[str], space: dict[str, Any]) -> Any:
    """The function ``def name(first, <signature>): body``.

    Args:
        name: shown in tracebacks.
        first: parameters before the op's own, as source; may be empty.
        body: lines, not indented; ``{names}`` in them stands for the op's arguments.
        space: its globals.
    """
    names = ", ".join(signature.parameters)
    head = ", ".join(part for part in (first, signature_source(signature, space)) if part)
    lines = [f"def {name}({head}):"] + ["    " + line.replace("{names}", names) for line in body]
    source = "\n".join(lines) + "\n"
    filename = f"<ir_core {name} {next(_number)}>"
    # Tracebacks and Dynamo read the lines of a function from here.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), space)  # noqa: S102  made of an op's own parameter names
    function: Callable[..., Any] = space[name]
    return function


def forget(function: Any) -> None:
    """Drop the source of a function that was replaced."""
    linecache.cache.pop(function.__code__.co_filename, None)
