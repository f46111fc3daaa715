# SPDX-License-Identifier: Apache-2.0
"""The part of a compile cache's key that ir-core answers for.

It covers whatever can change a lowering: the policy, the targets, the fake function and the backward of each op, and
for each implementation that may be selected its sources, versions, flags and evidence.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ir_core import catalog, platforms, resolve, sources
from ir_core.meaning import NATIVE, Meaning
from ir_core.policy import Policy
from ir_core.verification.evidence import evidence_for


def cache_key(policy: Policy) -> str:
    """SHA-256, in hex, over everything that decides what a graph is lowered to under ``policy``."""
    targets = platforms.targets()
    parts: dict[str, Any] = {
        "policy": policy.to_dict(),
        "targets": [
            {k: v for k, v in target.to_dict().items() if k not in ("notes", "uuid")} for target in targets
        ],
        "passes": sources.digest([cache_key]),
        "ops": {op.name: _op_key(op, policy) for op in sorted(catalog.loaded(), key=lambda op: op.name)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _op_key(op: Meaning, policy: Policy) -> list[Any]:
    around = [fn for fn in (op.fake_fn, op.backward_fn) if fn is not None]  # traced into the graph as well
    found: list[Any] = [
        op.schema,
        catalog.known(op)[NATIVE].uuid(),
        sources.digest(around),
        op.backward_fn is not None,
    ]
    invariant = policy.invariant(op.name)
    for impl, named in resolve.ladder(op, policy):
        provider = impl.provider
        if (invariant and not impl.batch_invariant) or not impl.supported:
            found.append([provider, named, "not considered"])
            continue
        evidence = [str(evidence_for(impl, target)) for target in platforms.targets()] if invariant else []
        found.append([provider, named, impl.uuid(), str(impl.requires), evidence])
    return found
