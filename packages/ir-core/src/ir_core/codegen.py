# SPDX-License-Identifier: Apache-2.0
"""Functions with an op's own signature, made from source text: calling them packs nothing into ``*args``."""

from __future__ import annotations

import inspect
import itertools
import linecache
from collections.abc import Callable, Sequence
from typing import Any

_number = itertools.count()

PREFIX = "_ir_"
"""Before every name of ours in generated code, so that it never meets a parameter; no parameter begins with it."""


def _parameters(signature: inspect.Signature, space: dict[str, Any]) -> str:
    """The parameter list as source; default values go into ``space``."""
    parts: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.default is parameter.empty:
            parts.append(name)
        else:
            space[f"default_{name}"] = parameter.default
            parts.append(f"{name}=$default_{name}")
    return ", ".join(parts)


def gradient_test(tensor_params: dict[str, str]) -> str:
    """An expression that is true when an argument wants a gradient; parameters with their torch schema types."""
    tests = {
        "Tensor": "{p}.requires_grad",
        "Optional[Tensor]": "({p} is not None and {p}.requires_grad)",
    }
    some = "any(t is not None and t.requires_grad for t in {p} or ())"  # lists of tensors
    return (
        " or ".join(tests.get(kind, some).format(p=param) for param, kind in tensor_params.items()) or "False"
    )


def build(
    name: str, first: str, signature: inspect.Signature, body: Sequence[str], space: dict[str, Any]
) -> Any:
    """The function ``def name(first, <signature>): body``.

    Args:
        name: shown in tracebacks.
        first: parameters before the op's own, as source; may be empty.
        body: lines, not indented; ``{names}`` in them stands for the op's arguments.
        space: what the names marked with ``$`` in ``first`` and ``body`` stand for, unless they are local.
    """
    names = ", ".join(signature.parameters)
    head = ", ".join(part for part in (first, _parameters(signature, space)) if part)
    function_name = f"ir_{name}"  # an op may be called like a keyword of Python
    lines = [f"def {function_name}({head}):"] + ["    " + line.replace("{names}", names) for line in body]
    source = ("\n".join(lines) + "\n").replace("$", PREFIX)
    filename = f"<ir_core {name} {next(_number)}>"
    # Tracebacks and Dynamo read the lines of a function from here.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope = {PREFIX + key: value for key, value in space.items()}
    exec(compile(source, filename, "exec"), scope)  # made of an op's own parameter names
    function: Callable[..., Any] = scope[function_name]
    return function


def forget(function: Any) -> None:
    """Drop the source of a function that was replaced."""
    linecache.cache.pop(function.__code__.co_filename, None)
