# SPDX-License-Identifier: Apache-2.0
"""What a digest cannot see, as read from source text: data files, the environment, code made at run time.

It finds what is written plainly; it is a list of what to look at, not a proof that there is nothing else.
"""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ir_core.sources import modules

_FILES: Final = "reads a file"
_ENVIRONMENT: Final = "reads the environment"
_TEXT: Final = "runs code made from text"
_LIBRARY: Final = "loads a shared library"

_NAMES: Final = {
    "open": _FILES,
    "exec": _TEXT,
    "eval": _TEXT,
    "environ": _ENVIRONMENT,
    "getenv": _ENVIRONMENT,
    "CDLL": _LIBRARY,
}
_ATTRIBUTES: Final = {
    "environ": _ENVIRONMENT,
    "environb": _ENVIRONMENT,
    "getenv": _ENVIRONMENT,
    "read_text": _FILES,
    "read_bytes": _FILES,
    "open": _FILES,
    "fromfile": _FILES,
    "loadtxt": _FILES,
    "memmap": _FILES,
    "CDLL": _LIBRARY,
    "LoadLibrary": _LIBRARY,
    "load_library": _LIBRARY,
    "load_inline": _TEXT,
}
_LOADERS: Final = frozenset({"torch", "numpy", "np", "joblib"})
_MUTATORS: Final = frozenset(
    (
        "add",
        "append",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "update",
    )
)


@functools.cache
def _tree(path: Path) -> ast.Module | None:
    file = modules.read(path)
    if file is None:
        return None
    try:
        return ast.parse(file.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def of_files(files: Mapping[str, Path]) -> Iterator[str]:
    """What the modules of ``files`` do that their bytes do not show, one clause each.

    The core itself is left out: what it reads of the environment and of files is in the policy, and in the keys.
    """
    for name, path in files.items():
        if name.partition(".")[0] == modules.HOST:
            continue
        if path.suffix != ".py":
            yield f"{name}: compiled code counts by its bytes, what it loads is not followed"
        elif (tree := _tree(path)) is None:
            yield f"{name}: this Python cannot parse it; it counts by its bytes"
        else:
            first: dict[str, int] = {}
            for said, line in _found(tree):
                first[said] = min(line, first.get(said, line))
            yield from (f"{name}: {said} (line {line})" for said, line in first.items())


def _found(tree: ast.Module) -> Iterator[tuple[str, int]]:
    importers = {"import_module", "__import__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            importers |= {a.asname for a in node.names if a.name in importers and a.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _NAMES and isinstance(node.ctx, ast.Load):
            yield f"{_NAMES[node.id]} ({node.id})", node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES:
            yield f"{_ATTRIBUTES[node.attr]} ({node.attr})", node.lineno
        elif isinstance(node, ast.Call):
            called, base = _called(node.func)
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            constant = given and isinstance(given[0], ast.Constant)
            if called in importers and not constant:
                yield f"imports a module whose name is made at run time ({called})", node.lineno
            elif called == "load" and base in _LOADERS:
                yield f"{_FILES} ({base}.load)", node.lineno


def _called(function: ast.expr) -> tuple[str, str]:
    """The last name of what is called, and the name before it."""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    return (function.id, "") if isinstance(function, ast.Name) else ("", "")


def of_code(code: types.CodeType, label: str) -> Iterator[str]:
    """The same of compiled code that is in no file."""
    for name in code.co_names:
        if said := _NAMES.get(name) or _ATTRIBUTES.get(name):
            yield f"{label}: {said} ({name})"
        elif name in ("import_module", "__import__"):
            yield f"{label}: imports a module by a call ({name})"


@functools.cache
def state(path: Path) -> frozenset[str]:
    """Names and attributes that functions of a file rebind or change in place: caches and counters, no source."""
    tree = _tree(path)
    if tree is None:
        return frozenset()
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return frozenset(name for function in functions for name in _changed(function))


def _changed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    building = function.name in ("__init__", "__new__", "__post_init__", "__set_name__")
    for node in ast.walk(function):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            yield from node.names
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield _called(node.value)[0]
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and not building:
            yield node.attr
            yield _called(node.value)[0]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _MUTATORS
        ):
            yield _called(node.func.value)[0]


def forget() -> None:
    """Read everything again."""
    _tree.cache_clear()
    state.cache_clear()
