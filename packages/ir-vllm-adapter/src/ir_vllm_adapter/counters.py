# SPDX-License-Identifier: Apache-2.0
"""How often our implementations were really called. One dictionary entry a call: some tens of nanoseconds.

Keys are ``seam:op/provider``: ``layer`` is a layer that we took over, called eagerly; ``ir`` a provider of vLLM's IR,
called eagerly; ``graph`` a node of a compiled graph, and with `` in pairs`` behind it how often two of these calls
went through the implementation's pair, which makes one launch of them where it can. Replays of a CUDA graph run no
Python and are not counted; its capture is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

CALLS: Final[Counter[str]] = Counter()
IN_PAIRS: Final = " in pairs"


def snapshot() -> dict[str, int]:
    """The counts so far, by key, sorted."""
    return dict(sorted(CALLS.items()))


def called(ops: Iterable[str]) -> bool:
    """Whether any of these ops was called so far, through whatever seam."""
    names = frozenset(ops)
    return any(key.partition(":")[2].partition("/")[0] in names for key in CALLS)
