# SPDX-License-Identifier: Apache-2.0
"""The pack is found without importing Liger, is honest, and is selected where it may be."""

import subprocess
import sys

import pytest
import torch

import ir_core
from ir_core import ops

pytest.importorskip("ir_liger", reason="the example is not installed (nox -s packs)")

H100 = ir_core.Target(device="cuda:0", kind="cuda", capability=ir_core.Capability(9, 0), batch_invariant=True)


def select(**arguments: object) -> ir_core.Selection:
    """What a call on an H100 would run if liger is preferred."""
    policy = ir_core.Policy(ops={"rms_norm": ir_core.OpPolicy(prefer=("liger",))}, **arguments)  # type: ignore[arg-type]
    x, weight = torch.empty(4, 128, device="meta"), torch.empty(128, device="meta")
    return ir_core.select(ops.rms_norm, policy, H100, ops.rms_norm.apply_arg_defaults((x, weight, 1e-6)))


def reason(selection: ir_core.Selection) -> str:
    return next(c.reason for c in selection.candidates if c.provider == "liger")


def test_it_is_listed_without_importing_liger() -> None:
    code = "import sys, ir_core; assert 'liger' in ir_core.ops.rms_norm.impls; assert 'liger_kernel' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_is_selected_when_it_is_asked_for() -> None:
    pytest.importorskip("liger_kernel")
    assert select().provider == "liger"


def test_it_is_never_selected_in_batch_invariant_mode() -> None:
    selection = select(batch_invariant=True)
    assert selection.provider != "liger"
    assert reason(selection) == "not declared batch-invariant"


@pytest.mark.gpu
def test_its_bits_change_at_32768_rows() -> None:
    impl = ops.rms_norm.impls["liger"]
    x = torch.randn(32768, 128, device="cuda")
    weight = torch.ones(128, device="cuda")
    together = impl.impl_fn(x, weight, 1e-6)
    apart = torch.cat([impl.impl_fn(part, weight, 1e-6) for part in x.split(4096)])
    assert not torch.equal(together, apart)
