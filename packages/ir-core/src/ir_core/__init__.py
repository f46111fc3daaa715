# SPDX-License-Identifier: Apache-2.0
"""Ops whose implementations are declared, selected, and proven batch-invariant.

The five verbs, in order, and where they live:

1. **register** an implementation of an op: :func:`register_op`, :meth:`IrOp.register_impl` (``op.py``, ``impl.py``) or
   a :class:`KernelPack` (``pack.py``)
2. **discover** the packs that are installed: ``discovery.py``, ``catalog.py``
3. **select** one implementation for a call under an explicit requirement: :func:`select` (``resolve.py``,
   ``selection.py``, ``policy.py``)
4. **call** it eagerly (``fast_path.py``) or **lower** a compiled graph to it: :func:`compile` (``lowering/``)
5. **verify**, bitwise, that it has the property it claims: ``verification/``
"""

from __future__ import annotations

import importlib.util as _importlib_util
from collections.abc import Callable as _Callable
from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from ir_core import errors
from ir_core.errors import IrError, IrWarning
from ir_core.version import __version__

if TYPE_CHECKING:
    from ir_core import ops
    from ir_core.auditing import audit
    from ir_core.catalog import failures, packs
    from ir_core.covering import batch_invariant_mode, enable, patch
    from ir_core.enabling import bind_policy
    from ir_core.fast_path import enable_torch_wrap, set_default_torch_wrap
    from ir_core.impl import ImplSpec, IrOpImpl
    from ir_core.meaning import RESERVED_PROVIDERS, Order
    from ir_core.op import IrOp, get_op, register_op
    from ir_core.pack import PACK_API, KernelPack
    from ir_core.policy import OpPolicy, Policy, change_default, current, scope
    from ir_core.requirement import SM, AllOf, AnyOf, Feature, Kind, Requirement, parse_requirement
    from ir_core.resolve import select
    from ir_core.runtime import refresh
    from ir_core.selection import Candidate, Evidence, Selection
    from ir_core.target import Accepted, Capability, Rejected, Target

# Where the public names are. They are imported when they are first used: torch takes seconds, and the command line
# and its completion need most of them never.
_HOMES = {
    "auditing": ("audit",),
    "catalog": ("failures", "packs"),
    "covering": ("batch_invariant_mode", "enable", "patch"),
    "enabling": ("bind_policy",),
    "fast_path": ("enable_torch_wrap", "set_default_torch_wrap"),
    "impl": ("ImplSpec", "IrOpImpl"),
    "meaning": ("RESERVED_PROVIDERS", "Order"),
    "op": ("IrOp", "get_op", "register_op"),
    "pack": ("PACK_API", "KernelPack"),
    "policy": ("OpPolicy", "Policy", "change_default", "current", "scope"),
    "requirement": ("SM", "AllOf", "AnyOf", "Feature", "Kind", "Requirement", "parse_requirement"),
    "resolve": ("select",),
    "runtime": ("refresh",),
    "selection": ("Candidate", "Evidence", "Selection"),
    "target": ("Accepted", "Capability", "Rejected", "Target"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> _Any:
    if name in _HOME:
        value = getattr(_import_module(f"ir_core.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and _importlib_util.find_spec(f"ir_core.{name}"):
        return _import_module(f"ir_core.{name}")
    raise AttributeError(f"module 'ir_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__


def compile(model: _Callable[..., _Any], *, policy: Policy | None = None, **kwargs: _Any) -> _Any:  # noqa: A001
    """:func:`ir_core.lowering.compile`: ``torch.compile`` with ir-core's ops lowered to what is selected."""
    from ir_core import lowering  # imports Inductor

    return lowering.compile(model, policy=policy, **kwargs)


__all__ = [
    "PACK_API",
    "RESERVED_PROVIDERS",
    "SM",
    "Accepted",
    "AllOf",
    "AnyOf",
    "Candidate",
    "Capability",
    "Evidence",
    "Feature",
    "ImplSpec",
    "IrError",
    "IrOp",
    "IrOpImpl",
    "IrWarning",
    "KernelPack",
    "Kind",
    "OpPolicy",
    "Order",
    "Policy",
    "Rejected",
    "Requirement",
    "Selection",
    "Target",
    "__version__",
    "audit",
    "batch_invariant_mode",
    "bind_policy",
    "change_default",
    "compile",
    "current",
    "enable",
    "enable_torch_wrap",
    "errors",
    "failures",
    "get_op",
    "ops",
    "packs",
    "parse_requirement",
    "patch",
    "refresh",
    "register_op",
    "scope",
    "select",
    "set_default_torch_wrap",
]
