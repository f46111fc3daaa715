# SPDX-License-Identifier: Apache-2.0
"""The adapter's errors. They say what happened, why, and what to do next, one a line."""

from __future__ import annotations


class AdapterError(RuntimeError):
    """Base of the adapter's errors.

    Args:
        what: what happened.
        why: the values that led to it.
        fix: the next step for the reader.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, fix) if part))


class AgreementError(AdapterError):
    """Ranks of one tensor-parallel group would run different implementations."""


class RefusedError(AdapterError):
    """IR_STRICT=1 and the configuration asks for something that does not meet the requirement."""


class ModelError(AdapterError):
    """A model folder that cannot be used, or options of an engine that cannot be started."""
