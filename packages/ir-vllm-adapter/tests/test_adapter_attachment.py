# SPDX-License-Identifier: Apache-2.0
"""The attachment takes every change back: the last first, and only what is still as it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import ir_core
from ir_core import policy
from ir_vllm_adapter.attachment import Attachment, is_wrapped


class Host:
    def method(self) -> str:
        return "host"


def louder(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: original(self).upper()


@pytest.fixture
def attached() -> Iterator[Attachment]:
    made = Attachment()
    yield made
    made.undo()
    policy.reset_default(forget_changes=True)


def test_a_method_is_wrapped_once_and_given_back(attached: Attachment) -> None:
    original = Host.__dict__["method"]
    assert attached.wrap(Host, "method", louder) is not None
    assert attached.wrap(Host, "method", louder) is None
    assert attached.wrap(Host, "missing", louder) is None
    assert Host().method() == "HOST"
    assert is_wrapped(Host.method)
    attached.undo()
    assert Host.__dict__["method"] is original
    assert not len(attached)


def test_what_another_plugin_put_over_it_stays(attached: Attachment) -> None:
    original = Host.__dict__["method"]
    attached.wrap(Host, "method", louder)
    other = lambda self: "other"  # noqa: E731
    Host.method = other  # type: ignore[method-assign]
    try:
        attached.undo()
        assert Host.__dict__["method"] is other
    finally:
        Host.method = original  # type: ignore[method-assign]


def test_changes_are_taken_back_in_reverse(attached: Attachment) -> None:
    seen: list[int] = []
    for number in range(3):
        attached.on_undo(lambda number=number: seen.append(number))  # type: ignore[misc]
    attached.layers["RMSNorm"] = Host
    attached.registered = True
    attached.undo()
    attached.undo()
    assert seen == [2, 1, 0]
    assert (attached.layers, attached.registered) == ({}, False)


def test_the_policy_goes_back_unless_it_was_changed_since(attached: Attachment) -> None:
    before = policy.default()
    attached.change_policy(lambda p: replace(p, vouched=frozenset({"rms_norm"})))
    assert policy.default().vouched == {"rms_norm"}
    attached.undo()
    assert policy.default() == before
    attached.change_policy(lambda p: replace(p, vouched=frozenset({"rms_norm"})))
    ir_core.change_default(lambda p: replace(p, strict=True))
    attached.undo()
    assert policy.default() == replace(before, strict=True, vouched=frozenset({"rms_norm"}))
