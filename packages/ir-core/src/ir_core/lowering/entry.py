# SPDX-License-Identifier: Apache-2.0
"""``torch.compile`` with ir-core's passes in it: one line for the user.

::

    model = ir_core.compile(model)  # or
    model = torch.compile(model, options=ir_core.lowering.options())
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._logging._internal import trace_structured

from ir_core import policy as policies
from ir_core import policy_guard
from ir_core.errors import IrError, LoweringError
from ir_core.lowering.cache_key import cache_key
from ir_core.lowering.clone_elimination import eliminate_clones, prefer_functional
from ir_core.lowering.functionalization import functionalize
from ir_core.lowering.lowering_pass import Lowering
from ir_core.lowering.report import LoweringReport
from ir_core.policy import Policy

logger = logging.getLogger("ir_core")

PRE = "pre_grad_custom_pass"
POST = "post_grad_custom_post_pass"
FILTER = "guard_filter_fn"
_PASSES = "_ir_core_passes"


class Passes:
    """The two passes of one compiled function, and the reports of the graphs they lowered.

    Args:
        policy: the requirement to select under, whatever is in force; by default the one in force when a graph is
            built, which becomes a guard of the graph. The backward of a graph is compiled later, under the policy
            that its forward had.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy
        self.reports: list[LoweringReport] = []
        self.functionalize = _Pass(self, self._functionalize)
        self.lower = _Pass(self, self._lower)

    def policy(self) -> Policy:
        """The policy for the graph that is being compiled."""
        return policy_guard.pin() if self._policy is None else self._policy

    def _functionalize(self, graph: fx.Graph) -> None:
        self.policy()  # the forward is being built: keep its policy for the backward
        functionalize(graph)

    def _lower(self, graph: fx.Graph) -> None:
        requirement = self.policy()
        report = Lowering(requirement).run(graph)
        if not report.nodes and not report.unlowered:
            return
        report.clones_removed, report.clones_kept = eliminate_clones(graph)
        report.clones_kept -= prefer_functional(graph, report)
        self.reports.append(report)
        _publish(report)
        if report.unlowered and requirement.strict:
            raise LoweringError(
                f"{len(report.unlowered)} ops were not lowered, and IR_STRICT is set.",
                why="; ".join(report.unlowered),
            )


class _Pass(CustomGraphPass):
    def __init__(self, passes: Passes, run: Callable[[fx.Graph], None]) -> None:
        self._passes, self._run = passes, run

    def __call__(self, graph: fx.Graph) -> None:
        self._run(graph)

    def uuid(self) -> str:
        return f"{self._run.__name__}:{cache_key(self._passes.policy())}"

    def __reduce__(self) -> Any:
        return str, (self.uuid(),)  # torch 2.11 pickles its whole configuration into a cache key


class _Chain(CustomGraphPass):
    """Several passes as one, for releases of torch that take one; its ``uuid`` is unknown if one of theirs is."""

    def __init__(self, passes: Sequence[Any]) -> None:
        self._passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        for each in self._passes:
            each(graph)

    def uuid(self) -> Any:
        found = [each.uuid() if isinstance(each, CustomGraphPass) else None for each in self._passes]
        return None if None in found else tuple(found)

    def __reduce__(self) -> Any:
        return tuple, (self._passes,)


def _publish(report: LoweringReport) -> None:
    logger.info("lowered %d ops: %s", len(report.nodes), report.summary())
    for line in report.unlowered:
        logger.warning("not lowered, selected anew on each call: %s", line)
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "ir_core_selection", "encoding": "json"},
        payload_fn=lambda: json.dumps(report.to_dict()),
    )


def options(passes: Passes | None = None, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``options`` of ``torch.compile`` that put the passes in.

    Args:
        passes: the passes; new ones by default.
        given: the user's own options; passes among them keep running, around ours.
    """
    passes = Passes() if passes is None else passes
    merged = dict(given or {})
    from torch._inductor import config

    before = merged.get(PRE, getattr(config, PRE))
    after = merged.get(POST, getattr(config, POST))
    merged[PRE] = _join(before, passes.functionalize)
    merged[POST] = _join(passes.lower, after)
    return _guarded(merged)


def _guarded(given: dict[str, Any]) -> dict[str, Any]:
    """The same options, whose filter of guards leaves that of the policy."""
    chosen = given.get(FILTER)
    return given if chosen is None else {**given, FILTER: policy_guard.keep(chosen)}


def _join(*passes: Any) -> CustomGraphPass:
    flat = [each for item in passes for each in (item if isinstance(item, (list, tuple)) else [item]) if each]
    single: CustomGraphPass = flat[0] if len(flat) == 1 else _Chain(flat)
    return single


def compile(  # noqa: A001  the counterpart of torch.compile
    model: Callable[..., Any], *, policy: Policy | None = None, **kwargs: Any
) -> Any:
    """``torch.compile(model)`` with ir-core's ops lowered to the implementations that are selected.

    Args:
        model: a module or function.
        policy: the requirement that holds inside every call; by default the one in force there. A graph belongs to
            the policy it was built under: a call under another takes another graph.
        kwargs: passed to ``torch.compile``; Inductor passes in ``options`` keep running.

    Raises:
        LoweringError: the backend is another than Inductor or :func:`eager_backend`.
    """
    passes = Passes()
    backend = kwargs.pop("backend", "inductor")
    if backend in ("inductor", None):
        mode = kwargs.pop("mode", None)
        given = dict(kwargs.pop("options", None) or {})
        if mode is not None:  # torch.compile takes either; a mode is a set of options
            given = {**torch._inductor.list_mode_options(mode), **given}
        compiled = torch.compile(model, options=options(passes, given), **kwargs)
    elif backend == "eager":
        if "options" in kwargs:
            kwargs["options"] = _guarded(dict(kwargs["options"] or {}))
        compiled = torch.compile(model, backend=eager_backend(passes), **kwargs)
    else:
        raise LoweringError(
            f"ir_core.compile does not know the backend {backend!r}.",
            why="The passes are run by Inductor, or by ir-core's own 'eager' backend.",
            fix="Drop the argument, or use torch.compile: ops then select when they are called.",
        )
    if policy is not None:
        compiled = _under(policy, compiled)
    try:
        setattr(compiled, _PASSES, passes)
    except AttributeError as error:  # torch.compile returned something without attributes
        raise IrError(f"{compiled!r} cannot keep its lowering reports.") from error
    return compiled


def _under(policy: Policy, compiled: Any) -> Any:
    """``compiled``, each of whose calls runs in a scope of ``policy``: its graphs, and what Dynamo left outside."""
    inner = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        with policies.scope(policy):
            return inner(*args, **kwargs)

    if not isinstance(compiled, torch.nn.Module):
        return call
    compiled.forward = call
    return compiled


def eager_backend(passes: Passes | None = None) -> Callable[..., Any]:
    """A backend that lowers a graph and runs it op by op, without generating code: for tests and debugging."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    passes = Passes() if passes is None else passes

    def lower(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        passes.lower(module.graph)
        module.recompile()
        return make_boxed_func(module)

    compiled = aot_autograd(fw_compiler=lower, bw_compiler=lower, decompositions=select_decomp_table)

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        passes.functionalize(module.graph)
        module.recompile()
        return compiled(module, inputs)

    return backend


def reports(compiled: Any) -> list[LoweringReport]:
    """What was selected in each graph of a function from :func:`compile`; empty when compile caches had them all."""
    found: list[LoweringReport] = getattr(compiled, _PASSES).reports
    return found
