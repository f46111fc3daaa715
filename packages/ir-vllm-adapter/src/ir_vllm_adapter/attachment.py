# SPDX-License-Identifier: Apache-2.0
"""Everything that the adapter changed in this process, in one object that undoes itself.

Each change to vLLM or to ir-core's default policy is made through :data:`ATTACHED`, or hands it the way back. What was
changed is data too: ``status`` and the tests read it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ir_vllm_adapter.takeover import Takeover

_MARK: Final = "_ir_vllm_adapter_wraps"


class Attachment:
    """What was changed, and how each change is taken back.

    Attributes:
        registered: whether vLLM's plug-in loader called us in this process.
        offered: whether our providers were offered to the vLLM IR of this process.
        providers: op -> provider -> the distribution that brings it, for what we registered in vLLM's IR.
        collisions: (op, provider) of ours that vLLM has under the same name; there the name means vLLM's.
        layers: the layer classes that stand in for vLLM's, by the name of vLLM's class.
        fusions_off: fusions that we switched off, or kept from being switched on by a default, with the reason.
        takeovers: ir-core's ops beyond the norms that were looked at, by name: at which points of vLLM they run, what
            runs for which dtype, in which order, and what is left to vLLM, with the reason.
        settings: choices of vLLM's that we changed, with the reason.
    """

    def __init__(self) -> None:
        self.registered = False
        self.offered = False
        self.providers: Final[dict[str, dict[str, str]]] = {}
        self.collisions: Final[set[tuple[str, str]]] = set()
        self.layers: Final[dict[str, type]] = {}
        self.fusions_off: Final[dict[str, str]] = {}
        self.takeovers: Final[dict[str, Takeover]] = {}
        self.settings: Final[dict[str, str]] = {}
        self._ways_back: Final[list[Callable[[], object]]] = []

    def __len__(self) -> int:
        """How many changes there are to take back."""
        return len(self._ways_back)

    def on_undo(self, way_back: Callable[[], object]) -> None:
        """Call ``way_back`` on :meth:`undo`; the last change is taken back first."""
        self._ways_back.append(way_back)

    def wrap(
        self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> Callable[[], None] | None:
        """Replace what the class or module ``owner`` itself has as ``name`` by ``around(it)``, once.

        Returns:
            A function that puts the method back before :meth:`undo` does; ``None`` when nothing was wrapped.
        """
        original = owner.__dict__.get(name)
        if original is None or is_wrapped(original):
            return None
        replacement = functools.wraps(original)(around(original))
        setattr(replacement, _MARK, original)
        setattr(owner, name, replacement)

        def restore() -> None:
            if owner.__dict__.get(name) is replacement:  # another plug-in may have wrapped it since
                setattr(owner, name, original)

        self.on_undo(restore)
        return restore

    def change_policy(self, change: Callable[[Any], Any]) -> None:
        """Change ir-core's default policy; :meth:`undo` puts the former one back if it is still what we made of it."""
        from ir_core import change_default, policy

        before = policy.default()
        change_default(change)
        made = policy.default()
        self.on_undo(lambda: change_default(lambda now: before if now == made else now))

    def undo(self) -> None:
        """Take every change back: vLLM's methods, IR and layer classes are its own again. Models built before stay."""
        while self._ways_back:
            self._ways_back.pop()()
        self.registered = self.offered = False
        for record in (
            *(self.providers, self.collisions, self.layers, self.fusions_off),
            *(self.takeovers, self.settings),
        ):
            record.clear()


def unwrapped(method: Any) -> Any:
    """vLLM's own method behind one that :meth:`Attachment.wrap` put in place; any other as it is."""
    return getattr(method, _MARK, method)


def is_wrapped(method: Any) -> bool:
    """Whether a method is one that :meth:`Attachment.wrap` put in place."""
    return hasattr(method, _MARK)


ATTACHED: Final = Attachment()
"""The attachment of this process."""
