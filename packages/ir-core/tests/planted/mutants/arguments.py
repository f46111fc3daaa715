# SPDX-License-Identifier: Apache-2.0
"""Mutants that keep what they derived from an argument under a key that lacks its value; and mishandled options."""

import threading
import time
from typing import Any

import torch
from torch import Tensor

from mutants import SCALED, Mutant, blocked_sum, finish, norm, rows_of

_weights: dict[tuple[Any, ...], Tensor] = {}
_packed: dict[tuple[Any, ...], Tensor] = {}
_epsilons: dict[tuple[Any, ...], float] = {}
_workspace: dict[str, Tensor] = {}


def _first_weight(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """A second layer of the same size gets the first layer's weight."""
    key = (weight.shape, weight.dtype)
    return norm(x, _weights.setdefault(key, weight.clone()), epsilon)


def _weight_by_address(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """A packed copy, found again by the weight's address: after a training step it is stale."""
    key = (weight.data_ptr(), weight.shape, weight.dtype)
    return norm(x, _packed.setdefault(key, weight.clone()), epsilon)


def _first_epsilon(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, _epsilons.setdefault((x.shape[-1], x.dtype), epsilon))


def _shared_workspace(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The squares of a call lie in a buffer that all threads share; a thread that calls meanwhile overwrites them."""
    x32 = x.to(torch.float32)
    _workspace["squares"] = x32 * x32
    if threading.active_count() > 1:
        time.sleep(0.001)  # where a kernel would run
    squares = _workspace["squares"]
    if squares.shape != x32.shape:
        squares = x32 * x32
    return finish(x32, blocked_sum(squares, 64), weight, epsilon, x.dtype)


def _scaled(x: Tensor, weight: Tensor, epsilon: float, form: str = "plain", block: int = 64) -> Tensor:
    made = norm(x.to(torch.float32), weight, epsilon, block)
    return (made if form == "plain" else made * 0.5).to(x.dtype)


def _rows_in_default_form(x: Tensor, weight: Tensor, epsilon: float, form: str = "plain") -> Tensor:
    return _scaled(x, weight, epsilon, form, 16 if form == "plain" and rows_of(x) < 8 else 64)


def _default_form_forgotten(x: Tensor, weight: Tensor, epsilon: float, form: str = "plain") -> Tensor:
    return _scaled(x, weight, epsilon, "half")


MUTANTS = [
    Mutant("first_weight", _first_weight, "keeps the first weight of a shape", ("arguments",)),
    Mutant("weight_by_address", _weight_by_address, "keeps a packed weight by its address", ("arguments",)),
    Mutant("first_epsilon", _first_epsilon, "keeps the first epsilon of a shape", ("arguments",)),
    Mutant("shared_workspace", _shared_workspace, "threads share a workspace", ("threads",)),
    Mutant(
        "rows_in_default_form",
        _rows_in_default_form,
        "another order for few rows, for an option's default alone, which the generator does not use",
        ("rows",),
        op=SCALED,
    ),
    Mutant(
        "default_form_forgotten",
        _default_form_forgotten,
        "takes an option's default for another value",
        ("arguments", "numerics"),
        op=SCALED,
    ),
]
