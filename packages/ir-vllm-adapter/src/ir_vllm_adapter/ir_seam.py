# SPDX-License-Identifier: Apache-2.0
"""The IR seam (vLLM 0.20 to 0.33): ir-core's implementations as providers of vLLM's IR, and the order of its lists.

In batch-invariant mode the requirement holds at every place where vLLM gets an order from: the lists of the
configuration (user and platform), a list given to ``set_priority`` or ``set_default``, and an op for which
no list is set, where vLLM alone would take ``native``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ir_vllm_adapter import compat, graph_ops, log
from ir_vllm_adapter.attachment import ATTACHED
from ir_vllm_adapter.counters import CALLS
from ir_vllm_adapter.errors import RefusedError
from ir_vllm_adapter.standing import order, standing, target_here
from ir_vllm_adapter.version import __version__

if TYPE_CHECKING:
    from ir_core import IrOp, IrOpImpl

NATIVE: Final = "native"

_guarded: dict[tuple[str, tuple[str, ...], Any], list[str]] = {}


def shared_ops() -> dict[str, tuple[Any, IrOp]]:
    """Ops that vLLM's IR and ir-core both have: name -> (vLLM's op, ir-core's op)."""
    from ir_core import get_op
    from ir_core.catalog import op_names

    if not compat.ir_present():
        return {}
    from vllm.ir.op import IrOp as VllmIrOp

    known = set(op_names())
    return {name: (theirs, get_op(name)) for name, theirs in VllmIrOp.registry.items() if name in known}


def prepare() -> None:
    """Register the providers and, in batch-invariant mode, an order for ops without a list. Once a process."""
    if ATTACHED.offered:
        return
    from vllm.platforms import current_platform

    # vLLM's own providers first: a name that both use is vLLM's.
    current_platform.import_ir_kernels()
    register_providers()
    set_fallbacks()
    ATTACHED.on_undo(_guarded.clear)
    ATTACHED.offered = True


# -- providers ---------------------------------------------------------------------------------------------


def register_providers() -> None:
    """Give vLLM's IR every implementation of ir-core that fits its op. Idempotent; later packs are added."""
    for name, (theirs, mine) in shared_ops().items():
        registered = ATTACHED.providers.setdefault(name, {})
        if theirs._schema_str != mine.schema:
            log.warn(
                f"vLLM's op {name} has another schema than ir-core's, so no provider is offered for it. "
                f"vLLM: {theirs._schema_str}; ir-core: {mine.schema}"
            )
            continue
        for provider, impl in mine.impls.items():
            if provider in registered or provider == NATIVE:
                continue
            if provider in theirs.impls:
                ATTACHED.collisions.add((name, provider))
                log.info(
                    f"vLLM already has a provider '{provider}' for {name}; that of {impl.label} is not registered. "
                    "vLLM's own stays what the name means there."
                )
                continue
            _register(theirs, mine, impl)
            registered[provider] = impl.distribution
            ATTACHED.on_undo(functools.partial(_withdraw, theirs, provider))


def _withdraw(theirs: Any, provider: str) -> None:
    """Take a provider out of an op of vLLM's IR again, and out of the lists that name it."""
    theirs._priority_impls = [impl for impl in theirs._priority_impls if impl.provider != provider]
    theirs.impls.pop(provider, None)


def _register(theirs: Any, mine: IrOp, impl: IrOpImpl) -> None:
    in_place = impl.inplace and bool(getattr(theirs, "allow_inplace", False))
    options: dict[str, Any] = {"supports_args": _predicate(theirs, impl)}
    if in_place:
        options["inplace"] = True
    register = theirs.register_impl(impl.provider, **options)
    registered = register(_entry(theirs, mine, impl, in_place))
    registered.uuid = lambda: provider_uuid(impl)
    registered.batch_invariant = impl.batch_invariant


def _entry(theirs: Any, mine: IrOp, impl: IrOpImpl, in_place: bool) -> Callable[..., Any]:
    """The function that vLLM calls for a provider: straight through when eager, one opaque node when traced."""
    import torch

    native = theirs.impls[NATIVE].impl_fn
    node = graph_ops.inplace(mine, impl) if in_place else graph_ops.functional(mine, impl)
    indices = mine.activation_indices
    key = f"ir:{mine.name}/{impl.provider}"
    traced = _traced
    dynamo = torch.compiler.is_dynamo_compiling

    def entry(*args: Any, **kwargs: Any) -> Any:
        if dynamo() or traced():
            if not in_place:
                return node(*args, **kwargs)
            node(*args, **kwargs)
            return tuple(args[index] for index in indices)
        CALLS[key] += 1
        return impl.impl_fn(*args, **kwargs) if in_place else impl.func_impl_fn(*args, **kwargs)

    return _like(entry, native, f"{mine.name}_{impl.provider}")


def _traced() -> bool:
    """Whether a graph is being made from fake tensors, as vLLM's lowering pass does (Dynamo has its own answer)."""
    import torch

    return bool(torch._C._len_torch_dispatch_stack())


def _predicate(theirs: Any, impl: IrOpImpl) -> Callable[..., bool] | None:
    if impl.supports_all_args:
        return None

    def accepts(*args: Any, **kwargs: Any) -> bool:
        return impl.supports_args(*args, **kwargs)

    return _like(accepts, theirs.impls[NATIVE].impl_fn, f"{impl.provider}_supports")


def _like(function: Callable[..., Any], model: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``function`` with the signature of ``model``: vLLM compares names, annotations and defaults."""
    function.__name__ = function.__qualname__ = name
    function.__signature__ = inspect.signature(model)  # type: ignore[attr-defined]
    function.__annotations__ = dict(model.__annotations__)
    return function


def provider_uuid(impl: IrOpImpl) -> str:
    """What vLLM's compile cache must notice: the pack's sources and versions, our own code, and the certificate."""
    from ir_core.verification.evidence import evidence_for

    found = evidence_for(impl, target_here())
    parts = (
        impl.uuid(),
        __version__,
        _own_digest(),
        "" if found is None else f"{found.verdict} {found.detail}",
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _own_digest() -> str:
    """The modules of the adapter that stand between vLLM and the implementation."""
    folder = Path(__file__).parent
    text = "\0".join(
        (folder / name).read_text("utf-8") for name in ("ir_seam.py", "graph_ops.py", "pairing.py")
    )
    return hashlib.sha256(text.encode()).hexdigest()


# -- order -------------------------------------------------------------------------------------------------


def allowed_order(name: str, named: Iterable[str], *, index: int | None = None) -> list[str]:
    """The list for a vLLM op in batch-invariant mode, most wanted first.

    Args:
        name: the op.
        named: what was asked for, in order; providers that do not meet the requirement are left out.
        index: the device; by default the first one.
    """
    found = shared_ops().get(name)
    if found is None:
        return [NATIVE]  # an op that ir-core does not have: `status` reports it as not covered
    theirs, mine = found
    ours = ATTACHED.providers.get(name, {})
    policy = _policy_for(mine, named)
    accepted = [p for p in order(mine, policy, target_here(index)) if p in ours or p == NATIVE]
    declared = [p for p in named if p not in ours and _declares(theirs, p)]
    return [*declared, *accepted]


def _declares(theirs: Any, provider: str) -> bool:
    """Whether a provider of vLLM's own, or of another plug-in, declares itself batch-invariant to vLLM."""
    impl = theirs.impls.get(provider)
    return provider != NATIVE and impl is not None and bool(getattr(impl, "batch_invariant", False))


def _policy_for(mine: IrOp, named: Iterable[str]) -> Any:
    """ir-core's policy with these names in front, if ir-core knows any of them."""
    from dataclasses import replace

    from ir_core import current

    policy = current()
    ours = ATTACHED.providers.get(mine.name, {})
    known = tuple(dict.fromkeys(name for name in named if name in ours or name == NATIVE))
    own = policy.for_op(mine.name)
    if not known or own.only is not None:
        return policy
    kept = tuple(name for name in known if name not in own.deny)
    return policy.with_op(mine.name, replace(own, prefer=kept))


def rejected(name: str, named: Iterable[str], kept: Iterable[str]) -> dict[str, str]:
    """Which of the named providers the requirement took out of a list, each with the reason."""
    found = shared_ops().get(name)
    if found is None:
        return {}
    theirs, mine = found
    reasons = {c.provider: c.reason for c in standing(mine, _policy_for(mine, named), target_here())}
    out: dict[str, str] = {}
    for provider in named:
        if provider not in kept and provider in theirs.impls:
            ours = provider in ATTACHED.providers.get(name, {}) or provider == NATIVE
            reason = reasons.get(provider, "") if ours else "vLLM does not declare it batch-invariant"
            if reason and not reason.startswith("accepted"):
                out[provider] = reason
    return out


def settle_lists(config: Any, named: dict[str, list[str]]) -> None:
    """Put the order into vLLM's priority configuration (and so into its compile hash).

    Args:
        config: vLLM's IrOpPriorityConfig with the platform's defaults already appended.
        named: what the user asked for, by op, before they were.

    Raises:
        RefusedError: IR_STRICT=1 and the user named a provider that does not meet the requirement.
    """
    from ir_core import current

    policy = current()
    if policy.disabled:
        return
    for name in _list_names(config):
        if policy.invariant(name):
            settled = allowed_order(name, named.get(name) or ())
            out = rejected(name, named.get(name) or (), settled)
            _report_rejected(name, out)
            setattr(config, name, settled)
            _adopt_names(name, named.get(name) or ())
        else:
            setattr(config, name, _preferred(name, getattr(config, name), named.get(name) or []))


def _report_rejected(name: str, out: dict[str, str]) -> None:
    if not out:
        return
    reasons = "; ".join(f"{provider}: {reason}" for provider, reason in out.items())
    if log.strict():
        raise RefusedError(
            f"The IR priority of {name} names what batch-invariant mode does not allow, and IR_STRICT is set.",
            why=reasons,
            fix=f"Take it out of --ir-op-priority.{name}, or unset VLLM_BATCH_INVARIANT.",
        )
    log.warn(f"taken out of the IR priority of {name} in batch-invariant mode: {reasons}")


def _preferred(name: str, current_list: list[str], named: list[str]) -> list[str]:
    """Without the requirement: vLLM's list, behind what IR_PRIORITY names, unless vLLM's own flag names something."""
    from ir_core import current

    found = shared_ops().get(name)
    if found is None or named:
        return current_list
    policy = current()
    own = policy.for_op(name)
    wanted = own.named or tuple(p for p in policy.prefer if p in found[1].impls)
    front = [p for p in wanted if p in found[0].impls]
    return [*front, *(p for p in current_list if p not in front and p not in own.deny)]


def _adopt_names(name: str, named: Iterable[str]) -> None:
    """What the user named for vLLM counts for ir-core too: the layer seam selects by the same order."""
    from ir_core import current, get_op

    if name not in ATTACHED.providers:
        return
    mine = get_op(name)
    before = current().for_op(name)
    after = _policy_for(mine, named).for_op(name)
    if before != after:
        ATTACHED.change_policy(lambda policy: policy.with_op(name, after))


def adopt(config: Any) -> None:
    """In a worker: take the lists as they arrive from the front end for the user's order."""
    from ir_core import current

    policy = current()
    for name in _list_names(config):
        names = list(getattr(config, name))
        if policy.disabled or not policy.invariant(name) or list(policy.for_op(name).named) == names:
            continue
        if names != guard(name, policy.for_op(name).named):  # ir-core has this order already
            _adopt_names(name, names)


def guard(name: str, names: Sequence[str]) -> list[str]:
    """A list handed to vLLM's op, as batch-invariant mode allows it; unchanged otherwise."""
    from ir_core import current

    policy = current()
    if policy.disabled or not policy.invariant(name) or name not in ATTACHED.providers:
        return list(names)
    key = (name, tuple(names), policy)
    if key not in _guarded:  # 0.20 sets its lists in every forward pass
        # A list that reaches an op need not come from the user: native counts only where ir-core was told of it.
        told = policy.for_op(name).named
        _guarded[key] = allowed_order(name, [p for p in names if p != NATIVE or p in told])
    return list(_guarded[key])


def set_fallbacks() -> None:
    """In batch-invariant mode, give every shared op an order for when vLLM has set none."""
    from ir_core import current

    policy = current()
    for name, (theirs, _) in shared_ops().items():
        if policy.disabled or not policy.invariant(name) or theirs.get_priority():
            continue
        settled = allowed_order(name, ())
        ATTACHED.on_undo(compat.set_default_order(theirs, settled))


def _list_names(config: Any) -> list[str]:
    from dataclasses import fields

    return [field.name for field in fields(config)]
