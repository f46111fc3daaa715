# SPDX-License-Identifier: Apache-2.0
"""Mutants whose bits depend on what ran before, on chance, or on the compiler."""

from typing import Any

import torch
from torch import Tensor

from mutants import Mutant, blocked_sum, finish, norm, rows_of

_tuned: dict[int, int] = {}
_seen: set[tuple[Any, ...]] = set()
_calls = [0]
_last: list[Any] = [None, 64]
_workspace: dict[int, Tensor] = {}


def _tunes_on_first_call(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    block = _tuned.setdefault(x.shape[-1], 64 if rows_of(x) < 128 else 16)
    return norm(x, weight, epsilon, block)


def _first_call_differs(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    key = (x.shape[-1], x.dtype)
    first = key not in _seen
    _seen.add(key)
    return norm(x, weight, epsilon, 16 if first else 64)  # the first result comes from the trial run


def _cache_without_dtype(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    if _last[0] != x.shape[-1]:  # the configuration depends on the dtype, its key does not
        _last[:] = [x.shape[-1], 16 if x.dtype == torch.float32 else 64]
    return norm(x, weight, epsilon, _last[1])


def _stale_padding(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    n = x.shape[-1]
    width = 1 << (n - 1).bit_length()
    buffer = _workspace.setdefault(1, torch.zeros(1 << 17))  # never cleared between calls
    tail = buffer[n:width].mean() * 2.0**-20 if width > n else torch.zeros(())
    buffer[:width] = 0.0
    buffer[:n] = (x32 * x32).reshape(-1, n)[0]
    return finish(x32, blocked_sum(x32 * x32, 64) + tail, weight, epsilon, x.dtype)


def _atomics(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    _calls[0] += 1
    x32 = x.to(torch.float32)
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(_calls[0]))
    return finish(x32, blocked_sum((x32 * x32)[..., order], 64), weight, epsilon, x.dtype)


def _warm_cache(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    _calls[0] += 1
    return norm(x, weight, epsilon, 64 if _calls[0] % 7 else 16)  # every seventh call is re-tuned


def _float64_epsilon_when_compiled(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    total = blocked_sum(x32 * x32, 64)
    if torch.compiler.is_compiling():
        mean = (total / x.shape[-1]).double() + epsilon
        return (x32 * (1.0 / torch.sqrt(mean)).float() * weight.to(torch.float32)).to(x.dtype)
    return finish(x32, total, weight, epsilon, x.dtype)


def _fma_when_compiled(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    if torch.compiler.is_compiling():
        exact = x32.double() * x32.double()  # the product is not rounded before it is added
        return finish(x32, blocked_sum(exact, 64).float(), weight, epsilon, x.dtype)
    return finish(x32, blocked_sum(x32 * x32, 64), weight, epsilon, x.dtype)


def _intermediate_rounding_dropped(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    total = blocked_sum(x32 * x32, 64)
    rstd = 1.0 / torch.sqrt(total / x.shape[-1] + epsilon)
    if torch.compiler.is_compiling():
        return (x32.double() * rstd.double() * weight.double()).to(x.dtype)
    return (x32 * rstd * weight.to(torch.float32)).to(x.dtype)


MUTANTS = [
    Mutant(
        "tunes_on_first_call", _tunes_on_first_call, "keeps what the first call's rows chose", ("history",)
    ),
    Mutant(
        "first_call_differs",
        _first_call_differs,
        "the first call returns a trial run's result",
        ("repetition",),
    ),
    Mutant(
        "cache_without_dtype",
        _cache_without_dtype,
        "its cache's key lacks the dtype",
        ("repetition", "history"),
    ),
    Mutant(
        "stale_padding", _stale_padding, "padding counts, and holds the last call's data", ("repetition",)
    ),
    Mutant("atomics", _atomics, "partial sums are added in the order in which they come", ("repetition",)),
    # Which of the two repeats a call when the seventh comes depends on how often a cheap call is repeated.
    Mutant("retunes", _warm_cache, "tunes again every seventh call", ("repetition", "arguments")),
    Mutant(
        "eps_float64_compiled",
        _float64_epsilon_when_compiled,
        "epsilon is added in float64 under the compiler",
        ("compiled",),
        "vLLM #57123",
    ),
    Mutant("fma_compiled", _fma_when_compiled, "the compiler fuses product and sum", ("compiled",)),
    Mutant(
        "rounding_compiled", _intermediate_rounding_dropped, "the compiler drops a rounding", ("compiled",)
    ),
]
