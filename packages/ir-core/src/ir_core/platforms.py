# SPDX-License-Identifier: Apache-2.0
"""The targets of this process, learned through the entry point group ``ir_core.platforms``.

A platform provider is an object with ``PLATFORM_API = 1`` and ``describe_devices()``, which returns a plain
mapping a device (the fields of :class:`~ir_core.target.Target`). Without one the core knows the CPU, and what
``IR_TARGET`` says. Asked lazily, cached, dropped by :func:`refresh`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import torch

from ir_core import env
from ir_core.errors import EnvError, TargetError
from ir_core.failure import Failure, capture, distribution_of, report
from ir_core.locks import fork_safe_rlock
from ir_core.target import Capability, Target

GROUP: Final = "ir_core.platforms"
PLATFORM_API: Final = 1

_lock = fork_safe_rlock()
_targets: tuple[Target, ...] | None = None
_failures: tuple[Failure, ...] = ()
_unknown: dict[str, Target] = {}


def targets() -> tuple[Target, ...]:
    """Every target of this process, the CPU included."""
    global _targets, _failures
    found = _targets
    if found is None:
        with _lock:
            found, _failures = _discover()
            _targets = found
    return found


def failures() -> tuple[Failure, ...]:
    """Platform providers that could not be used."""
    targets()
    return _failures


def refresh() -> None:
    """Forget what the providers said."""
    global _targets
    with _lock:
        _targets = None
        _unknown.clear()


def target_of(device: torch.device) -> Target:
    """The target that stands for ``device``; one of unknown capability if no provider describes it."""
    name = str(device)
    for target in targets():
        if target.device == name:
            return target
    if name not in _unknown:
        _unknown[name] = _undescribed(device, name)
    return _unknown[name]


def _undescribed(device: torch.device, name: str) -> Target:
    kinds = {"cuda": "rocm" if torch.version.hip else "cuda", "xpu": "xpu", "mps": "mps"}
    if device.type not in kinds:
        reason = f"{name} holds no data to compute on"
    elif all(target.source.startswith("ir-core") for target in targets()):
        reason = f"nothing here describes {name}; install ir-platform to learn what it is"
    else:
        reason = f"{name} is not among the devices of this machine ({', '.join(t.device for t in targets())})"
    return Target(
        device=name, kind=kinds.get(device.type, "cpu"), batch_invariant_reason=reason, source=_source()
    )


def _source() -> str:
    from ir_core.version import __version__

    return f"ir-core {__version__} (knows only the CPU)"


def _cpu() -> Target:
    return Target(
        device="cpu",
        kind="cpu",
        features=frozenset({"triton_interpreter"} if env.interpreted() else ()),
        batch_invariant=True,
        batch_invariant_reason="the CPU runs what is declared batch-invariant",
        source=_source(),
    )


_GFX: Final = re.compile(r"gfx[0-9]{1,2}[0-9a-f]{2}")


def _no_target(text: str) -> EnvError:
    return EnvError(
        f"{env.IR_TARGET}={text} names no target.",
        why="It takes sm90, 9.0, cuda:sm90, gfx942, xpu, mps or cpu.",
        fix="Correct it, or unset it to use the devices that are there.",
    )


def _override() -> Target | None:
    """What ``IR_TARGET`` asks for when no provider is installed to interpret it.

    Raises:
        EnvError: it names no target.
    """
    text = env.text(env.IR_TARGET)
    if not text or text.lower() == "cpu":
        return None
    kind, colon, what = text.lower().rpartition(":")
    details: dict[str, Any]
    if _GFX.fullmatch(what) and (kind, colon) in (("", ""), ("rocm", ":")):
        details = {"kind": "rocm", "vendor": "amd", "arch": what, "features": frozenset({what})}
    elif not colon and what in ("xpu", "mps"):
        details = {"device": f"{what}:0", "kind": what}
    elif (kind, colon) in (("", ""), ("cuda", ":")):
        try:
            details = {"kind": "cuda", "vendor": "nvidia", "capability": Capability.parse(what)}
        except TargetError:
            raise _no_target(text) from None
    else:
        raise _no_target(text)
    details.setdefault("device", "cuda:0")  # torch's name for AMD's too
    return Target(
        **details,
        batch_invariant_reason="ir-platform, which knows the bound, is not installed",
        override=f"{env.IR_TARGET}={text}",
        source=_source(),
    )


def _check_bound() -> None:
    text = env.text(env.IR_BATCH_INVARIANT_MIN_SM)
    if text:
        try:
            Capability.parse(text)
        except TargetError as error:
            raise EnvError(
                f"{env.IR_BATCH_INVARIANT_MIN_SM}={text!r} is no SM capability.", why=error.why, fix=error.fix
            ) from None


def _alone() -> tuple[Target, ...]:
    override = _override()
    return (_cpu(),) if override is None else (override, _cpu())


def _discover() -> tuple[tuple[Target, ...], tuple[Failure, ...]]:
    from importlib_metadata import entry_points

    _check_bound()
    failed: list[Failure] = []
    found: dict[str, Target] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (*distribution_of(p), p.name)):
        try:
            for data in _describe(point.load()):
                target = Target.from_mapping(data)
                found.setdefault(target.device, target)
        except (Exception, SystemExit) as error:
            failed.append(capture(point, "describe the devices", error))
    report(failed)
    if "cpu" not in found:
        for target in _alone():
            found.setdefault(target.device, target)
    return tuple(found.values()), tuple(failed)


def _describe(provider: Any) -> list[Any]:
    api = getattr(provider, "PLATFORM_API", None)
    if api != PLATFORM_API:
        raise TargetError(
            f"The platform provider {provider!r} has PLATFORM_API = {api!r}.",
            why=f"This ir-core speaks {PLATFORM_API}.",
            fix="Install versions of ir-core and of the platform package that fit.",
        )
    return list(provider.describe_devices())
