# SPDX-License-Identifier: Apache-2.0
"""The requirement under which implementations are selected: an immutable value, scoped by a context variable.

The grammar of ``IR_PRIORITY``::

    IR_PRIORITY = rule { ";" rule }
    rule        = [ op "=" ] [ "only:" | "deny:" | "prefer:" ] provider { "," provider }
                | op "=" "order:" order

A rule without an op is a list for every op that has those providers; it may only prefer. Whether ops, providers and
orders exist is checked when the op is first selected for, since a pack may bring them.

``default()`` is the policy of the process: what the environment says, changed by ``set_default``. ``scope``
replaces it for a block, in this thread and task only, and restores it whatever happens inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from weakref import WeakValueDictionary

from ir_core import env
from ir_core.errors import EnvError, PolicyError, check_flags
from ir_core.locks import fork_safe_rlock
from ir_core.scoped import Scoped


def _unique(what: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise PolicyError(f"{what} is the text {names!r}.", fix=f"Give a list: [{names!r}].")
    names = tuple(names)
    for name in names:
        if names.count(name) > 1:
            raise PolicyError(f"{what} names '{name}' twice: {list(names)}.", fix="Name it once.")
    return names


@dataclass(frozen=True)
class OpPolicy:
    """What is asked for one op.

    Args:
        prefer: providers to try first, in this order (a priority list).
        only: if set, nothing else may run, in this order.
        deny: providers that may not run.
        batch_invariant: if set, overrides the policy's ``batch_invariant`` for this op.
        order: if set, only implementations of this order of the op may run.
    """

    prefer: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    deny: frozenset[str] = frozenset()
    batch_invariant: bool | None = None
    order: str | None = None

    def __post_init__(self) -> None:
        if self.batch_invariant is not None:
            check_flags(PolicyError, "A policy", batch_invariant=self.batch_invariant)
        object.__setattr__(self, "prefer", _unique("prefer", self.prefer))
        object.__setattr__(self, "deny", frozenset(self.deny))
        if self.only is not None:
            object.__setattr__(self, "only", _unique("only", self.only))
            if self.prefer:
                raise PolicyError(
                    f"A policy has both prefer={list(self.prefer)} and only={list(self.only or ())}.",
                    fix="'only' is an order too: name everything there.",
                )
        if clash := self.deny.intersection(self.only or self.prefer):
            raise PolicyError(f"A policy names and denies {sorted(clash)}.", fix="Drop one of the two.")

    @property
    def named(self) -> tuple[str, ...]:
        """The providers named by the user, in order."""
        return self.prefer if self.only is None else self.only


@dataclass(frozen=True)
class Policy:
    """The requirement for every op. Hashable: equal policies select the same implementations.

    Args:
        batch_invariant: select batch-invariant implementations only.
        strict: any fallback raises; with ``batch_invariant``, only certified implementations are selected.
        disabled: ``native`` everywhere.
        prefer: providers to try first for every op that has them and has no names of its own.
        ops: (op name, :class:`OpPolicy`) pairs, sorted; a mapping is accepted.
        vouched: ops whose ``native`` the host answers for in batch-invariant mode; ``"*"`` for all.
        covers_torch: torch's own functions go to ops as well (:func:`ir_core.batch_invariant_mode`).
    """

    batch_invariant: bool = False
    strict: bool = False
    disabled: bool = False
    prefer: tuple[str, ...] = ()
    ops: tuple[tuple[str, OpPolicy], ...] = ()
    vouched: frozenset[str] = frozenset()
    covers_torch: bool = False
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flags = {name: getattr(self, name) for name in _FLAGS}
        check_flags(PolicyError, "A policy", **flags)
        pairs = self.ops.items() if isinstance(self.ops, Mapping) else self.ops
        object.__setattr__(self, "ops", tuple(sorted(dict(pairs).items())))
        object.__setattr__(self, "prefer", _unique("prefer", self.prefer))
        object.__setattr__(self, "vouched", frozenset(self.vouched))
        object.__setattr__(self, "_hash", hash((type(self), *(getattr(self, name) for name in _FIELDS))))

    def __hash__(self) -> int:  # computed once: a policy is a dictionary key on the way to the fast path
        return self._hash

    def for_op(self, name: str) -> OpPolicy:
        """What is asked for the op ``name``; the empty :class:`OpPolicy` when nothing is."""
        return next((policy for op, policy in self.ops if op == name), _NOTHING)

    def with_op(self, name: str, policy: OpPolicy | None) -> Policy:
        """The same policy with another :class:`OpPolicy` for ``name``; ``None`` takes it out."""
        ops = {op: value for op, value in self.ops if op != name}
        if policy is not None:
            ops[name] = policy
        return replace(self, ops=tuple(ops.items()))

    def invariant(self, name: str) -> bool:
        """Whether the op ``name`` must run a batch-invariant implementation."""
        own = self.for_op(name).batch_invariant
        return self.batch_invariant if own is None else own

    @property
    def covering(self) -> bool:
        """Whether torch's own functions go to batch-invariant ops."""
        return self.covers_torch and self.batch_invariant and not self.disabled

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, logs and cache keys: equal exactly when the policies are."""
        return {
            "batch_invariant": self.batch_invariant,
            "strict": self.strict,
            "disabled": self.disabled,
            "prefer": list(self.prefer),
            "vouched": sorted(self.vouched),
            "covers_torch": self.covers_torch,
            "ops": {
                name: {
                    "prefer": list(p.prefer),
                    "only": None if p.only is None else list(p.only),
                    "deny": sorted(p.deny),
                    "batch_invariant": p.batch_invariant,
                    "order": p.order,
                }
                for name, p in self.ops
            },
        }


_FLAGS: Final = ("batch_invariant", "strict", "disabled", "covers_torch")
_FIELDS: Final = tuple(f.name for f in fields(Policy) if f.compare)
_NOTHING: Final = OpPolicy()


_EXAMPLE: Final = "For example IR_PRIORITY='rms_norm=triton,native;fused_add_rms_norm=only:portable'."


def parse_priority(text: str) -> tuple[tuple[str, ...], dict[str, OpPolicy]]:
    """Parse the value of ``IR_PRIORITY`` into (list for every op, policy of each op named).

    Raises:
        EnvError: a rule is malformed, repeated, or contradicts another.
    """
    everywhere: tuple[str, ...] | None = None
    fields: dict[str, dict[str, Any]] = {}
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        op, equals, value = rule.rpartition("=")
        mode, colon, names = value.strip().rpartition(":")
        mode = mode.strip() if colon else "prefer"
        providers = tuple(name.strip() for name in names.split(",") if name.strip())
        op = op.strip()
        if mode not in ("prefer", "only", "deny", "order") or (equals and not op):
            raise EnvError(f"{env.IR_PRIORITY} has the rule {rule!r}, which cannot be read.", fix=_EXAMPLE)
        if not providers:
            raise EnvError(f"{env.IR_PRIORITY} has the rule {rule!r}, which names no provider.", fix=_EXAMPLE)
        if not equals:
            if mode != "prefer" or everywhere is not None:
                raise EnvError(
                    f"{env.IR_PRIORITY} has the rule {rule!r} for every op.",
                    why="There may be one list for every op, and it may only prefer.",
                    fix=_EXAMPLE,
                )
            everywhere = providers
            continue
        own = fields.setdefault(op, {})
        if mode in own:
            raise EnvError(
                f"{env.IR_PRIORITY} has two '{mode}' rules for {op}.", fix="Join them into one list."
            )
        if mode == "order" and len(providers) > 1:
            raise EnvError(f"{env.IR_PRIORITY} has several orders in {rule!r}.", fix="Name one.")
        own[mode] = providers[0] if mode == "order" else providers
    try:
        return everywhere or (), {op: OpPolicy(**own) for op, own in fields.items()}
    except PolicyError as error:
        raise EnvError(f"{env.IR_PRIORITY}={text!r}: {error.what}", why=error.why, fix=error.fix) from None


def from_environment() -> Policy:
    """The policy that the environment asks for.

    Raises:
        EnvError: a variable is malformed, or in strict mode contradicts another.
    """
    env.warn_misspelt()
    prefer, ops = parse_priority(env.text(env.IR_PRIORITY) or "")
    invariant, strict, disabled = map(env.flag, (env.VLLM_BATCH_INVARIANT, env.IR_STRICT, env.IR_DISABLE))
    if invariant and disabled:
        env.contradiction(env.VLLM_BATCH_INVARIANT, env.IR_DISABLE, strict)
    return Policy(
        batch_invariant=invariant,
        strict=strict,
        disabled=disabled,
        prefer=prefer,
        ops=tuple(ops.items()),
    )


_lock = fork_safe_rlock()
_changes: list[
    Callable[[Policy], Policy]
] = []  # what code asked for, replayed over the environment by refresh()
_default: Policy | None = None
_scoped: Scoped[Policy] = Scoped("ir_core_policy")
innermost_scope = _scoped.innermost
_wrapped: Scoped[bool] = Scoped("ir_core_torch_wrap")
_default_wrap = True


class Here:
    """What the scopes of this thread and task ask for: a policy, and whether calls go through torch; or ``None``.

    One object for each pair, so that the hot path compares identities.
    """

    __slots__ = ("__weakref__", "policy", "wrap")

    def __init__(self, policy: Policy | None, wrap: bool | None) -> None:
        self.policy, self.wrap = policy, wrap


_heres: WeakValueDictionary[tuple[Policy | None, bool | None], Here] = WeakValueDictionary()
_here: ContextVar[Here | None] = ContextVar("ir_core_here", default=None)
here: Final = _here.get
"""What holds here, or ``None`` outside of all scopes."""

_scopes_used = False
_listeners: list[Callable[[], None]] = []


def on_default_change(listener: Callable[[], None]) -> None:
    """Call ``listener`` whenever the default policy was replaced (the hot path drops what it cached)."""
    _listeners.append(listener)


def scopes_used() -> bool:
    """Whether any scope was entered in this process: until then the hot path need not ask the context."""
    return _scopes_used


def use_scopes() -> None:
    """Note that there is a scope. For good: a task made inside a scope keeps it after the block was left."""
    global _scopes_used
    if not _scopes_used:
        _scopes_used = True
        _notify()


def _note() -> None:
    """Keep :func:`here` true after a block was entered or left."""
    key = (_scoped.get(), _wrapped.get())
    if key == (None, None):
        _here.set(None)
        return
    with _lock:
        found = _heres.get(key)
        if found is None:
            found = _heres[key] = Here(*key)
    _here.set(found)


@contextlib.contextmanager
def _block(blocks: Scoped[Any], value: Any) -> Iterator[None]:
    use_scopes()
    try:
        with blocks.block(value):
            _note()
            yield
    finally:
        _note()


def policy_of(here: Here | None) -> Policy:
    """The policy that holds there."""
    return default() if here is None or here.policy is None else here.policy


def wrap_of(here: Here | None) -> bool:
    """Whether op calls go through their torch op there."""
    return _default_wrap if here is None or here.wrap is None else here.wrap


def set_default_wrap(enable: bool) -> None:
    """Let op calls go through their torch op, or not, outside of every :func:`wrap_scope`."""
    global _default_wrap
    _default_wrap = enable
    _notify()


@contextlib.contextmanager
def wrap_scope(enable: bool) -> Iterator[None]:
    """:func:`set_default_wrap` for a ``with`` block, in this thread and task."""
    with _block(_wrapped, enable):
        yield


def current() -> Policy:
    """The policy in force here: of the innermost scope of this thread or task, else the default."""
    return _scoped.get() or default()


def scoped() -> Policy | None:
    """The policy of the innermost scope of this thread or task, or ``None``."""
    return _scoped.get()


def default() -> Policy:
    """The policy of the process; the environment is read on the first call."""
    policy = _default
    return policy if policy is not None else reset_default()


def change_default(change: Callable[[Policy], Policy]) -> None:
    """Replace the default policy by ``change`` of it, for the life of the process."""
    global _default
    with _lock:
        _default = change(default())
        _changes.append(change)
    _notify()


def forget_change(change: Callable[[Policy], Policy]) -> None:
    """Undo :func:`change_default` for this function; what others changed stays."""
    with _lock:
        for position, known in enumerate(_changes):
            if known is change:
                del _changes[position]
                reset_default()
                return


def reset_default(*, forget_changes: bool = False) -> Policy:
    """Read the environment again; changes made from code are applied over it unless they are forgotten."""
    global _default
    with _lock:
        if forget_changes:
            _changes.clear()
        policy = from_environment()
        for change in _changes:
            policy = change(policy)
        _default = policy
    _notify()
    return policy


def _notify() -> None:
    for listener in _listeners:
        listener()


_cover: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []


def on_covering_scope(enter: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    """Enter ``enter()`` around each scope whose policy covers torch's functions: what sees their calls lies above."""
    _cover[:] = [enter]


def check_fields(changes: Iterable[str]) -> None:
    """Raise :class:`PolicyError` unless each name is a field of :class:`Policy`."""
    if unknown := set(changes) - set(_FIELDS):
        raise PolicyError(
            f"Policy has no field {', '.join(sorted(unknown))}.", why=f"It has {', '.join(_FIELDS)}."
        )


@contextlib.contextmanager
def scope(policy: Policy | None = None, /, **changes: Any) -> Iterator[Policy]:
    """Select under another policy inside a ``with`` block.

    Args:
        policy: the policy; by default the one in force, changed by the keyword arguments.
        changes: fields of :class:`Policy` to replace.

    Yields:
        The policy in force inside the block.

    Raises:
        PolicyError: an unknown field, or contradictory values.
    """
    check_fields(changes)
    mine = replace(policy if policy is not None else current(), **changes)
    with contextlib.ExitStack() as around:
        if mine.covering:
            for enter in _cover:
                around.enter_context(enter())
        around.enter_context(_block(_scoped, mine))
        yield mine
