# SPDX-License-Identifier: Apache-2.0
"""Two calls in one launch: an offer of an implementation, checked when it is made and probed like every claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import IrOp, ops, register_op
from ir_core.errors import PackError, SchemaError
from ir_core.pack import KernelPack
from ir_core.platforms import target_of
from ir_core.verification import one_call
from ir_core.verification.calls import Call
from ir_core.verification.outcome import PASSED
from ir_core.verification.subject import Subject

CALL = Call("float32", 64, rows=5)


@pytest.fixture
def op() -> IrOp:
    def t_scaled(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return x * weight * epsilon

    made: IrOp = register_op(t_scaled)

    @made.register_input_generator
    def _inputs(num_tokens: int, hidden_size: int, dtype: torch.dtype, **_: Any) -> tuple[Any, ...]:
        return torch.randn(num_tokens, hidden_size, dtype=dtype), torch.randn(hidden_size, dtype=dtype), 0.7

    return made


def scaled(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * weight * epsilon


def honest(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    return scaled(*first), scaled(*second)


def mixes_weights(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    x, _, epsilon = second
    return scaled(*first), scaled(x, first[1], epsilon)


def rounds_otherwise(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    x, w, epsilon = first
    return torch.addcmul(torch.full_like(x, epsilon).double(), x.double(), w.double()).float(), scaled(
        *second
    )


def overwrites(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    results = honest(first, second)
    second[0].zero_()
    return results


def one_memory(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    a, b = honest(first, second)
    both = torch.cat((a.flatten(), b.flatten()))
    return both[: a.numel()].view(a.shape), both[a.numel() :].view(b.shape)


BUFFERS: dict[Any, Tensor] = {}


def static_buffers(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    a, b = honest(first, second)
    return tuple(BUFFERS.setdefault((i, r.shape), r).copy_(r) for i, r in enumerate((a, b)))  # type: ignore[return-value]


def only_bfloat16_is_wrong(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    a, b = honest(first, second)
    return (a + 1, b) if a.dtype == torch.bfloat16 else (a, b)


def only_heads_are_wrong(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    a, b = honest(first, second)
    return (a + 1, b) if a.shape[-1] == 128 else (a, b)


def only_many_rows_are_wrong(first: Sequence[Any], second: Sequence[Any]) -> tuple[Tensor, Tensor]:
    a, b = honest(first, second)
    return (a + 1, b) if len(a) > 100 else (a, b)


def one_result(first: Sequence[Any], second: Sequence[Any]) -> Any:
    return scaled(*first)


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        (honest, None),
        (mixes_weights, "call 1 of two in one launch differs"),
        (rounds_otherwise, "call 0 of two in one launch differs"),
        (overwrites, "changes an input"),
        (one_memory, "in one memory"),
        (one_result, "not the results of two calls"),
        (None, None),
    ],
)
def test_the_probe(op: IrOp, pair: Callable[..., Any] | None, complaint: str | None) -> None:
    impl = op.register_impl("t_pair", pair=pair)(scaled)
    assert (impl.spec.pair is not None) == (pair is not None)
    outcome = one_call.pair(Subject(impl, target_of(torch.device("cpu"))), CALL)
    assert outcome == PASSED if complaint is None else complaint in str(outcome)


@pytest.mark.parametrize(
    "pair",
    [
        rounds_otherwise,
        static_buffers,
        only_bfloat16_is_wrong,
        only_heads_are_wrong,
        only_many_rows_are_wrong,
    ],
)
def test_a_wrong_pair_is_refuted_by_the_verification(op: IrOp, pair: Callable[..., Any]) -> None:
    from ir_core.verification import verify

    wrong = op.register_impl("t_wrong", batch_invariant=True, pair=pair)(scaled)
    right = op.register_impl("t_right", batch_invariant=True, pair=honest)(scaled)
    report = verify([wrong, right], budget=20, fresh_process=False, save=False, stop="first", random=0)
    refuted, other = report.certificates
    assert refuted.verdict == "refuted"
    assert [finding.probe for finding in refuted.findings] == ["pair"]
    assert "pair" not in {finding.probe for finding in other.findings}


@pytest.mark.parametrize("pair", ["no function", lambda first: first, lambda: None])
def test_what_cannot_be_a_pair(op: IrOp, pair: Any) -> None:
    with pytest.raises(SchemaError, match="pair of implementation 't_bad' of op 't_scaled'"):
        op.register_impl("t_bad", pair=pair)(scaled)


def test_a_function_without_a_signature_is_taken(op: IrOp) -> None:
    assert op.register_impl("t_c", pair=max)(scaled).pair_fn is max


def test_the_pair_is_part_of_the_identity(op: IrOp) -> None:
    alone = op.register_impl("t_one")(scaled).uuid()
    op.unregister_impl("t_one")
    assert op.register_impl("t_one", pair=honest)(scaled).uuid() != alone


def test_a_pack_offers_one_by_path(site: Any) -> None:
    site.module(
        "t_pair_kernels",
        "from torch import Tensor\n"
        "from ir_core import ops\n"
        "def norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:\n"
        "    return ops.rms_norm.impls['portable'].impl_fn(x, weight, epsilon, variance_size)\n"
        "def both(first, second):\n"
        "    return norm(*first), norm(*second)\n",
    )
    offer = {
        "op": "rms_norm",
        "provider": "t_paired",
        "impl": "t_pair_kernels:norm",
        "pair": "t_pair_kernels:both",
    }
    site.pack("t-paired", f"PACK = { ({'api': 1, 'name': 't', 'implementations': [offer]})!r}")
    ir_core.refresh()
    impl = ops.rms_norm.impls["t_paired"]
    assert impl.spec.pair is not None
    import sys

    assert "t_pair_kernels" not in sys.modules  # data first
    x = torch.randn(3, 8)
    assert impl.pair_fn is not None
    first, second = impl.pair_fn((x, None, 1e-6, None), (x[:1], None, 1e-6, None))
    assert torch.equal(first[:1], second)
    with pytest.raises(PackError, match="pair of Implementation 'rms_norm/t_paired' is at 'nowhere'"):
        KernelPack.parse({"api": 1, "name": "t", "implementations": [{**offer, "pair": "nowhere"}]})
