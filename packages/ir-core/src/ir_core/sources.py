# SPDX-License-Identifier: Apache-2.0
"""Which source files stand behind a function, and their digest.

A function's source is its module and every module of the same top-level package that it imports, directly or
not, as read from the import statements. The digest is what compile caches and certificates are keyed by.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any


@functools.cache
def _roots(top: str) -> tuple[Path, ...]:
    """The folders of a top-level package, or the file of a top-level module."""
    module = sys.modules.get(top)
    folders: list[str] = list(getattr(module, "__path__", []))
    file: str | None = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, AttributeError, ValueError):
            return ()
        if spec is not None:
            folders, file = list(spec.submodule_search_locations or ()), spec.origin
    return tuple(Path(folder) for folder in folders) or ((Path(file),) if file else ())


def _module_file(name: str) -> Path | None:
    """The source file of a module, found by its name's place below its package: nothing is imported."""
    top, _, rest = name.partition(".")
    for root in _roots(top):
        if root.suffix == ".py":
            return root if not rest else None
        place = root.joinpath(*rest.split(".")) if rest else root
        for candidate in (place / "__init__.py", place.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@functools.cache
def _imports(file: Path, module: str) -> frozenset[str]:
    """Absolute names of what ``module`` imports, modules and attributes alike."""
    return frozenset(_imported(file.read_text("utf-8"), module, file.name == "__init__.py"))


def _imported(source: str, module: str, is_package: bool) -> Iterable[str]:
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def closure(module: str) -> tuple[str, ...]:
    """``module`` and the modules of its top-level package that it reaches by imports, sorted."""
    top = module.partition(".")[0]
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found or name.partition(".")[0] != top:
            continue
        file = _module_file(name)
        if file is None or not file.is_file():
            continue
        found.add(name)
        pending.extend(_imports(file, name) - found)
    return tuple(sorted(found))


def _code_digest(code: CodeType) -> bytes:
    """Digest of compiled code, for functions that have no file (a notebook, ``exec``)."""
    hasher = hashlib.sha256(code.co_code)
    hasher.update(repr((code.co_names, code.co_varnames)).encode())
    for const in code.co_consts:
        hasher.update(_code_digest(const) if isinstance(const, CodeType) else repr(const).encode())
    return hasher.digest()


def digest(functions: Iterable[Callable[..., Any]], modules: Iterable[str] = ()) -> str:
    """SHA-256, in hex, of every source file behind ``functions`` and ``modules``.

    Functions defined in a file that is no importable module count with that file; functions without a file
    count with their compiled code.
    """
    hasher = hashlib.sha256()
    names = set(modules)
    extra: list[bytes] = []
    for function in functions:
        function = inspect.unwrap(function)
        module = getattr(function, "__module__", None) or type(function).__module__
        file = _module_file(module)
        if file is not None and file.is_file():
            names.add(module)
        elif (code := getattr(function, "__code__", None)) is not None:
            extra.append(_code_digest(code))
        else:
            extra.append(repr(function).encode())
    reached: set[str] = set()
    for name in names:
        reached.update(closure(name))
    for name in sorted(reached):
        file = _module_file(name)
        hasher.update(name.encode())
        if file is not None:
            hasher.update(file.read_bytes())
    for part in sorted(extra):
        hasher.update(part)
    return hasher.hexdigest()
