# SPDX-License-Identifier: Apache-2.0
"""Where modules lie, what their text imports, and which installed distribution they belong to. Imports nothing.

Imports are read by pattern, not by parsing: a file in another encoding or of a newer Python counts like any other, and
it is many times faster. An import statement in a docstring counts too, which only makes the digest wider.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final

from importlib_metadata import PackageNotFoundError, distribution, packages_distributions

HOST: Final = "ir_core"
VERSIONED: Final = frozenset({"torch", "triton", "torchgen", "functorch"})
"""Packages whose version stands for them: it is in every digest's company anyway, and they are large."""

_STDLIB: Final = tuple(Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib"))
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

_FROM = re.compile(r"\bfrom\s*([.\w]+)\s*\bimport\b\s*(\(?)([^\n;]*)")
_IMPORT = re.compile(r"(?:^|[;:])[ \t]*import[ \t]+([^\n;#]+)", re.MULTILINE)
_ALIAS = re.compile(r"\b(?:import_module|__import__)\s+as\s+(\w+)")
_WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class File:
    """A file as it was read: SHA-256 of its bytes, and its text if it is Python source."""

    digest: str
    text: str


@functools.cache
def read(path: Path) -> File | None:
    """A file's digest and text; ``None`` if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    text = content.decode("utf-8", "replace") if path.suffix in (".py", ".pyw", "") else ""
    return File(hashlib.sha256(content).hexdigest(), text)


@functools.cache
def imports(path: Path, package: str) -> frozenset[str]:
    """Absolute names of what a file may import, modules and their attributes alike.

    Args:
        path: the file.
        package: the package that its relative imports start from; empty for none.
    """
    file = read(path)
    text = "" if file is None else file.text.replace("\\\r\n", " ").replace("\\\n", " ")
    found = {_absolute(name, package) for name in _imported(text)}
    return frozenset(name for name in found if name)


def _imported(text: str) -> Iterator[str]:
    for match in _FROM.finditer(text):
        base, parenthesis, names = match.groups()
        if parenthesis:
            names = _parenthesised(text, match.start(3))
        yield base
        separator = "" if base.endswith(".") else "."
        for part in names.partition("#")[0].split(","):
            if word := _WORD.match(part.strip()):
                yield f"{base}{separator}{word[0]}"
    for match in _IMPORT.finditer(text):
        yield from (part.split()[0] for part in match[1].split(",") if part.split())
    if "import_module" not in text and "__import__" not in text:
        return
    names = "|".join({"import_module", "__import__", *_ALIAS.findall(text)})
    for match in re.finditer(rf"\b(?:{names})\(\s*(?:name\s*=\s*)?(['\"])([.\w]+)\1", text):
        yield match[2]


def _parenthesised(text: str, start: int) -> str:
    """What stands up to the closing parenthesis, without comments."""
    names = []
    for line in text[start : start + 20_000].splitlines():
        code, closing, _ = line.partition("#")[0].partition(")")
        names.append(code)
        if closing:
            break
    return ",".join(names)


def _absolute(name: str, package: str) -> str:
    rest = name.lstrip(".")
    if not (level := len(name) - len(rest)):
        return name
    anchor = package.split(".")
    if not package or level > len(anchor):
        return ""
    return ".".join([*anchor[: len(anchor) - level + 1], *([rest] if rest else [])])


@functools.cache
def _folders(name: str) -> tuple[Path, ...]:
    """Where the submodules of a package are."""
    module = sys.modules.get(name)
    if module is not None:
        return tuple(Path(folder) for folder in getattr(module, "__path__", None) or ())
    parent, _, last = name.rpartition(".")
    if parent:
        return tuple(place for folder in _folders(parent) if (place := folder / last).is_dir())
    spec = _spec(name)
    return tuple(Path(folder) for folder in (spec and spec.submodule_search_locations) or ())


@functools.cache
def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)  # of a top-level name: imports nothing
    except Exception:  # a finder of another package may raise anything
        return None


@functools.cache
def file_of(name: str) -> Path | None:
    """The file of a module; ``None`` if there is none of that name, or it has no file."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if isinstance(file, str) and Path(file).is_file() else None
    parent, _, last = name.rpartition(".")
    if not parent:
        spec = _spec(name)
        return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None
    for folder in _folders(parent):
        names = (f"{last}/__init__.py", f"{last}.py", *(last + suffix for suffix in EXTENSION_SUFFIXES))
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    return None


@functools.cache
def is_versioned(name: str, file: Path | None) -> bool:
    """Whether a module is Python's own, torch's or Triton's. A file that only has such a name is not."""
    top = name.partition(".")[0]
    if top in VERSIONED:
        return True
    if file is None:
        return top in sys.stdlib_module_names
    return not _INSTALLED & set(file.parts) and any(file.is_relative_to(folder) for folder in _STDLIB)


@functools.cache
def distributions_of(name: str, file: Path) -> tuple[str, ...]:
    """Names of the installed distributions that a module lies in; empty where it was not installed."""
    if not _INSTALLED & set(file.parts):
        return ()
    top = name.partition(".")[0]
    try:
        return (distribution(top).metadata["Name"],)
    except (PackageNotFoundError, KeyError, TypeError):
        return tuple(sorted(set(_packages().get(top, ()))))


@functools.cache
def _packages() -> dict[str, list[str]]:
    return dict(packages_distributions())


@functools.cache
def distribution_digest(name: str) -> str:
    """Name, version and a digest of the list of files of a distribution, and of what it requires.

    Of ``RECORD`` the lines count that say something of the distribution: not its scripts, whose first line names the
    environment, and not what the installer wrote beside.
    """
    hasher = hashlib.sha256()
    pending, seen = [name], set()
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in seen or name in VERSIONED or name.startswith("nvidia-"):
            continue
        seen.add(name)
        try:
            found = distribution(name)
            record, requires = found.read_text("RECORD") or "", found.requires or []
        except Exception:  # not installed, or its metadata is broken
            continue
        pending += [
            word[0] for line in requires if "extra ==" not in line and (word := re.match(r"[\w.-]+", line))
        ]
        hasher.update(f"{name} {_version(found)} {_contents(record)}\n".encode())
    return hasher.hexdigest()


def _version(found: Any) -> str:
    try:
        return str(found.version)
    except Exception:  # no version in its metadata
        return ""


def _contents(record: str) -> str:
    lines = [
        line
        for line in record.splitlines()
        if ".dist-info/" not in line and ".pyc," not in line and not line.startswith(("..", "/"))
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def forget() -> None:
    """Read everything again."""
    for cached in (read, imports, _folders, _spec, file_of, is_versioned, distributions_of, _packages):
        cached.cache_clear()
    distribution_digest.cache_clear()
