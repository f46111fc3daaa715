# SPDX-License-Identifier: Apache-2.0
"""What functions reach: modules by their imports, and objects by closures, defaults, decorators and named globals."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ir_core.sources import gaps, modules, values

_INNER: Final = ("__wrapped__", "__func__", "fn", "func")
"""Where wrappers keep what they wrap: functools, methods, Triton's JITFunction and Autotuner, functools.partial."""


class Reach:
    """Everything that some functions and modules reach.

    Args:
        functions: the functions; any callable.
        named: names of further modules.

    Attributes:
        files: by module, the files that count by their bytes; complete after :meth:`digest`.
        unseen: what was met and cannot be followed, one clause each; complete after :meth:`digest`.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]], named: Iterable[str] = ()) -> None:
        self.files: dict[str, Path] = {}
        self.unseen: set[str] = set()
        self._data: set[str] = set()
        self._seen: dict[int, Any] = {}  # holds the objects, so that no other gets their id
        self._objects: list[Any] = []
        self._names: list[str] = []
        self._visited: set[str] = set()
        functions, named = list(functions), list(named)
        homes = [_home(function)[0] for function in functions]
        self._own = {name.partition(".")[0] for name in (*homes, *named)} | {modules.HOST}
        self._names += named
        for function in functions:
            self._data.add(self._text(function, "the function"))

    def digest(self) -> str:
        """SHA-256, in hex."""
        while self._objects or self._names:
            if self._objects:
                self._object(self._objects.pop())
            else:
                self._module(self._names.pop())
        hasher = hashlib.sha256()
        for name, path in self.files.items():
            file = modules.read(path)
            self._data.add(f"file {name} {'unreadable' if file is None else file.digest}")
        for line in sorted(self._data):
            hasher.update(line.encode("utf-8", "surrogatepass") + b"\n")
        return hasher.hexdigest()

    # -- modules -------------------------------------------------------------------------------------------

    def _module(self, name: str) -> None:
        """Count a module and the packages around it."""
        while name and name not in self._visited:
            self._visited.add(name)
            file = modules.file_of(name)
            if modules.is_versioned(name, file):
                return
            if file is not None:
                self._file(name, file, name if file.stem == "__init__" else name.rpartition(".")[0])
            name = name.rpartition(".")[0]

    def _file(self, name: str, file: Path, package: str) -> None:
        top = name.partition(".")[0]
        if top not in self._own and (found := modules.distributions_of(name, file)):
            self._data.update(f"distribution {each} {modules.distribution_digest(each)}" for each in found)
            return
        label = file.name if top in ("__main__", "__mp_main__") else name
        if self.files.get(label) == file:
            return
        self.files[label if label not in self.files else f"{label} in {file.parent.name}"] = file
        for reached in modules.imports(file, package):
            # No bit depends on what the core finds entry points or draws tables with; a lock file should not either.
            if top != modules.HOST or reached.partition(".")[0] == modules.HOST:
                self._names.append(reached)

    # -- objects -------------------------------------------------------------------------------------------

    def _text(self, value: Any, label: str) -> str:
        """A value as text, what it refers to being followed; names it in ``unseen`` if it has none."""
        try:
            return values.text(value, self._follow)
        except values.NotPlain as error:
            self.unseen.add(f"{label}: {error.args[0]}")
        except Exception as error:  # a repr, a property or a Mapping of another package
            self.unseen.add(f"{label}: {type(error).__name__} while it was read")
        return "unseen"

    def _follow(self, value: Any) -> str | None:
        """Remember an object that is no plain data; its name, or ``None`` if nothing is known of its kind."""
        if isinstance(value, types.ModuleType):
            self._from_module(value.__name__, vars(value))
            return f"module {_public(value.__name__)}"
        kind = type(value)
        known = callable(value) or modules.is_versioned(kind.__module__, modules.file_of(kind.__module__))
        if not known:
            return None
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self._objects.append(value)
        name = _get(value, "__qualname__") or kind.__qualname__
        return f"object {_public(_home(value)[0])}:{name}"

    def _object(self, value: Any) -> None:
        name, space = _home(value)
        if name:
            self._from_module(name, space)
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            if modules.file_of(name) is None:  # made at run time: its methods are in no file
                for member in vars(value).values():
                    if callable(inner := getattr(member, "__func__", getattr(member, "fget", member))):
                        self._follow(inner)
        elif isinstance(value, functools.partial):
            self._add(f"{name}:partial", (value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._add(f"{name}:self of {value.__qualname__}", value.__self__)
        elif not isinstance(value, types.BuiltinFunctionType) and not self._versioned(name):
            self._follow(type(value).__call__)
            for attribute, content in sorted((_get(value, "__dict__") or {}).items()):
                if attribute not in gaps.state(self._path(name)):
                    self._add(f"{name}:{type(value).__qualname__}.{attribute}", content)
        for attribute in _INNER:
            there = inspect.getattr_static(value, attribute, None) is not None  # asks no __getattr__
            if there and callable(inner := _get(value, attribute)):
                self._follow(inner)

    def _function(self, function: types.FunctionType) -> None:
        """Its closure and defaults; for a function that is not torch's or Python's own also the globals it names."""
        space, code = function.__globals__, function.__code__
        name = str(space.get("__name__", ""))
        file, own = self._path(name, space), not self._versioned(name)
        state = gaps.state(file)
        where = f"{_public(name)}:{function.__qualname__}"
        if own and not _same_file(code.co_filename, file):
            self._data.add(f"code {where} {values.code_digest(code)}")
            for each in _codes(code):
                self.unseen.update(gaps.of_code(each, where))
        bound = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        if own:
            parameters = code.co_varnames[: code.co_argcount]
            defaults = function.__defaults__ or ()
            given = dict(zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True))
            for key, content in {**given, **(function.__kwdefaults__ or {})}.items():
                self._variable(f"{where}({key})", key, content, state)
        for key, cell in bound.items():
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if own:
                self._variable(f"{where}.<closure>.{key}", key, content, state)
            elif callable(content):
                self._follow(content)
        if own and name.partition(".")[0] != modules.HOST:  # the core's own globals are in its files
            for key in sorted({key for each in _codes(code) for key in each.co_names} & space.keys()):
                if not key.startswith("__"):
                    self._variable(f"{_public(name)}:{key}", key, space[key], state)

    def _variable(self, label: str, name: str, content: Any, state: frozenset[str]) -> None:
        if callable(content) or isinstance(content, types.ModuleType):
            self._add(label, content)
        elif name in state or self._changed_at_home(name, content):
            self.unseen.add(f"{label} is changed at run time")
        else:
            self._add(label, content)

    def _changed_at_home(self, name: str, content: Any) -> bool:
        """Whether another module of the same packages, which has this very container, changes it at run time."""
        if not isinstance(content, dict | list | set):
            return False
        for home, module in list(sys.modules.items()):
            shared = (
                home.partition(".")[0] in self._own and (_get(module, "__dict__") or {}).get(name) is content
            )
            if shared and name in gaps.state(self._path(home)):
                return True
        return False

    def _add(self, label: str, content: Any) -> None:
        self._data.add(f"{label} = {self._text(content, label)}")

    def _from_module(self, name: str, space: dict[str, Any]) -> None:
        """Count the module that an object lives in, by the file that it was really read from."""
        path = self._path(name, space)
        if path != _NOWHERE and path != modules.file_of(name) and not modules.is_versioned(name, path):
            self._file(name, path, str(space.get("__package__") or ""))
        else:
            self._names.append(name)

    def _path(self, name: str, space: dict[str, Any] | None = None) -> Path:
        file = (space or {}).get("__file__")
        if isinstance(file, str) and Path(file).is_file():
            return Path(file)
        return modules.file_of(name) or _NOWHERE

    def _versioned(self, name: str) -> bool:
        """Whether a module is Python's, torch's or Triton's own, or of another installed distribution."""
        file = modules.file_of(name)
        if name == "builtins" or modules.is_versioned(name, file):
            return True
        own = name.partition(".")[0] in self._own
        return not own and file is not None and bool(modules.distributions_of(name, file))


_NOWHERE: Final = Path()


def _home(value: Any) -> tuple[str, dict[str, Any]]:
    """The module that an object was defined in, and its globals where they are at hand.

    A function's globals say it: ``functools.wraps`` gives a wrapper the name of the module that it wraps.
    """
    space = _get(value, "__globals__")
    if isinstance(space, dict) and isinstance(space.get("__name__"), str):
        return space["__name__"], space
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return str(getattr(value, "__module__", "") or ""), {}
    return type(value).__module__, {}


def _get(value: Any, attribute: str) -> Any:
    """An attribute, or ``None``: objects of other people may raise anything when they are asked."""
    try:
        return getattr(value, attribute, None)
    except Exception:
        return None


def _public(name: str) -> str:
    """A module's name as it is in every process: a program is ``__main__`` in one and ``__mp_main__`` in another."""
    return "__main__" if name == "__mp_main__" else name


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _same_file(name: str, file: Path) -> bool:
    return file != _NOWHERE and (name == str(file) or Path(name).name == file.name)
