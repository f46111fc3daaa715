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

from ir_core.errors import InvalidNameError, PackError, SchemaError, TargetError
from ir_core.impl import CODE, ImplSpec
from ir_core.meaning import Order

__all__ = ["PACK_API", "ImplSpec", "KernelPack"]

PACK_API: Final = 1
"""Version of this contract; a pack states the one it was written for."""


@dataclass(frozen=True)
class KernelPack:
    """Everything a pack offers.

    Args:
        api: the ``PACK_API`` it was written for.
        name: its name, for people.
        implementations: what it implements.
        ops: new ops by name, as ``"module:attribute"`` of an :class:`~ir_core.op.IrOp`.
        orders: orders of other packs' ops that its implementations compute in, by op: ``{"attention": {"my_order":
            {"arithmetic": "...", "reference": "my_provider"}}}``. A policy has to ask for them by name.
    """

    api: int
    name: str
    implementations: tuple[ImplSpec, ...] = ()
    ops: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, tuple[Order, ...]] = field(default_factory=dict)

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
            orders={str(op): _parse_orders(op, its) for op, its in data.get("orders", {}).items()},
        )


def _parse_orders(op: str, data: object) -> tuple[Order, ...]:
    """The orders that a pack brings to an op."""
    if isinstance(data, tuple):
        return data
    found = []
    for name, its in data.items() if isinstance(data, Mapping) else [("?", data)]:
        if not isinstance(its, Mapping) or set(its) != {"arithmetic", "reference"}:
            raise PackError(
                f"The order '{name}' of '{op}' is {its!r:.80}.",
                fix="Describe it by a mapping with the keys 'arithmetic' and 'reference' (one of its providers).",
            )
        try:
            found.append(Order(name, str(its["arithmetic"]), str(its["reference"]), by_name=True))
        except InvalidNameError as error:
            raise PackError(error.what, why=error.why, fix=error.fix) from None
    return tuple(found)


def _parse_spec(data: object) -> ImplSpec:
    if not isinstance(data, Mapping):
        raise PackError(f"An implementation is {data!r:.80}.", fix="Describe it by a mapping.")
    what = f"Implementation '{data.get('op')}/{data.get('provider')}'"
    _check_keys(data, ImplSpec, what, {"op", "provider", "impl"})
    for name in CODE:
        if data.get(name) is not None or name == "impl":
            _check_path(data[name], what if name == "impl" else f"{name} of {what}")
    given = {f.name: data[f.name] for f in fields(ImplSpec) if data.get(f.name) is not None}
    try:
        return ImplSpec(**given | {"op": str(data["op"]), "provider": str(data["provider"])})
    except SchemaError as error:
        raise PackError(error.what, why=error.why, fix=error.fix) from None
    except TargetError as error:
        raise PackError(
            f"{what} has a malformed requirement: {error.what}", why=error.why, fix=error.fix
        ) from None


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
