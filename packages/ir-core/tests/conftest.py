# SPDX-License-Identifier: Apache-2.0
"""Isolation: what a test registers, sets as default or switches is gone after it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ir_core
from ir_core import catalog, discovery, env, ops, policy

PLANTED = str(Path(__file__).parent / "planted")
"""Where the package ``mutants`` lies: outside of what is installed."""
if PLANTED not in sys.path:
    sys.path.append(PLANTED)


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    """Put back ops, implementations, the default policy, torch wrap and the project's variables."""
    assert ops.rms_norm  # the core's own ops are there before the first test
    before = {name: dict(catalog.known(op)) for name, op in ir_core.IrOp.registry.items()}
    variables = {name: os.environ.get(name) for name in env.ALL}
    yield
    for op in catalog.loaded():
        name = op.name
        if name not in before:
            op.unregister()
            continue
        for provider, impl in list(catalog.known(op).items()):
            if before[name].get(provider) is not impl and impl.point is None:
                op.unregister_impl(provider)
    changed = False
    for name, value in variables.items():
        if os.environ.get(name) != value:
            changed = True
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    if changed or policy._changes:
        policy.reset_default(forget_changes=True)
    if not policy.wrap_of(None):
        ir_core.set_default_torch_wrap(True)


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """The core without any installed pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(env.IR_PACKS, "")
        ir_core.refresh()
        yield
    ir_core.refresh()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``environment(IR_STRICT="1")``: set variables and let the policy read them."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        policy.reset_default()

    yield change
    monkeypatch.undo()
    policy.reset_default()


class Site:
    """A folder on ``sys.path`` in which distributions with entry points can be put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str, text: str) -> str:
        """A module; its name must be new in the process, since modules stay imported."""
        (self.folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    def distribution(self, name: str, entry_points: str, version: str | None = "1.0") -> None:
        """A ``.dist-info`` folder; without a version it has no METADATA file."""
        info = self.folder / f"{name.replace('-', '_')}-{version or '0'}.dist-info"
        info.mkdir()
        if version is not None:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        importlib.invalidate_caches()

    def pack(self, name: str, body: str, version: str | None = "1.0", group: str = discovery.GROUP) -> None:
        """A distribution with one pack, whose module has the text ``body`` and defines ``PACK``."""
        module = self.module(f"{name.replace('-', '_')}_{self.folder.name.replace('-', '_')}", body)
        self.distribution(name, f"[{group}]\n{name} = {module}:PACK\n", version)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty folder on ``sys.path``; installed packs are seen beside what is put there."""
    folder = tmp_path / tmp_path.name
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv(env.IR_PACKS, raising=False)

    ir_core.refresh()
    yield Site(folder)
    monkeypatch.undo()
    ir_core.refresh()
