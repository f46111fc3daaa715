# SPDX-License-Identifier: Apache-2.0
"""The error tree: every error says what happened, why, and what to do next.

Code written against vLLM IR catches ``ValueError``, ``AssertionError`` and ``RuntimeError``; the classes here
derive from those as well, so that it keeps catching them.
"""

from __future__ import annotations


class IrError(Exception):
    """Base of all errors of this project.

    Args:
        what: what happened, naming the thing (op, provider, distribution and version).
        why: the values that led to it.
        fix: the next step for the reader.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, fix) if part))


class InvalidNameError(IrError, ValueError):
    """An op or provider name is not of the form ``[a-z_][a-z_0-9]*``."""


class DuplicateError(IrError, AssertionError, ValueError):
    """An op or provider is registered twice."""


class ReservedProviderError(IrError, AssertionError, ValueError):
    """A provider name belongs to the project (``native``, ``unfused``, ``portable``)."""


class SchemaError(IrError, AssertionError, ValueError):
    """A signature cannot be an op's, an implementation's differs from its op's, or a claim is no boolean."""


class UnknownOpError(IrError, KeyError, ValueError):
    """No installed distribution offers an op of that name."""

    __str__ = IrError.__str__  # KeyError would print the repr


class UnknownProviderError(IrError, AssertionError, KeyError, ValueError):
    """No installed distribution offers a provider of that name for that op."""

    __str__ = IrError.__str__


class SelectionError(IrError, RuntimeError, ValueError):
    """No implementation qualifies; carries the ``Selection`` with every candidate's reason."""

    selection: object = None


class StrictError(SelectionError):
    """``IR_STRICT=1`` and something would have fallen back."""


class UncoveredError(IrError, RuntimeError):
    """A strict batch-invariant mode met a function that it neither covers nor knows to keep bits."""


class PredicateError(IrError, RuntimeError, ValueError):
    """A ``supports_args`` predicate raised, or asked for what it must not see."""


class ArgumentError(IrError, RuntimeError, ValueError):
    """The arguments are no call of the op, whichever implementation would run."""


class PolicyError(IrError, ValueError):
    """A policy or priority is malformed or contradicts itself."""


class EnvError(IrError, ValueError):
    """An environment variable has a value that its parser refuses."""


class TargetError(IrError, ValueError):
    """A capability, target or requirement is malformed."""


class PackError(IrError, RuntimeError):
    """A kernel pack or platform provider is broken."""


class LoweringError(IrError, RuntimeError, ValueError):
    """A graph cannot be functionalised or lowered as asked."""


class LockError(IrError, RuntimeError):
    """What is installed differs from the lock file named by ``IR_LOCK``."""


class CertificateError(IrError, ValueError):
    """A certificate is malformed, or does not belong to this device or source."""


class AuditError(IrError, ValueError):
    """What an audit was asked to run, or to read, is not of a kind that it can."""


class IrWarning(UserWarning):
    """Category of every warning of this project."""


def check_flags(kind: type[IrError], what: str, **flags: object) -> None:
    """Raise ``kind`` unless each flag is ``True`` or ``False``: the text ``"no"`` would count as yes."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise kind(f"{what} has {name}={value!r}.", why="It is a yes or a no.", fix="Say True or False.")
