# SPDX-License-Identifier: Apache-2.0
"""The digest behind compile keys and certificates covers what a function reaches, and says what it does not."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ir_core
from ir_core import ops, sources

_numbers = itertools.count()
SIGNATURE = "x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None"


class Folder:
    """A folder on ``sys.path`` whose modules have names that no other test uses: ``{0}`` in a text is its number."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, next(_numbers)

    def write(self, name: str, text: str | bytes) -> Path:
        file = self.path / f"{name.replace('{0}', str(self.number))}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            file.write_bytes(text)
        else:
            file.write_text(text.replace("{0}", str(self.number)))
        return file

    def load(self, name: str) -> types.ModuleType:
        return importlib.import_module(name.replace("{0}", str(self.number)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield Folder(tmp_path)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    ir_core.refresh()


def digest(*functions: Callable[..., Any]) -> str:
    ir_core.refresh()
    return sources.digest(functions)


def changes(change: Callable[[], Any], *functions: Callable[..., Any]) -> bool:
    """Whether the digest follows a change, and is otherwise the same each time."""
    before = digest(*functions)
    assert digest(*functions) == before
    change()
    return digest(*functions) != before


# -- item 1: modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "import helper_{0}\ndef kernel(): return helper_{0}.SIZE",
        "from helper_{0} import SIZE\ndef kernel(): return SIZE",
        "def kernel():\n    import helper_{0}\n    return helper_{0}.SIZE",
        "def kernel():\n    from helper_{0} import (  # with a )\n        SIZE,\n    )\n    return SIZE",
        "import os; import helper_{0}\ndef kernel(): return 1",
        "import importlib\nhelper = importlib.import_module('helper_{0}')\ndef kernel(): return helper.SIZE",
        "from importlib import import_module as get\nhelper = get('helper_{0}')\ndef kernel(): return helper.SIZE",
        "import between_{0}\ndef kernel(): return between_{0}.size()",
        "import \\\n    helper_{0}\ndef kernel(): return 1",
    ],
)
def test_another_top_level_module_counts(folder: Folder, how: str) -> None:
    helper = folder.write("helper_{0}.py", "SIZE = 1\n")
    folder.write("between_{0}.py", "def size():\n    import helper_{0}\n    return helper_{0}.SIZE\n")
    folder.write("kern_{0}.py", how + "\n")
    kernel = folder.load("kern_{0}").kernel
    assert changes(lambda: helper.write_text("SIZE = 2\n"), kernel)


def test_relative_imports_and_packages_around_a_module_count(folder: Folder) -> None:
    folder.write("pack_{0}/__init__.py", "")
    folder.write("pack_{0}/deep/__init__.py", "")
    folder.write(
        "pack_{0}/deep/kernel.py",
        "from .. import sizes\nfrom .other import X\ndef kernel(): return sizes.A\n",
    )
    sizes = folder.write("pack_{0}/sizes.py", "A = 1\n")
    other = folder.write("pack_{0}/deep/other.py", "X = 1\n")
    kernel = folder.load("pack_{0}.deep.kernel").kernel
    assert changes(lambda: sizes.write_text("A = 2\n"), kernel)
    assert changes(lambda: other.write_text("X = 2\n"), kernel)
    assert changes(
        lambda: (folder.path / f"pack_{folder.number}/__init__.py").write_text("import os\n"), kernel
    )


def test_a_decorator_from_another_module_counts(folder: Folder) -> None:
    text = (
        "import functools\ndef twice(fn):\n    @functools.wraps(fn)\n"
        "    def wrapper(*a): return fn(*a) * {factor}\n    return wrapper\n"
    )
    decorators = folder.write("deco_{0}.py", text.replace("{factor}", "2"))
    folder.write("kern_{0}.py", "def kernel(x): return x\n")
    # Applied elsewhere: the module of the kernel names no decorator.
    kernel = folder.load("deco_{0}").twice(folder.load("kern_{0}").kernel)
    assert kernel.__module__ == f"kern_{folder.number}"
    assert changes(lambda: decorators.write_text(text.replace("{factor}", "3")), kernel)


def test_an_installed_distribution_counts_by_version_and_record(folder: Folder) -> None:
    folder.write("site-packages/lib_{0}.py", "X = 1\n")
    folder.write(
        "site-packages/lib_{0}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lib_{0}\nVersion: 1.0\n"
    )
    record = folder.write("site-packages/lib_{0}-1.0.dist-info/RECORD", "lib_{0}.py,sha256=abc,6\n")
    sys.path.insert(0, str(folder.path / "site-packages"))
    try:
        folder.write("kern_{0}.py", "import lib_{0}\ndef kernel(): return lib_{0}.X\n")
        kernel = folder.load("kern_{0}").kernel
        script = "../../../bin/lib,sha256=zzz,9\n"  # its first line names the environment that it is in
        assert not changes(lambda: record.write_text(record.read_text() + script), kernel)
        assert changes(lambda: record.write_text(record.read_text().replace("abc", "def")), kernel)
        meta = record.with_name("METADATA")
        assert changes(lambda: meta.write_text(meta.read_text().replace("1.0", "1.1")), kernel)
    finally:
        sys.path.remove(str(folder.path / "site-packages"))


# -- item 1: data ------------------------------------------------------------------------------------------


def test_closures_and_defaults_count() -> None:
    def closing(size: int, **kwonly: int) -> Callable[[], Any]:
        return lambda: size

    def default(size: Any) -> Callable[..., Any]:
        def kernel(x: int, block: Any = size, *, warps: Any = 1) -> Any: ...

        return kernel

    assert digest(closing(1)) == digest(closing(1)) != digest(closing(2))
    assert digest(default([1, 2])) == digest(default([1, 2])) != digest(default([1, 3]))
    first, second = default(1), default(1)
    second.__kwdefaults__ = {"warps": 2}
    assert digest(first) != digest(second)
    assert digest(closing(torch.tensor([1.0]))) != digest(closing(torch.tensor([2.0])))  # type: ignore[arg-type]
    assert digest(closing({"a": {3, 1}})) == digest(closing({"a": {1, 3}}))  # type: ignore[arg-type]


def test_functions_in_closures_are_followed(folder: Folder) -> None:
    helper = folder.write("helper_{0}.py", "def scale(x): return x * 2\n")
    scale = folder.load("helper_{0}").scale

    def around(fn: Any) -> Callable[..., Any]:
        def kernel(x: Any) -> Any:
            return fn[0](x)

        return kernel

    kernel = around([scale])
    assert changes(lambda: helper.write_text("def scale(x): return x * 3\n"), kernel)


def test_globals_that_the_code_names_count(folder: Folder) -> None:
    folder.write(
        "kern_{0}.py", "BLOCK = 64\nOTHER = 1\nTABLE = {4: 2}\ndef kernel(): return BLOCK + TABLE[4]\n"
    )
    module = folder.load("kern_{0}")
    assert changes(lambda: setattr(module, "BLOCK", 128), module.kernel)
    assert changes(lambda: module.TABLE.update({4: 3}), module.kernel)
    assert not changes(lambda: setattr(module, "OTHER", 5), module.kernel)


def test_caches_and_counters_do_not_count_and_are_named(folder: Folder) -> None:
    folder.write(
        "kern_{0}.py",
        "_calls = 0\n_cache = {}\ndef kernel(x):\n"
        "    global _calls\n    _calls += 1\n    _cache[x] = x\n    return x\n",
    )
    module = folder.load("kern_{0}")
    assert not changes(lambda: [module.kernel(n) for n in range(3)], module.kernel)
    said = sources.not_covered([module.kernel])
    assert [line for line in said if "_calls" in line] and [line for line in said if "_cache" in line]


def test_a_cache_of_another_module_does_not_count(folder: Folder) -> None:
    """The module that fills it is of the same package: a certificate made before the first call counts after it."""
    folder.write("pack_{0}/__init__.py", "")
    folder.write("pack_{0}/made.py", "MADE = {}\ndef make(x):\n    MADE[x] = x\n    return x\n")
    folder.write(
        "pack_{0}/kern.py",
        "from pack_{0}.made import MADE, make\ndef kernel(x):\n    return MADE.get(x) or make(x)\n",
    )
    module = folder.load("pack_{0}.kern")
    assert not changes(lambda: [module.kernel(n) for n in range(1, 4)], module.kernel)
    assert [line for line in sources.not_covered([module.kernel]) if "MADE is changed at run time" in line]


# -- what cannot be followed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("open('table.json')", "reads a file (open)"),
        ("Path('t').read_text()", "reads a file (read_text)"),
        ("torch.load('w.pt')", "reads a file (torch.load)"),
        ("os.environ['BLOCK']", "reads the environment (environ)"),
        ("os.getenv('BLOCK')", "reads the environment (getenv)"),
        ("exec('x = 1')", "runs code made from text (exec)"),
        ("eval('1')", "runs code made from text (eval)"),
        ("importlib.import_module(name)", "imports a module whose name is made at run time (import_module)"),
        ("__import__(name)", "imports a module whose name is made at run time (__import__)"),
    ],
)
def test_what_cannot_be_followed_is_named(folder: Folder, line: str, said: str) -> None:
    folder.write(
        "kern_{0}.py",
        f"import importlib, os\nfrom pathlib import Path\nimport torch\ndef kernel(name):\n    return {line}\n",
    )
    assert f"kern_{folder.number}: {said} (line 5)" in sources.not_covered([folder.load("kern_{0}").kernel])


def test_plain_code_has_nothing_that_is_not_covered(folder: Folder) -> None:
    folder.write("kern_{0}.py", '"""Says open and os.environ."""\nBLOCK = 1\ndef kernel(): return BLOCK\n')
    assert sources.not_covered([folder.load("kern_{0}").kernel]) == ()
    assert ops.rms_norm.impls["portable"].not_covered() == ()


# -- items 3, 4, 5 -----------------------------------------------------------------------------------------


def by_path(file: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_module_loaded_by_path_counts_by_its_bytes(folder: Folder) -> None:
    helper = folder.write("helper_{0}.py", "X = 1\n")
    file = folder.write("elsewhere/kern.py", "import helper_{0}\ndef kernel(): return helper_{0}.X\n")
    kernel = by_path(file, f"not_importable_{folder.number}").kernel
    assert changes(lambda: file.write_text(file.read_text() + "# another byte\n"), kernel)
    assert changes(lambda: helper.write_text("X = 2\n"), kernel)


@pytest.mark.parametrize(
    "content",
    [b"type = = 3\nimport deeper_{0}\n", b"# caf\xe9\nimport deeper_{0}\n", b"import deeper_{0}\n\0\n"],
    ids=["newer syntax", "latin-1", "null"],
)
def test_a_file_that_cannot_be_parsed_counts_by_its_bytes(folder: Folder, content: bytes) -> None:
    content = content.replace(b"{0}", str(folder.number).encode())
    deeper = folder.write("deeper_{0}.py", "X = 1\n")
    odd = folder.write("odd_{0}.py", content)
    folder.write(
        "kern_{0}.py", "import sys\nif sys.version_info > (9,):\n    import odd_{0}\ndef kernel(): pass\n"
    )
    kernel = folder.load("kern_{0}").kernel
    assert changes(lambda: odd.write_bytes(content + b"#\n"), kernel)
    assert changes(lambda: deeper.write_text("X = 2\n"), kernel)
    sources.not_covered([kernel])


MADE = """
from ir_core import sources
space = {"NAMES": {"alpha", "beta", "gamma", "delta"}}
exec("def kernel(x): return x in {'one', 'two', 'three', 'four'} and x in NAMES", space)
print(sources.digest([space["kernel"]]))
"""


def test_the_hash_seed_changes_nothing() -> None:
    def run(seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", MADE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len({run(seed) for seed in ("1", "2", "3")}) == 1


def test_code_made_from_text_counts_by_what_it_does() -> None:
    def made(text: str, **space: Any) -> Callable[..., Any]:
        exec(text, space)
        return space["kernel"]  # type: ignore[no-any-return]

    one = digest(made("def kernel(x): return x + A", A=1))
    assert one == digest(made("\n\ndef kernel(x): return x + A", A=1))
    assert one != digest(made("def kernel(x): return x + A", A=2))
    assert one != digest(made("def kernel(x): return x - A", A=1))


# -- a process's own life ----------------------------------------------------------------------------------


def test_a_refresh_reads_again(folder: Folder) -> None:
    helper = folder.write("helper_{0}.py", "X = 1\n")
    folder.write(
        "kern_{0}.py",
        f"import torch\nimport helper_{{0}}\ndef kernel({SIGNATURE}) -> torch.Tensor:\n    return x\n",
    )
    impl = ops.rms_norm.register_impl("t_again")(folder.load("kern_{0}").kernel)
    try:
        first = impl.uuid()
        helper.write_text("X = 2\n")
        assert impl.uuid() == first
        ir_core.refresh()
        assert impl.uuid() != first
    finally:
        ops.rms_norm.unregister_impl("t_again")


def test_a_call_changes_no_digest() -> None:
    for op in (ops.rms_norm, ops.gelu_and_mul_sparse):
        for provider in ("native", "portable"):
            impl = op.impls[provider]
            ir_core.refresh()
            first = impl.uuid()
            impl.impl_fn(*op.generate_inputs(num_tokens=2, hidden_size=64, dtype=torch.float32))
            ir_core.refresh()
            assert impl.uuid() == first


def test_objects_of_any_kind_raise_nothing() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no")

        def __call__(self) -> None: ...

        def __repr__(self) -> str:
            raise RuntimeError("no")

    looped: list[Any] = []
    looped.append(looped)

    def around(value: Any) -> Callable[[], Any]:
        return lambda: value

    for value in (Hostile(), looped, object(), torch.ones(1, device="meta"), iter([]), type("Made", (), {})):
        assert len(digest(around(value))) == 64
    assert sources.not_covered([around(object())])
    assert digest(Hostile()) and digest(len) and digest(torch.nn.functional.relu) and digest(torch.add)
