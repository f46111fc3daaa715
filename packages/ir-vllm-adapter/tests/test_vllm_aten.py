# SPDX-License-Identifier: Apache-2.0
"""The ATen seam against the functions of whatever vLLM is installed: 0.20.0, 0.26.0, 0.32.0 and 0.33.0 in turn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from ir_core import get_op
from ir_core.catalog import op_names
from ir_vllm_adapter import aten_seam, compat, counters, linear_seam, log, plugin
from ir_vllm_adapter.attachment import ATTACHED, is_wrapped

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("vllm_on_cpu"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs an installed vLLM"),
]

# vLLM's function, and arguments for it as ATen's overrides pass them.
CALLS: dict[str, Callable[[torch.dtype], list[tuple[Any, ...]]]] = {
    "matmul_persistent": lambda dtype: [
        (rows(dtype, 5, 48), rows(dtype, 48, 40)),
        (rows(dtype, 5, 48), rows(dtype, 40, 48).t(), rows(dtype, 40)),
    ],
    "bmm_batch_invariant": lambda dtype: [(rows(dtype, 2, 5, 48), rows(dtype, 2, 48, 24))],
    "log_softmax": lambda dtype: [(rows(dtype, 5, 48), -1), (rows(dtype, 2, 5, 48), 2)],
    "softmax_batch_invariant": lambda dtype: [
        (rows(dtype, 5, 48), -1),
        (rows(dtype, 2, 5, 48), 1),
        (rows(dtype, 5, 48), 1, True),
        (rows(dtype, 5, 48), 1, torch.float32),
    ],
    "mean_dim": lambda dtype: [
        (rows(dtype, 5, 48), -1, True),
        (rows(dtype, 2, 5, 48), 1, False),
        (rows(dtype, 2, 5, 48), -2, True),
    ],
}
POINTS = [name for name, (op, _) in aten_seam.POINTS.items() if op in op_names()]


def rows(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def expected(name: str, args: tuple[Any, ...]) -> Tensor:
    """What the op's portable makes of it, written out for each function."""
    op = get_op(aten_seam.POINTS[name][0]).impls["portable"].impl_fn
    x = args[0]
    if name == "matmul_persistent":
        return op(x, args[1].t(), args[2] if len(args) > 2 else None)  # type: ignore[no-any-return]
    if name == "bmm_batch_invariant":
        return op(x, args[1].mT)  # type: ignore[no-any-return]
    if name == "softmax_batch_invariant" and len(args) > 2:
        x = x.float()
    last = x.transpose(args[1], -1).contiguous()
    if name == "mean_dim":
        found = op(last).unsqueeze(-1).transpose(args[1], -1)
        return found if args[2] else found.squeeze(args[1])  # type: ignore[no-any-return]
    return op(last).transpose(args[1], -1)  # type: ignore[no-any-return]


@pytest.fixture(params=["IR", "IR hidden"])
def behind(request: pytest.FixtureRequest) -> Any:
    """vLLM's module, with ir-core's ops behind its functions."""
    if request.param == "IR hidden":
        request.getfixturevalue("hidden_ir")
    request.getfixturevalue("invariant")
    linear_seam.install()
    aten_seam.install()
    assert log.LINES == []
    return compat.batch_invariant_module()


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", POINTS)
def test_a_call_has_the_bits_of_the_order(behind: Any, name: str, dtype: torch.dtype) -> None:
    op = aten_seam.POINTS[name][0]
    key = f"aten:{op}/selected at the call"
    for args in CALLS[name](dtype):
        before = counters.CALLS[key]
        found, right = getattr(behind, name)(*args), expected(name, args)
        assert (found.shape, found.dtype) == (right.shape, right.dtype)
        assert torch.equal(bits(found), bits(right)), (args[0].shape, args[1:])
        assert counters.CALLS[key] == before + 1
    assert f"{behind.__name__}.{name}" in ATTACHED.takeovers[op].seams


def test_what_vllm_gives_aten_ends_at_these_functions(behind: Any) -> None:
    """Each override of this version is one of them, or calls one of them."""
    if "bmm" in op_names():
        a, b = rows(torch.float32, 2, 3, 16), rows(torch.float32, 2, 16, 8)
        out = torch.empty(2, 3, 8)
        assert behind.bmm_batch_invariant(a, b, out=out) is out
        assert torch.equal(out, expected("bmm_batch_invariant", (a, b)))
    x, w = rows(torch.bfloat16, 3, 16), rows(torch.bfloat16, 8, 16)
    before = counters.CALLS["aten:linear/selected at the call"]
    product = expected("matmul_persistent", (x, w.t()))
    assert torch.equal(bits(behind.mm_batch_invariant(x, w.t())), bits(product))
    assert torch.equal(bits(behind.matmul_batch_invariant(x[None], w.t())), bits(product[None]))
    assert torch.equal(bits(behind.linear_batch_invariant(x, w)), bits(product))
    bias = rows(torch.bfloat16, 8)
    with_bias = expected("matmul_persistent", (x, w.t(), bias))
    assert torch.equal(bits(behind.addmm_batch_invariant(bias, x, w.t())), bits(with_bias))
    assert counters.CALLS["aten:linear/selected at the call"] == before + 4


def test_every_override_is_known(behind: Any) -> None:
    """A function that this version registers, and that computes, must be among the points or end at one of them."""
    import re

    source = inspect.getsource(behind.enable_batch_invariant_mode)
    registered = set(re.findall(r"\.impl\(\s*\"aten::[\w.]+\",\s*(\w+)", source))
    ours = {"mm", "addmm", "matmul", "linear", "mm_out", "addmm_out", "bmm", "bmm_out", "softmax", "mean"}
    assert registered <= {f"{name}_batch_invariant" for name in ours} | {"_log_softmax_batch_invariant"}


def test_a_native_op_that_comes_back_to_aten_ends_at_vllm(behind: Any) -> None:
    """ATen's op is vLLM's function is ours; ours may be native, which calls ATen's op: once around is enough."""
    from ir_vllm_adapter import takeover

    seen: list[str] = []

    def theirs() -> str:
        seen.append("vLLM")
        return "vLLM"

    guarded: Callable[[], str] = takeover.once(lambda: guarded(), theirs)
    assert guarded() == "vLLM" and seen == ["vLLM"]
    assert guarded() == "vLLM"


def test_a_dtype_without_a_kernel_is_vllms(behind: Any) -> None:
    before = dict(counters.CALLS)
    original = behind.bmm_batch_invariant.__wrapped__
    with pytest.raises(KeyError):  # vLLM's own table has no float64
        original(rows(torch.float64, 2, 3, 16), rows(torch.float64, 2, 16, 8))
    with pytest.raises(KeyError):
        behind.bmm_batch_invariant(rows(torch.float64, 2, 3, 16), rows(torch.float64, 2, 16, 8))
    assert dict(counters.CALLS) == before


def test_taken_back_atens_own_copy_calls_vllm(behind: Any) -> None:
    held = behind.bmm_batch_invariant
    assert is_wrapped(held)
    plugin.unregister()
    module = compat.batch_invariant_module()
    assert not any(is_wrapped(getattr(module, name)) for name in aten_seam.POINTS)
    before = dict(counters.CALLS)
    with pytest.raises(ValueError, match="expects 3D tensors"):  # in vLLM's words
        held(rows(torch.float32, 3, 4), rows(torch.float32, 4, 2))
    assert dict(counters.CALLS) == before


def test_where_the_mode_is_on_already_what_aten_holds_stays(
    invariant: pytest.MonkeyPatch,
) -> None:
    module = compat.batch_invariant_module()
    invariant.setattr(module, "_batch_invariant_MODE", True)
    aten_seam.install()
    assert not any(is_wrapped(getattr(module, name)) for name in aten_seam.REGISTERED)
    assert is_wrapped(module.matmul_persistent)


def test_without_the_switch_nothing_is_touched(settings: pytest.MonkeyPatch) -> None:
    plugin.register()
    aten_seam.install()
    module = compat.batch_invariant_module()
    assert not any(is_wrapped(getattr(module, name)) for name in aten_seam.POINTS)
    assert ATTACHED.takeovers == {}
