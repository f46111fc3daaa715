# SPDX-License-Identifier: Apache-2.0
"""With every broken pack installed at once: each is named, and everything else works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.packs

PACKS = tomllib.loads((Path(__file__).parent / "broken.toml").read_text())["pack"]
NAMES = [f"ir-broken-{pack['name']}" for pack in PACKS]

# Uses what is not broken, in both modes, and prints what was selected.
WORK = """
import torch, ir_core
x, weight = torch.randn(4, 64), torch.ones(64)
plain = ir_core.ops.rms_norm(x, weight, 1e-6)
with ir_core.scope(batch_invariant=True):
    invariant = ir_core.ops.rms_norm(x, weight, 1e-6)
    alone = torch.cat([ir_core.ops.rms_norm(x[i : i + 1], weight, 1e-6) for i in range(4)])
assert torch.allclose(plain, invariant)
assert torch.equal(invariant, alone)
print(*sorted(ir_core.ops.rms_norm.supported_providers()))
print(*sorted(pack.distribution for pack in ir_core.packs()))
"""


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, away from the sources."""
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def mappings(data: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a JSON value."""
    if isinstance(data, dict):
        yield data
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from mappings(value)


@pytest.fixture(scope="module")
def doctor() -> Any:
    """What `ir-core doctor --json` says here."""
    done = python("-m", "ir_core", "doctor", "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def work() -> subprocess.CompletedProcess[str]:
    """A program that has all of them installed and uses none."""
    return python("-c", WORK)


def test_there_are_twelve_ways() -> None:
    ways = {name.removesuffix("-one").removesuffix("-two") for name in NAMES}
    assert len(ways) == 12


@pytest.mark.parametrize("pack", PACKS, ids=[pack["name"] for pack in PACKS])
def test_doctor_names_it(pack: dict[str, Any], doctor: Any) -> None:
    name = f"ir-broken-{pack['name']}"
    said = [entry for entry in mappings(doctor) if entry.get("distribution") == name and "error" in entry]
    assert said, f"doctor says nothing of {name}"
    text = json.dumps(said)
    missing = [word for word in pack["says"] if word not in text]
    assert not missing, f"no {missing} in {text}"
    assert all(entry["version"] == "1.0" for entry in said)


def test_list_says_what_no_op_has() -> None:
    done = python("-m", "ir_core", "list")
    assert done.returncode == 0, done.stderr
    assert "l2_normalize" in done.stdout
    assert "cannot offer no_such_op/broken_op" in done.stderr


def test_everything_else_works(work: subprocess.CompletedProcess[str]) -> None:
    assert work.returncode == 0, work.stderr
    providers, distributions = work.stdout.splitlines()
    assert {"native", "portable", "triton", "triton_batch_invariant"} <= set(providers.split())
    assert "ir-kernels-triton" in distributions.split()


def test_a_broken_pack_is_named_once(work: subprocess.CompletedProcess[str]) -> None:
    lines = work.stderr.splitlines()
    for name in NAMES:
        said = [line for line in lines if line.startswith(f"{name} ")]
        assert len(said) <= 1, said
    for name in ("ir-broken-import-error", "ir-broken-system-exit", "ir-broken-wrong-api"):
        assert any(name in line for line in lines), f"{name} is broken and nobody was told"


def test_the_allow_list_keeps_them_out() -> None:
    code = (
        f"{WORK}\n"
        "import sys\n"
        "assert not ir_core.failures(), ir_core.failures()\n"
        "assert not [name for name in sys.modules if name.startswith('ir_broken')]\n"
    )
    done = python("-c", code, IR_PACKS="ir-kernels-triton")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "ir-kernels-triton"
