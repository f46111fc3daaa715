# SPDX-License-Identifier: Apache-2.0
"""What ``doctor`` reports, as plain data. It loads every pack, and the code of every implementation."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from importlib_metadata import PackageNotFoundError, version

from ir_core import catalog, discovery, env, lock_file, platforms, policy
from ir_core.cli import arguments
from ir_core.errors import IrError, LockError, PackError, PredicateError
from ir_core.failure import Failure, distribution_of
from ir_core.op import get_op
from ir_core.resolve import select

if TYPE_CHECKING:
    from ir_core.impl import IrOpImpl
    from ir_core.op import IrOp

SOFTWARE: Final = (
    "ir-core",
    "ir-platform",
    "ir-kernels-triton",
    "ir-vllm-adapter",
    "torch",
    "triton",
    "vllm",
)
_SHAPE: Final = (4, 4096)
_DTYPE: Final = torch.bfloat16

Refused: TypeAlias = dict[tuple[str, str], str]
"""By op and provider: what its predicate raised."""


def collect(device: str) -> dict[str, Any]:
    """Everything; ``broken`` is filled last, since looking at the ops finds broken implementations."""
    refused: Refused = {}
    selected = {name: _selected(name, device, refused) for name in catalog.op_names()}
    return {
        "versions": {"Python": f"{platform.python_version()} ({sys.executable})"}
        | {name: _version(name) for name in SOFTWARE},
        "devices": [{**t.to_dict(), "describe": t.describe()} for t in platforms.targets()],
        "packs": [
            {
                "distribution": pack.distribution,
                "version": pack.version,
                "name": pack.data.name,
                "ops": sorted(pack.data.ops),
                "implementations": [f"{spec.op}/{spec.provider}" for spec in pack.data.implementations],
            }
            for pack in catalog.packs()
        ],
        "skipped": list(catalog.skipped()),
        "allowed_but_absent": allowed_but_absent(),
        "lock": lock(),
        "environment": env.snapshot(),
        "certificates": certificates(),
        "device": device,
        "example": f"{str(_DTYPE).removeprefix('torch.')} {'x'.join(map(str, _SHAPE))}",
        "selected": selected,
        "broken": [failure.to_dict() for failure in broken(refused)],
    }


def broken(refused: Refused) -> list[Failure]:
    """Every failure of platform providers and packs, in the order in which it was met."""
    return [*platforms.failures(), *catalog.failures(), *orphans(), *_predicates(refused)]


def allowed_but_absent() -> list[str]:
    """Names in IR_PACKS that no distribution with a pack has: misspelled, or not installed."""
    from importlib_metadata import entry_points

    there = {discovery.normalize(distribution_of(point)[0]) for point in entry_points(group=discovery.GROUP)}
    return sorted(n for n in env.names(env.IR_PACKS) or () if discovery.normalize(n) not in there)


def lock() -> str:
    """What is wrong with the file that IR_LOCK names, or nothing."""
    name = env.text(env.IR_LOCK)
    try:
        if name:
            lock_file.read(name)
    except LockError as error:
        return str(error)
    return ""


def orphans() -> list[Failure]:
    """Implementations of ops that no pack offers."""
    known = set(catalog.op_names())
    return [
        _finding(pack, f"offer {spec.op}/{spec.provider}", f"UnknownOpError: there is no op '{spec.op}'")
        for pack in catalog.packs()
        for spec in pack.data.implementations
        if spec.op not in known
    ]


def _finding(pack: discovery.Pack, doing: str, error: str) -> Failure:
    return Failure(pack.distribution, pack.version, f"{pack.point.name} = {pack.point.value}", doing, error)


def _predicates(refused: Refused) -> list[Failure]:
    """Implementations whose predicate fails when it is asked."""
    return [
        _finding(pack, f"ask {spec.op}/{spec.provider} what it supports", refused[spec.op, spec.provider])
        for pack in catalog.packs()
        for spec in pack.data.implementations
        if (spec.op, spec.provider) in refused
    ]


def _selected(name: str, device: str, refused: Refused) -> dict[str, Any]:
    """What would run for an op in both modes; failures to say so are said."""
    try:
        op = get_op(name)
        args = arguments.fake_arguments(op, _SHAPE, _DTYPE, device)
    except Exception as error:  # code of a pack: anything can happen
        said = {"provider": None, "text": f"{type(error).__name__}: {error}"}
        return {"any": said, "batch_invariant": said}
    for impl in op.impls.values():
        _try(impl, args, refused)
    return {
        "any": _one(op, device, args, batch_invariant=False),
        "batch_invariant": _one(op, device, args, batch_invariant=True),
    }


def _try(impl: IrOpImpl, args: tuple[Any, ...], refused: Refused) -> None:
    """Load an implementation and ask its predicate, so that what is broken shows."""
    try:
        impl.load()
        impl.refusal(args, [])
    except PredicateError as error:
        refused[impl.op.name, impl.provider] = f"{type(error).__name__}: {error}"
    except PackError:
        pass  # discovery keeps it, with its traceback


def _one(op: IrOp, device: str, args: tuple[Any, ...], *, batch_invariant: bool) -> dict[str, Any]:
    with policy.scope(batch_invariant=batch_invariant) as requirement:
        target = platforms.target_of(torch.device(device))
        try:
            chosen = select(op, requirement, target, args, full=False).chosen
        except IrError as error:
            return {"provider": None, "text": f"error: {error.what}"}
    if chosen is None:
        return {"provider": None, "text": "nothing qualifies"}
    return {
        "provider": chosen.provider,
        "distribution": chosen.distribution,
        "version": chosen.version,
        "text": f"{chosen.provider} ({chosen.distribution} {chosen.version})",
    }


def _version(name: str) -> str:
    if name == "torch":
        return torch.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def certificates() -> list[dict[str, str]]:
    """The certificates that can be read here, whatever device and version they are of."""
    from ir_core.verification import store

    return [
        {
            "implementation": found.label,
            "version": f"{found.distribution} {found.version}",
            "verdict": found.verdict,
            "created": found.created,
            "summary": found.summary(),
        }
        for found in store.load_all()
    ]
