# SPDX-License-Identifier: Apache-2.0
"""Both seams against the real package of whatever vLLM is installed: 0.20.0, 0.26.0, 0.32.0 and 0.33.0 in turn.

Everything happens in this process; `attached` attaches the adapter as vLLM's plug-in loader does, and takes it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

import ir_core
from ir_core import policy as core_policy
from ir_vllm_adapter import (
    compat,
    counters,
    fusion,
    hooks,
    ir_seam,
    layer_seam,
    log,
    plugin,
    state,
    status,
    worker,
)
from ir_vllm_adapter.attachment import ATTACHED, is_wrapped
from ir_vllm_adapter.errors import RefusedError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("vllm_on_cpu"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs an installed vLLM"),
]

INVARIANT = "triton_batch_invariant"
VARIANT = "triton"
EPS = 1e-6


def attach() -> None:
    """What vLLM's plug-in loader and then its front end's configuration do."""
    core_policy.reset_default(forget_changes=True)
    plugin.register()
    hooks.attach_all()


def vllm_config(**priority: list[str]) -> Any:
    """A real VllmConfig without a model; its __post_init__ runs vLLM's defaults and with them our hook."""
    from vllm.config import KernelConfig, VllmConfig

    return VllmConfig(kernel_config=KernelConfig(ir_op_priority=priority))


def lists(config: Any) -> dict[str, list[str]]:
    from dataclasses import asdict

    return asdict(config.kernel_config.ir_op_priority)


def ops() -> dict[str, Any]:
    from vllm.ir.op import IrOp

    return IrOp.registry


# -- facts -------------------------------------------------------------------------------------------------


def test_the_ir_of_this_version_has_a_list_for_each_op() -> None:
    from dataclasses import fields

    from vllm.config.kernel import IrOpPriorityConfig

    assert compat.ir_present()
    assert {field.name for field in fields(IrOpPriorityConfig)} == set(compat.ir_op_names()) == set(ops())


def test_every_norm_fusion_of_this_version_is_known() -> None:
    """A field of PassConfig that names a norm must be one that the adapter switches off."""
    from dataclasses import fields

    from vllm.config.compilation import PassConfig

    names = {field.name for field in fields(PassConfig)}
    norms = {
        name for name in names if any(part in name for part in ("norm", "rms")) and "threshold" not in name
    }
    assert norms <= set(fusion.REPLACES_NORM), norms
    assert {"fuse_norm_quant", "fuse_allreduce_rms"} <= names


# -- IR seam -----------------------------------------------------------------------------------------------


def test_every_implementation_becomes_a_provider(invariant: pytest.MonkeyPatch) -> None:
    for name, theirs in ops().items():
        mine = ir_core.get_op(name)
        assert theirs._schema_str == mine.schema
        for provider, impl in mine.impls.items():
            if provider == "native" or (name, provider) in ATTACHED.collisions:
                continue
            assert theirs.impls[provider].batch_invariant == impl.batch_invariant
            assert theirs.impls[provider].uuid() == ir_seam.provider_uuid(impl)


def test_vllms_lowering_pass_joins_the_q_and_k_norms(invariant: pytest.MonkeyPatch) -> None:
    """The real pass, hooked as in a worker, on a graph with vLLM's own op; the bits are those of two calls."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass
    from vllm.config import set_current_vllm_config

    hooks.attach_lowering()
    hooks.attach_lowering()
    config = vllm_config()
    lowering = VllmIRLoweringPass(config)
    norm = ops()["rms_norm"].torch_op

    def attention(qkv: Tensor, w: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
        q, k, _ = qkv.split([64, 32, 32], -1)
        return norm(q.unflatten(-1, (2, 32)), w, EPS).flatten(-2), norm(
            k.unflatten(-1, (1, 32)), w2, EPS
        ).flatten(-2)

    given = torch.randn(5, 128), torch.randn(32), torch.randn(32)
    with set_current_vllm_config(config), ops()["rms_norm"].set_priority([INVARIANT]):
        traced = make_fx(attention, tracing_mode="fake")(*given)
        lowering(traced.graph)
    traced.graph.lint()
    traced.recompile()
    targets = [str(node.target) for node in traced.graph.nodes if "rms_norm" in str(node.target)]
    assert targets == [f"ir_vllm.rms_norm__{INVARIANT}__pair.default"]
    assert lowering.selected_impls["rms_norm"] and log.LINES == []
    qkv, *weights = given
    views = qkv[:, :64].unflatten(-1, (2, 32)), qkv[:, 64:96].unflatten(-1, (1, 32))
    for got, x, w in zip(traced(*given), views, weights, strict=True):
        assert torch.equal(got, portable("rms_norm", x, w, EPS).flatten(-2))
    ATTACHED.undo()
    assert not is_wrapped(VllmIRLoweringPass.__call__)


def test_registering_twice_changes_nothing(invariant: pytest.MonkeyPatch) -> None:
    before = {name: dict(theirs.impls) for name, theirs in ops().items()}
    changes = len(ATTACHED)
    ATTACHED.registered = False
    attach()
    ir_seam.register_providers()
    assert {name: theirs.impls for name, theirs in ops().items()} == before
    assert len(ATTACHED) == changes


def test_invariant_mode_orders_the_platform_defaults(invariant: pytest.MonkeyPatch) -> None:
    for name, names in lists(vllm_config()).items():
        assert names == [INVARIANT, "portable"], name


def test_the_configuration_may_be_settled_again(invariant: pytest.MonkeyPatch) -> None:
    config = vllm_config()
    before = lists(config)
    config.kernel_config.set_platform_defaults(config)
    assert lists(config) == before


def test_a_named_variant_is_taken_out_with_a_line(invariant: pytest.MonkeyPatch) -> None:
    assert lists(vllm_config(rms_norm=[VARIANT, "portable"]))["rms_norm"] == ["portable"]
    (line,) = log.LINES
    assert "rms_norm" in line and f"{VARIANT}: not declared batch-invariant" in line


def test_a_provider_of_vllm_is_taken_out_too(invariant: pytest.MonkeyPatch) -> None:
    theirs = next(
        p for p in ops()["rms_norm"].impls if p not in ATTACHED.providers["rms_norm"] and p != "native"
    )
    assert lists(vllm_config(rms_norm=[theirs]))["rms_norm"] == [INVARIANT, "portable"]
    assert f"{theirs}: vLLM does not declare it batch-invariant" in log.LINES[0]


def test_strict_refuses_a_named_variant(invariant: pytest.MonkeyPatch) -> None:
    invariant.setenv("IR_STRICT", "1")
    with pytest.raises(RefusedError, match="rms_norm") as caught:
        vllm_config(rms_norm=[VARIANT])
    assert "--ir-op-priority.rms_norm" in str(caught.value)


def test_the_users_order_is_kept(invariant: pytest.MonkeyPatch) -> None:
    assert lists(vllm_config(rms_norm=["portable", INVARIANT]))["rms_norm"] == ["portable"]
    assert ir_core.ops.rms_norm.dispatch(torch.ones(2, 8), None, EPS).provider == "portable"


def test_native_stays_where_the_user_named_it(invariant: pytest.MonkeyPatch) -> None:
    """The one case in which native is the user's own word, first or behind ours."""
    assert lists(vllm_config(rms_norm=["native"]))["rms_norm"] == ["native"]


def test_no_list_that_anybody_sets_holds_a_variant(invariant: pytest.MonkeyPatch) -> None:
    for theirs in ops().values():
        before = theirs.get_priority()
        with theirs.set_priority(["native"]):
            assert theirs.get_priority() == [INVARIANT, "portable"]
        with theirs.set_priority([p for p in theirs.impls if p != INVARIANT]):
            assert theirs.get_priority() == ["portable"]
        assert theirs.get_priority() == before


def test_without_a_list_vllm_would_take_native_and_does_not(invariant: pytest.MonkeyPatch) -> None:
    for name, theirs in ops().items():
        assert theirs.get_priority()[0] == INVARIANT, name
    assert ops()["rms_norm"].dispatch(torch.ones(2, 8), None, EPS).provider == INVARIANT


def test_vllm_installs_the_lists_and_restores_them(invariant: pytest.MonkeyPatch) -> None:
    """0.20: in the forward context of each pass; later: once, when a worker starts."""
    config = vllm_config(rms_norm=["portable"])
    op = ops()["rms_norm"]
    if not hasattr(type(op), "set_default"):  # 0.20
        from vllm.forward_context import set_forward_context

        before = op.get_priority()
        seen: list[list[str]] = []

        def a_pass_that_fails() -> None:
            with set_forward_context(None, config):
                seen.append(op.get_priority())
                raise KeyError

        with pytest.raises(KeyError):
            a_pass_that_fails()
        assert seen == [["portable"]]
        assert op.get_priority() == before
    else:
        config.kernel_config.ir_op_priority.set_default()
        assert op.get_priority() == ["portable"]


def test_a_worker_follows_the_lists_it_was_sent(invariant: pytest.MonkeyPatch) -> None:
    """In another process than the front end: only the configuration arrives, the user's names in it."""
    config = vllm_config(rms_norm=["portable"])
    core_policy.reset_default(forget_changes=True)
    ir_seam.adopt(config.kernel_config.ir_op_priority)
    assert (
        ir_core.current().for_op("fused_add_rms_norm").named == ()
    )  # what the user did not name is not preferred
    assert ir_core.ops.rms_norm.dispatch(torch.ones(2, 8), None, EPS).provider == "portable"


def test_the_compile_hash_notices_what_the_provider_is(invariant: pytest.MonkeyPatch) -> None:
    config = vllm_config().kernel_config
    first = config.compute_hash()
    assert config.compute_hash() == first
    impl = ir_core.ops.rms_norm.impls[INVARIANT]
    invariant.setattr(type(impl), "uuid", lambda self: "another source")
    second = config.compute_hash()
    assert second != first
    from ir_core import Evidence
    from ir_core.verification import evidence

    invariant.setattr(evidence, "evidence_for", lambda impl, target: Evidence("certified", "certificate 42"))
    assert config.compute_hash() not in (first, second)


def test_a_provider_runs_when_vllm_calls_its_op(invariant: pytest.MonkeyPatch) -> None:
    import vllm.ir

    x = torch.randn(3, 48)
    weight = torch.randn(48)
    expected = ir_core.ops.rms_norm.impls["portable"].impl_fn(x, weight, EPS)
    for wrap in (True, False):
        before = counters.CALLS[f"ir:rms_norm/{INVARIANT}"]
        with vllm.ir.enable_torch_wrap(wrap):
            assert torch.equal(ops()["rms_norm"](x, weight, EPS), expected)
        assert counters.CALLS[f"ir:rms_norm/{INVARIANT}"] == before + 1


@pytest.mark.parametrize("name", ["rms_norm", "fused_add_rms_norm"])
def test_a_traced_provider_is_one_opaque_node(invariant: pytest.MonkeyPatch, name: str) -> None:
    """What vLLM's lowering pass does: trace the provider with fake tensors and put the trace in place of the op."""
    if name not in ops():
        pytest.skip(f"vLLM {compat.host().version} has no IR op {name}")
    from torch.fx.experimental.proxy_tensor import make_fx

    theirs = ops()[name]
    tensors = [torch.randn(3, 48) for _ in theirs._py_signature.parameters if _.startswith("x")]
    args = (*tensors, torch.randn(48), EPS, None)
    impl = theirs.dispatch(*args)
    assert impl.provider == INVARIANT
    call = getattr(impl, "func_impl_fn", impl.impl_fn)
    graph = make_fx(lambda *given: call(*given, EPS, None), tracing_mode="fake")(*args[:-2])
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    ours = [target for target in called if target.startswith("ir_vllm.")]
    assert len(ours) == 1 and ours[0].startswith(f"ir_vllm.{name}__{INVARIANT}")
    assert set(called) - set(ours) <= {"aten.clone.default"}
    expected = ir_core.get_op(name).impls["portable"].impl_fn(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = graph(*(tensor.clone() for tensor in args[:-2]))
    found = found if isinstance(found, tuple) else (found,)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_name_that_vllm_has_stays_vllms(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("VLLM_BATCH_INVARIANT", "1")
    import vllm.ir.ops

    op = vllm.ir.ops.rms_norm
    native = op.impls["native"].impl_fn

    def other(*args: Any, **kwargs: Any) -> Any:
        return native(*args, **kwargs)

    theirs = op.register_impl(VARIANT)(ir_seam._like(other, native, "other"))
    try:
        attach()
        assert op.impls[VARIANT] is theirs
        assert ("rms_norm", VARIANT) in ATTACHED.collisions
    finally:
        plugin.unregister()
        del op.impls[VARIANT]


# -- without the switch ------------------------------------------------------------------------------------


def test_without_the_switch_vllm_behaves_as_before(settings: pytest.MonkeyPatch) -> None:
    before = lists(vllm_config())
    alone = vllm_config().compilation_config.pass_config
    attach()
    layer_seam.install()
    config = vllm_config()
    assert lists(config) == before
    assert config.compilation_config.pass_config == alone
    assert ATTACHED.layers == {}
    assert ATTACHED.fusions_off == {}
    assert log.LINES == []


def test_the_users_flag_names_our_provider(settings: pytest.MonkeyPatch) -> None:
    attach()
    assert lists(vllm_config(rms_norm=[VARIANT]))["rms_norm"][0] == VARIANT


def test_ir_priority_names_our_provider(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("IR_PRIORITY", f"rms_norm={VARIANT}")
    attach()
    config = lists(vllm_config())
    assert config["rms_norm"][0] == VARIANT
    assert all(VARIANT not in names for name, names in config.items() if name != "rms_norm")
    # vLLM's own flag is the more particular word.
    assert lists(vllm_config(rms_norm=["portable"]))["rms_norm"][0] == "portable"


# -- layer seam --------------------------------------------------------------------------------------------


@pytest.fixture(params=["IR", "IR hidden"])
def layers(request: pytest.FixtureRequest) -> Iterator[Any]:
    """vLLM's layer module, with the layers taken over and a configuration in which custom ops are on (eager mode).

    With vLLM's IR, and with it hidden, as from 0.34 on.
    """
    if request.param == "IR hidden":
        request.getfixturevalue("hidden_ir")
    request.getfixturevalue("invariant")
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers import layernorm

    layer_seam.install()
    with set_current_vllm_config(
        VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"], mode=0))
    ):
        yield layernorm


def portable(name: str, *args: Any) -> Any:
    return ir_core.get_op(name).impls["portable"].func_impl_fn(*args)


def randomized(layer: Any) -> Any:
    if isinstance(layer.weight, torch.nn.Parameter):
        torch.nn.init.normal_(layer.weight)
    return layer.requires_grad_(False)


def test_the_layers_are_ours_and_still_vllms(layers: Any) -> None:
    for name, switch in layer_seam.LAYERS.items():
        layer = getattr(layers, name)(64)
        assert type(layer) is ATTACHED.layers[name]
        assert isinstance(layer, getattr(layers, name))
        assert type(layer).name == switch  # `custom_ops=["-rms_norm"]` keeps its meaning


def test_rms_norm_layer_has_the_canonical_bits(layers: Any) -> None:
    layer = randomized(layers.RMSNorm(64, eps=EPS))
    x = torch.randn(5, 64)
    residual = torch.randn(5, 64)
    assert torch.equal(layer(x), portable("rms_norm", x, layer.weight, EPS))
    expected = portable("fused_add_rms_norm", x, residual, layer.weight, EPS)
    found = layer(x.clone(), residual.clone())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_variance_size_is_served(layers: Any) -> None:
    """vLLM's own batch-invariant path asserts here."""
    layer = randomized(layers.RMSNorm(64, eps=EPS, var_hidden_size=16))
    x = torch.randn(2, 5, 64)
    assert torch.equal(layer(x), portable("rms_norm", x, layer.weight, EPS, 16))
    found = layer(x.clone(), x.clone())
    expected = portable("fused_add_rms_norm", x, x, layer.weight, EPS, 16)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_weight_is_no_weight(layers: Any) -> None:
    layer = layers.RMSNorm(64, eps=EPS, has_weight=False)
    x = torch.randn(5, 64)
    assert torch.equal(layer(x), portable("rms_norm", x, None, EPS))


def test_gemma_layer_has_the_canonical_bits(layers: Any) -> None:
    layer = randomized(layers.GemmaRMSNorm(64, eps=EPS))
    weight = layer.weight.float() + 1.0
    x, residual = torch.randn(5, 64), torch.randn(5, 64)
    kept = x.clone(), residual.clone()
    assert torch.equal(layer(x), portable("rms_norm", x, weight, EPS))
    found = layer(x, residual)
    expected = portable("fused_add_rms_norm", x, residual, weight, EPS)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


def test_a_weight_replaced_in_place_counts_at_once(layers: Any) -> None:
    layer = randomized(layers.GemmaRMSNorm(64, eps=EPS))
    x = torch.randn(5, 64)
    layer(x)
    layer.weight.data.mul_(3.0)
    assert torch.equal(layer(x), portable("rms_norm", x, layer.weight.float() + 1.0, EPS))


def test_a_strided_query_view_is_the_same_row(layers: Any) -> None:
    """qk-norm: one token's view is contiguous, two tokens' is not; the row's bits are the same."""
    layer = randomized(layers.RMSNorm(32, eps=EPS))
    qkv = torch.randn(4, 3 * 64)
    query = qkv[:, :64].view(4, 2, 32)
    together = layer(query)
    for token in range(4):
        assert torch.equal(layer(qkv[token : token + 1, :64].view(1, 2, 32)), together[token : token + 1])


def test_calls_are_counted_under_what_ran(layers: Any) -> None:
    layer = randomized(layers.RMSNorm(64))
    before = counters.CALLS[f"layer:rms_norm/{INVARIANT}"]
    for _ in range(3):
        layer(torch.randn(2, 64))
    assert counters.CALLS[f"layer:rms_norm/{INVARIANT}"] == before + 3


def nodes_of(layer: Any, *args: Any) -> tuple[list[str], Any]:
    """Targets of the graph that Dynamo traces, and the result of running it."""
    targets: list[str] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        return targets, torch.compile(layer, backend=backend, fullgraph=True)(*args)


@pytest.mark.parametrize("name", list(layer_seam.LAYERS))
def test_in_a_graph_the_layer_is_vllms_ir_op_or_ours(layers: Any, name: str) -> None:
    """Ours where vLLM has none, which holds of the fused add before 0.26, and of all where the IR is hidden."""
    there = ops() if compat.ir_present() else {}
    layer = randomized(getattr(layers, name)(64, eps=EPS))
    x, residual = torch.randn(5, 64), torch.randn(5, 64)
    targets, found = nodes_of(layer, x)
    where = "vllm_ir" if "rms_norm" in there else "ir_vllm"
    assert any(where in target and "rms_norm" in target for target in targets), targets
    assert torch.equal(found, layer(x))
    targets, found = nodes_of(layer, x.clone(), residual.clone())
    where = "vllm_ir" if "fused_add_rms_norm" in there else "ir_vllm"
    assert any(where in target and "fused_add_rms_norm" in target for target in targets), targets
    assert all(torch.equal(a, b) for a, b in zip(found, layer(x, residual), strict=True))


def test_without_an_ir_the_layer_seam_stands_alone(settings: pytest.MonkeyPatch) -> None:
    """0.34: IR gone. Hidden from the adapter before it attaches; vLLM's own modules still import it."""
    settings.setattr(compat, "ir_present", lambda: False)
    settings.setattr(compat, "ir_op_names", lambda: ())
    settings.setenv("VLLM_BATCH_INVARIANT", "1")
    attach()
    layer_seam.install()
    assert ATTACHED.providers == {}
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers import layernorm

    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"], mode=0))
    assert config.compilation_config.pass_config.fuse_norm_quant is False
    with set_current_vllm_config(config):
        made = [randomized(layernorm.RMSNorm(64, eps=EPS)), randomized(layernorm.GemmaRMSNorm(64, eps=EPS))]
    for layer in made:
        x, residual = torch.randn(5, 64), torch.randn(5, 64)
        targets, found = nodes_of(layer, x)
        assert any(target.startswith("ir_vllm.rms_norm") for target in targets), targets
        assert torch.equal(found, layer(x))
        targets, found = nodes_of(layer, x, residual)
        assert any(target.startswith("ir_vllm.fused_add_rms_norm") for target in targets), targets
        assert all(torch.equal(a, b) for a, b in zip(found, layer(x.clone(), residual.clone()), strict=True))
    assert counters.CALLS["graph:rms_norm/selected at the call"] > 0


def test_somebody_elses_layer_is_left_alone(invariant: pytest.MonkeyPatch) -> None:
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers import layernorm

    class TheirNorm(layernorm.RMSNorm):
        pass

    invariant.setitem(custom_op.op_registry_oot, "RMSNorm", TheirNorm)
    layer_seam.install()
    assert custom_op.op_registry_oot["RMSNorm"] is TheirNorm
    assert set(ATTACHED.layers) == {"GemmaRMSNorm"}
    assert any("RMSNorm is already taken over by" in line for line in log.LINES)


# -- fusions, honesty, manners -----------------------------------------------------------------------------


def test_no_default_switches_a_norm_fusion_on(invariant: pytest.MonkeyPatch) -> None:
    """The list no longer begins with native, which alone would turn fuse_norm_quant on."""
    config = vllm_config().compilation_config.pass_config
    assert not any(getattr(config, name, False) for name in fusion.REPLACES_NORM)


def test_a_fusion_that_was_asked_for_is_refused_in_strict_mode(invariant: pytest.MonkeyPatch) -> None:
    from vllm.config import CompilationConfig, VllmConfig
    from vllm.config.compilation import PassConfig

    asked = {"compilation_config": CompilationConfig(mode=3, pass_config=PassConfig(fuse_norm_quant=True))}
    assert VllmConfig(**asked).compilation_config.pass_config.fuse_norm_quant is False
    assert any("fuse_norm_quant is switched off" in line for line in log.LINES)
    invariant.setenv("IR_STRICT", "1")
    asked["compilation_config"] = CompilationConfig(mode=3, pass_config=PassConfig(fuse_norm_quant=True))
    with pytest.raises(RefusedError, match="fuse_norm_quant"):
        VllmConfig(**asked)


def test_status_tells_what_is_not_ours(layers: Any) -> None:
    class OddNorm(torch.nn.Module):
        pass

    model = torch.nn.ModuleList([layers.RMSNorm(8), layers.RMSNorm(8), layers.GemmaRMSNorm(8), OddNorm()])
    state.STATE.loaded, state.STATE.layers = True, worker.census(model)
    data = status.collect()
    assert {row["layer"]: row["count"] for row in data["layers"]} == {
        "RMSNorm": 2,
        "GemmaRMSNorm": 1,
        "OddNorm": 1,
    }
    assert [text for text in data["not_batch_invariant"] if "OddNorm" in text]
    assert f"{INVARIANT} (ir-kernels-triton" in status.render(data)
    for row in data["ops"]:
        if compat.ir_present() and row["op"] in ops():
            assert row["vllm_priority"] == row["order"]


def test_calls_that_never_came_are_warned_about(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state.STATE.loaded, state.STATE.layers = True, worker.census(torch.nn.ModuleList([layers.RMSNorm(8)]))
    counters.CALLS.clear()
    worker.check_calls()
    assert any("1 RMSNorm, and not one call of a norm went through" in line for line in log.LINES)
    log.LINES.clear()
    counters.CALLS["layer:rms_norm/portable"] += 1
    worker.check_calls()
    assert log.LINES == []


def test_the_command_prints_data_and_nothing_else_on_stdout() -> None:
    command = [sys.executable, "-m", "ir_vllm_adapter", "status", "--json"]
    env = os.environ | {"VLLM_BATCH_INVARIANT": "1", "IR_PACKS": "ir-kernels-triton"}
    data = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert data["enabled"]
    assert data["vllm"]["version"] == compat.host().version
    assert {row["layer"]: row["taken_over"] for row in data["layers"]} == {
        "RMSNorm": True,
        "GemmaRMSNorm": True,
    }


def test_vllm_plugins_decides(settings: pytest.MonkeyPatch) -> None:
    import vllm.plugins

    group = "vllm.general_plugins"
    settings.setenv("VLLM_PLUGINS", "something_else")
    assert "ir_vllm_adapter" not in vllm.plugins.load_plugins_by_group(group)
    settings.setenv("VLLM_PLUGINS", "ir_vllm_adapter")
    assert vllm.plugins.load_plugins_by_group(group) == {"ir_vllm_adapter": plugin.register}


def test_the_plugin_function_is_cheap(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("VLLM_BATCH_INVARIANT", "1")
    plugin.register()  # whatever is imported once is imported now
    plugin.unregister()
    core_policy.reset_default(forget_changes=True)
    threads, start = threading.active_count(), time.perf_counter()
    plugin.register()
    milliseconds = (time.perf_counter() - start) * 1e3
    assert milliseconds < 100  # bound for a loaded machine; well below one when it is idle
    assert threading.active_count() == threads
    assert not torch.cuda.is_initialized()


def test_it_can_be_taken_out_again(settings: pytest.MonkeyPatch) -> None:
    import vllm.config.kernel
    import vllm.ir.op
    import vllm.v1.worker.worker_base
    from vllm.model_executor import custom_op

    places = [
        (vllm.config.kernel.KernelConfig, "set_platform_defaults"),
        (vllm.ir.op.IrOp, "set_priority"),
        (vllm.v1.worker.worker_base.WorkerWrapperBase, "init_device"),
    ]
    before = [getattr(*place) for place in places]
    providers = {name: list(theirs.impls) for name, theirs in ops().items()}
    settings.setenv("VLLM_BATCH_INVARIANT", "1")
    attach()
    layer_seam.install()
    assert [getattr(*place) for place in places] != before
    plugin.unregister()
    assert [getattr(*place) for place in places] == before
    assert {name: list(theirs.impls) for name, theirs in ops().items()} == providers
    assert all(not theirs.get_priority() for theirs in ops().values())
    assert not {"RMSNorm", "GemmaRMSNorm"} & custom_op.op_registry_oot.keys()


def test_a_forked_child_has_what_its_parent_attached(invariant: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        good = ops()["rms_norm"].get_priority() == [INVARIANT, "portable"]
        plugin.register()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
