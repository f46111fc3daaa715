# SPDX-License-Identifier: Apache-2.0
"""KernelPack: the contract of a kernel pack. A pack is data first, code later.

An entry point of the group ``ir_core.kernels`` names a plain mapping (or a :class:`KernelPack`)::

    PACK = {
        "api": 1,
        "name": "my-pack",
        "ops": {"my_op": "my_pack.ops:my_op"},  # new ops, made by ir_core.register_op
        "implementations": [
            {
                "op": "rms_norm",
                "provider": "my_pack",
                "impl": "my_pack.kernels:rms_norm",  # imported when it is first needed
                "requires": "sm>=8.0",
                "batch_invariant": True,
            },
        ],
    }

The module that holds it should import neither torch nor the kernels: it is read to learn what is offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ir_core.errors import PackError, TargetError
from ir_core.requirement import Requirement, parse_requirement

PACK_API: Final = 1
"""Version of this contract; a pack states the one it was written for."""


@dataclass(frozen=True)
class ImplSpec:
    """One implementation that a pack offers.

    Args:
        op, provider: which op it implements, under which name.
        impl: ``"module:function"`` with the native implementation's signature.
        requires: what the device must have (``ir_core.requirement``).
        supports_args: ``"module:function"`` of its predicate (``ir_core.facts``).
        batch_invariant: the claim; ``None`` takes what the op says of itself.
        inplace: it may write its results into its activation inputs.
        opaque: compiled graphs call it as one op; right for whatever launches kernels itself.
        canonical: its bits are those of ``portable``; in batch-invariant mode it stands before packs whose are not.
        sources: further modules whose text decides its bits.
        functional: ``"module:function"`` that does what an ``inplace`` one does, with the same bits, into memory of
            its own; for calls whose inputs must stay. Without it they work on copies.
        pair: ``"module:function"`` that does two calls in one launch (:meth:`ir_core.IrOp.register_impl`).
    """

    op: str
    provider: str
    impl: str
    requires: Requirement | None = None
    supports_args: str | None = None
    batch_invariant: bool | None = None
    inplace: bool = False
    opaque: bool = False
    canonical: bool = False
    sources: tuple[str, ...] = ()
    functional: str | None = None
    pair: str | None = None


@dataclass(frozen=True)
class KernelPack:
    """Everything a pack offers.

    Args:
        api: the ``PACK_API`` it was written for.
        name: its name, for people.
        implementations: what it implements.
        ops: new ops by name, as ``"module:attribute"`` of an :class:`~ir_core.op.IrOp`.
    """

    api: int
    name: str
    implementations: tuple[ImplSpec, ...] = ()
    ops: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: object) -> KernelPack:
        """The pack that an entry point's object stands for.

        Raises:
            PackError: it is no pack, or of another ``PACK_API``, or malformed.
        """
        if isinstance(data, KernelPack):
            data = {**vars(data), "implementations": [vars(spec) for spec in data.implementations]}
        if not isinstance(data, Mapping):
            raise PackError(
                f"The entry point names {type(data).__name__} {data!r:.80}, which is no pack.",
                fix="Let it name a mapping with the keys 'api', 'name' and 'implementations'.",
            )
        api = data.get("api")
        if api != PACK_API:
            raise PackError(
                f"The pack was written for PACK_API {api!r}.",
                why=f"This ir-core speaks PACK_API {PACK_API}.",
                fix="Install versions of ir-core and of the pack that fit.",
            )
        _check_keys(data, cls, "The pack", {"api", "name"})
        ops = data.get("ops", {})
        if not isinstance(ops, Mapping):
            raise PackError(f"The pack's 'ops' is {ops!r}.", fix="Map op names to 'module:attribute'.")
        for name, path in ops.items():
            _check_path(path, f"op '{name}'")
        return cls(
            api=PACK_API,
            name=str(data["name"]),
            implementations=tuple(_parse_spec(spec) for spec in data.get("implementations", ())),
            ops=dict(ops),
        )


def _parse_spec(data: object) -> ImplSpec:
    if not isinstance(data, Mapping):
        raise PackError(f"An implementation is {data!r:.80}.", fix="Describe it by a mapping.")
    what = f"Implementation '{data.get('op')}/{data.get('provider')}'"
    _check_keys(data, ImplSpec, what, {"op", "provider", "impl"})
    _check_path(data["impl"], what)
    if data.get("supports_args") is not None:
        _check_path(data["supports_args"], f"supports_args of {what}")
    if data.get("functional") is not None:
        _check_path(data["functional"], f"functional of {what}")
        if not data.get("inplace"):
            raise PackError(
                f"{what} has a functional form beside it and is functional.",
                fix="Say inplace=True of the form that writes into its inputs, or drop functional.",
            )
    if data.get("pair") is not None:
        _check_path(data["pair"], f"pair of {what}")
    for key in ("batch_invariant", "inplace", "opaque", "canonical"):
        if data.get(key) not in (None, True, False):
            raise PackError(f"{what} has {key}={data[key]!r}.", fix="It is True or False.")
    try:
        requires = parse_requirement(data.get("requires"))
    except TargetError as error:
        raise PackError(
            f"{what} has a malformed requirement: {error.what}", why=error.why, fix=error.fix
        ) from None
    return ImplSpec(
        op=str(data["op"]),
        provider=str(data["provider"]),
        impl=data["impl"],
        requires=requires,
        supports_args=data.get("supports_args"),
        batch_invariant=data.get("batch_invariant"),
        inplace=bool(data.get("inplace")),
        opaque=bool(data.get("opaque")),
        canonical=bool(data.get("canonical")),
        sources=tuple(data.get("sources", ())),
        functional=data.get("functional"),
        pair=data.get("pair"),
    )


def _check_keys(data: Mapping[Any, Any], cls: type, what: str, required: set[str]) -> None:
    known = {f.name for f in fields(cls)}
    if missing := sorted(required - set(data)):
        raise PackError(f"{what} has no {', '.join(missing)}.")
    if unknown := sorted(set(data) - known):
        raise PackError(
            f"{what} has the unknown key {', '.join(unknown)}.", why=f"Keys: {', '.join(sorted(known))}."
        )


def _check_path(path: object, what: str) -> None:
    if not isinstance(path, str) or path.count(":") != 1 or path.startswith(":") or path.endswith(":"):
        raise PackError(f"{what} is at {path!r}.", fix="Write 'package.module:attribute'.")
