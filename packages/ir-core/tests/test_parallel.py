# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: the same bits on 1, 2, 4 and 8 ranks, forward and backward, on CPU processes over gloo.

The ranks run ``ranks/program.py``, once for all tests here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import ops
from ir_core.errors import ArgumentError
from ir_core.policy import OpPolicy

dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

PROGRAM = Path(__file__).parent / "ranks" / "program.py"
Results = dict[tuple[str, int], dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the first rank of each group got, by case and number of ranks."""
    file = tmp_path_factory.mktemp("ranks") / "results.pt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IR_PACKS": "", "IR_PRIORITY": ""}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(file)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Results = torch.load(file)
    return found


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that are not equal in every bit."""
    assert a.keys() == b.keys() and a
    return [name for name in a if not torch.equal(bits(a[name]), bits(b[name]))]


EQUAL = (
    "styles bf16",
    "styles f32",
    "plans bf16",
    "mode bf16",
    "by slices bf16",
    "functions bf16",
    "functions f32",
)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("case", EQUAL)
def test_ranks_give_the_bits_of_one(results: Results, case: str, ranks: int):
    """The output of a block and its gradients: of its input, of each weight (gathered), bias and norm."""
    assert not different(results[case, 1], results[case, ranks])
    if case.startswith("styles"):
        assert {"out", "x", "o.weight", "down.bias", "q.weight", "norm1", "lm_head.weight"} <= results[
            case, 1
        ].keys()


@pytest.mark.slow
def test_every_way_is_one_arithmetic(results: Results):
    """Our styles, torch's plans under the mode, and sums by slices."""
    assert not different(results["styles bf16", 1], results["plans bf16", 8])
    assert not different(results["styles bf16", 4], results["by slices bf16", 2])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_row_parallel_layer_is_linear_in_chain16x8(results: Results, dtype: str, ranks: int):
    """So a model on one device, without any of this, has the same bits under the policy that asks for the order."""
    found = results[f"functions {dtype}", ranks]
    whole = {name.removesuffix(" by linear"): t for name, t in found.items() if name.endswith("by linear")}
    assert not different(whole, {name: found[name] for name in whole})


PLANTED = {
    "planted all-reduce": (4, 8),
    "planted rounding": (2, 4, 8),
    "planted row of sums": (4, 8),
    "planted other ranks": (4, 8),
    "torch's own bf16": (2, 4, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PLANTED)
def test_the_test_sees_what_it_is_there_for(results: Results, case: str):
    """A library's all-reduce, a part that was rounded, another tree, ranks in another order, and torch's own plans.

    Two numbers have one sum in any order: on two ranks only the rounding shows.
    """
    for ranks in (2, 4, 8):
        found = different(results[case, 1], results[case, ranks])
        assert ("out" in found and "x" in found) == (ranks in PLANTED[case]), (ranks, found)


@pytest.mark.slow
def test_what_has_no_order_is_refused(results: Results):
    for ranks in (2, 4, 8):
        assert results["refused", ranks]["said"].tolist() == [1, 1, 1]


def test_without_ranks_it_is_one_rank():
    """The functions need no process group, and give the gradients that ranks give."""
    from ir_core import parallel

    torch.manual_seed(1)
    x, w, b = (torch.randn(*s).bfloat16().requires_grad_() for s in ((3, 40), (24, 40), (24,)))
    g = torch.randn(3, 24).bfloat16()
    with ir_core.scope(batch_invariant=True):
        row, column = parallel.row_parallel_linear(x, w, b), parallel.column_parallel_linear(x, w, b)
        plain = ops.linear(x, w, b)
        with ir_core.scope(ops={"linear": OpPolicy(order="chain16x8")}):
            assert torch.equal(bits(row), bits(ops.linear(x, w, b)))
    assert torch.equal(bits(column), bits(plain))
    grads = {
        name: torch.autograd.grad(y, (x, w, b), g)
        for name, y in (("row", row), ("column", column), ("plain", plain))
    }
    for number in range(3):
        assert torch.equal(bits(grads["row"][number]), bits(grads["plain"][number]))
    assert all(
        torch.equal(bits(a), bits(b)) for a, b in zip(grads["column"][1:], grads["plain"][1:], strict=True)
    )
    with ir_core.scope(batch_invariant=True):
        wanted = ops.linear_partial(g, w.detach().T).bfloat16()
    assert torch.equal(bits(grads["column"][0]), bits(wanted))


def test_a_linear_with_something_of_its_own_is_refused():
    from ir_core import parallel
    from ir_core.parallel.dtensors import _ordered

    class Own(torch.nn.Linear):
        pass

    with pytest.raises(ArgumentError, match="with something of its own"):
        _ordered(Own(2, 2))
    with pytest.raises(ArgumentError, match="takes float32 and float64"):
        parallel.ordered_sum(torch.ones(2).half())


def test_the_mode_knows_which_collectives_add():
    from ir_core.covering.known import keeps_bits

    assert keeps_bits(dist.all_gather) and keeps_bits(dist.all_to_all_single) and keeps_bits(dist.broadcast)
    assert not keeps_bits(dist.all_reduce) and not keeps_bits(dist.reduce_scatter)
    functional = torch.ops._c10d_functional
    assert keeps_bits(functional.all_gather_into_tensor.default) and not keeps_bits(
        functional.all_reduce.default
    )


def test_importing_it_starts_nothing():
    code = "import ir_core, sys; import ir_core.parallel; import torch.distributed as d; assert not d.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
