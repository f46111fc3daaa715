# SPDX-License-Identifier: Apache-2.0
"""``einsum`` as products of two, from left to right, each a ``bmm`` over the letters that are summed in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ir_core.covering.known import report
from ir_core.covering.products import matmul
from ir_core.covering.reductions import sum_
from ir_core.covering.shapes import floating, product

_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def einsum(equation: str, *operands: Any) -> Tensor:
    """:func:`torch.einsum`, of an equation in letters."""
    tensors = (
        list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    )
    if not isinstance(equation, str) or not floating(*tensors):
        report("torch.einsum in this form", "only equations in letters of floating-point tensors are covered")
        return torch.einsum(equation, *operands)
    terms, result = _letters(equation, tuple([t.dim() for t in tensors]))
    letters, total = terms[0], tensors[0]
    letters, total = _diagonals(letters, total)
    for number in range(1, len(tensors)):
        later = "".join(terms[number + 1 :]) + result
        theirs, other = _diagonals(terms[number], tensors[number])
        letters, total = _two(letters, total, theirs, other, later)
    gone = [i for i, letter in enumerate(letters) if letter not in result]
    if gone:
        total = sum_(total, gone)
        letters = "".join(letter for letter in letters if letter in result)
    return total.permute([letters.index(letter) for letter in result])


def _letters(equation: str, dims: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    """The letters of each operand and of the result; an ellipsis becomes letters that are not used otherwise."""
    equation = equation.replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    spare = [letter for letter in _SPARE if letter not in equation]
    longest = 0
    for i, term in enumerate(terms):
        if "..." in term:
            count = dims[i] - (len(term) - 3)
            longest = max(longest, count)
            terms[i] = term.replace("...", "".join(spare[len(spare) - count :]))
    dots = "".join(spare[len(spare) - longest :]) if longest else ""
    if not arrow:
        joined = "".join(terms)
        result = dots + "".join(
            sorted(letter for letter in set(joined) if joined.count(letter) == 1 and letter not in dots)
        )
    return tuple(terms), result.replace("...", dots)


_letters._dynamo_marked_constant = True  # type: ignore[attr-defined]  # text only: nothing of it is traced


def _diagonals(letters: str, x: Tensor) -> tuple[str, Tensor]:
    """One dimension for each letter."""
    for letter in letters:
        while letters.count(letter) > 1:
            one = letters.index(letter)
            two = letters.index(letter, one + 1)
            x = x.diagonal(0, one, two)
            letters = letters[:one] + letters[one + 1 : two] + letters[two + 1 :] + letter
    return letters, x


def _two(a: str, x: Tensor, b: str, y: Tensor, later: str) -> tuple[str, Tensor]:
    """The product of two operands, summed over the letters that nothing later has."""
    batch = "".join(letter for letter in a if letter in b and letter in later)
    summed = "".join(letter for letter in a if letter in b and letter not in later)
    alone_a = [i for i, letter in enumerate(a) if letter not in b and letter not in later]
    alone_b = [i for i, letter in enumerate(b) if letter not in a and letter not in later]
    if alone_a:
        x = sum_(x, alone_a)
        a = "".join(letter for i, letter in enumerate(a) if i not in alone_a)
    if alone_b:
        y = sum_(y, alone_b)
        b = "".join(letter for i, letter in enumerate(b) if i not in alone_b)
    rows = "".join(letter for letter in a if letter not in batch + summed)
    columns = "".join(letter for letter in b if letter not in batch + summed)
    size = {letter: x.shape[a.index(letter)] for letter in a}
    for i, letter in enumerate(b):
        size[letter] = max(size.get(letter, 1), y.shape[i])
    x = _shaped(x, a, (batch, rows, summed), size)
    y = _shaped(y, b, (batch, columns, summed), size)
    kept = batch + rows + columns
    if summed:
        product = matmul(x, y.mT)
    else:
        product = x * y.mT  # one product for each output: nothing is summed
    return kept, product.reshape([size[letter] for letter in kept])


def _shaped(x: Tensor, letters: str, groups: tuple[str, str, str], size: dict[str, int]) -> Tensor:
    order = "".join(groups)
    x = x.permute([letters.index(letter) for letter in order]).expand([size[letter] for letter in order])
    return x.reshape([product([size[letter] for letter in group]) for group in groups])
