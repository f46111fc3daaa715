# SPDX-License-Identifier: Apache-2.0
"""What two layers read from the environment, they read alike: ir-platform cannot import ir-core, and may be absent."""

import itertools

import pytest

ir_platform = pytest.importorskip("ir_platform")
from ir_core import env, platforms  # noqa: E402
from ir_core.errors import EnvError  # noqa: E402
from ir_platform import env as platform_env  # noqa: E402
from ir_platform import override  # noqa: E402
from ir_platform.errors import OverrideError  # noqa: E402

WORDS = [
    "",
    "cpu",
    "xpu",
    "mps",
    "sm90",
    "SM_90A",
    "sm_103f",
    "compute_80",
    "90",
    "9.0",
    "12.0",
    "100",
    "gfx942",
]
WORDS += [
    "gfx1100",
    "gfx90a",
    "gfxyz",
    "gfx",
    "gfx9",
    "sm",
    "hopper",
    "sm9",
    "9",
    "9.10",
    "90.0",
    "0.5",
    "1000",
    "sm90b",
]
TARGETS = [
    f"{kind}{word}" for kind, word in itertools.product(["", "cuda:", "rocm:", "cpu:", ":", "xpu:"], WORDS)
]


def ours() -> object:
    try:
        found = platforms._override()
    except EnvError:
        return "error"
    if found is None:
        return None
    capability = found.capability and (found.capability.major, found.capability.minor)
    return found.device, found.kind, capability, found.arch


def theirs() -> object:
    try:
        found = override.override()
    except OverrideError:
        return "error"
    if found is None or found.kind == "cpu":
        return None
    return override._NAMES[found.kind], found.kind, found.capability, found.arch


@pytest.mark.parametrize("value", [*TARGETS, " ", " sm90 ", "CUDA:SM90", "sm90,cpu"])
def test_a_target(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_TARGET", value)
    assert ours() == theirs()


@pytest.mark.parametrize(
    "value", ["", "0", "1", "true", "True", "yes", "on", "y", "n", "off", " 1 ", "2", "t"]
)
def test_whether_triton_interprets(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert env.interpreted() is platform_env.interpreted()
    triton = pytest.importorskip("triton")
    assert env.interpreted() is triton.knobs.runtime.interpret
