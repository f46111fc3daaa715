# SPDX-License-Identifier: Apache-2.0
"""Compiled code under the mode: element by element the arithmetic of the eager calls.

Inductor fuses element-wise functions and computes them more precisely than the calls that it replaces: 16-bit results
are not rounded in between, a product and a sum are contracted, divisions are approximate. Graphs that are traced
under the mode are compiled with all of that off; other graphs are not touched, at the same time neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ir_core import policy as policies
from ir_core import policy_guard

SETTINGS: Final[dict[str, Any]] = {
    "emulate_precision_casts": True,  # each 16-bit result is rounded; no contraction of products and sums in Triton
    "eager_numerics.division_rounding": True,
    "emulate_divison_rounding": True,  # the same in torch 2.11 (its spelling)
    "eager_numerics.disable_ftz": True,
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    "use_fast_math": False,
    "batch_invariant": True,  # what is left to reduce, in a backward say, does not look at the size of the batch
    "deterministic": True,
}
"""Settings of Inductor, those that the installed torch has."""

_MARK: Final = "_ir_core_covering"


def covering() -> bool:
    """Whether torch's functions go to ops here: by the policy of this thread and task."""
    return policies.current().covering


def covering_in_graph() -> bool:
    """:func:`covering` for the graph that is being traced, which is held to it from then on."""
    policy = policy_guard.pin()
    if policy.covering:
        _prepare_backend()
    return policy.covering


covering_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _prepare_backend() -> None:
    """Let the backend of the graph that Dynamo is tracing run under :data:`SETTINGS`."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output = InstructionTranslator.current_tx().output
    compiler: Any = output.compiler_fn
    if compiler is not None and not hasattr(compiler, _MARK):
        output.compiler_fn = _under_settings(compiler)


def _under_settings(compiler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compiler)
    def compile_graph(*args: Any, **kwargs: Any) -> Any:
        with settings():
            return compiler(*args, **kwargs)

    setattr(compile_graph, _MARK, True)
    return compile_graph


@contextmanager
def settings() -> Iterator[None]:
    """:data:`SETTINGS` inside the ``with`` block, and ir-core's passes unless other ones are given."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config

    from ir_core.lowering import options

    known = {name: value for name, value in SETTINGS.items() if _has(config, name)}
    # The backward is compiled with its forward, not later when the settings are gone.
    with functorch_config.patch(force_non_lazy_backward_lowering=True), config.patch({**options(), **known}):
        yield


def _has(config: Any, name: str) -> bool:
    try:
        functools.reduce(getattr, name.split("."), config)
    except AttributeError:
        return False
    return True
