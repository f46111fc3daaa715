# SPDX-License-Identifier: Apache-2.0
"""The linear seam against the real layers of whatever vLLM is installed: 0.20.0, 0.26.0, 0.32.0 and 0.33.0 in turn."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from ir_vllm_adapter import (
    compat,
    counters,
    graph_mode,
    graph_ops,
    linear_seam,
    log,
    plugin,
    state,
    takeover,
    worker,
)
from ir_vllm_adapter.attachment import ATTACHED, is_wrapped

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("vllm_on_cpu"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs an installed vLLM"),
]

DTYPES = (torch.float32, torch.bfloat16)
RUNS = {torch.float32: "triton_fp32", torch.bfloat16: "triton_batch_invariant"}  # in Triton's interpreter


@pytest.fixture(scope="module")
def ranks(vllm_on_cpu: None) -> Iterator[None]:
    """vLLM's process groups, of this process alone: its layers ask for their rank."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        parallel_state.initialize_model_parallel(1)
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture(params=["IR", "IR hidden"])
def taken(request: pytest.FixtureRequest, ranks: None) -> Iterator[pytest.MonkeyPatch]:
    """The linear layers taken over, with vLLM's IR and with it hidden, and a configuration to build layers in."""
    if request.param == "IR hidden":
        request.getfixturevalue("hidden_ir")
    settings: pytest.MonkeyPatch = request.getfixturevalue("invariant")
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    linear_seam.install()
    assert log.LINES == []
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0))):
        yield settings


def layers_of(dtype: torch.dtype, k: int = 48, n: int = 40) -> dict[str, tuple[Any, Callable[[Tensor], Any]]]:
    """Layers of vLLM's with a product, by class: the layer, and how a model calls it."""
    from vllm.model_executor.layers import linear, vocab_parallel_embedding

    made: dict[str, tuple[Any, Callable[[Tensor], Any]]] = {}

    def add(layer: Any, call: Callable[[Tensor], Any]) -> None:
        generator = torch.Generator().manual_seed(len(made))
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / k**0.5)
        made[type(layer).__name__] = (layer.requires_grad_(False), call)

    def linears(layer: Any) -> None:
        add(layer, lambda x: layer(x)[0])

    linears(linear.ReplicatedLinear(k, n, params_dtype=dtype))
    linears(linear.ColumnParallelLinear(k, n, params_dtype=dtype))
    linears(linear.MergedColumnParallelLinear(k, [n, n], bias=False, params_dtype=dtype))
    linears(linear.QKVParallelLinear(k, 16, 2, 1, params_dtype=dtype))
    linears(linear.RowParallelLinear(k, n, params_dtype=dtype))
    head = vocab_parallel_embedding.ParallelLMHead(n, k, params_dtype=dtype)
    add(head, lambda x: head.quant_method.apply(head, x))  # as LogitsProcessor does
    return made


def portable(layer: Any, x: Tensor) -> Tensor:
    from ir_core.ops import linear

    bias = getattr(layer, "bias", None)
    result: Tensor = linear.impls["portable"].impl_fn(
        x, layer.weight.data, None if bias is None else bias.data
    )
    return result


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layer_has_the_bits_of_the_order(taken: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    counters.CALLS.clear()
    layers = layers_of(dtype)
    for name, (layer, call) in layers.items():
        x = torch.randn(5, 48, dtype=dtype)
        together = call(x)
        assert torch.equal(bits(together), bits(portable(layer, x))), name
        for row in (0, 4):
            assert torch.equal(bits(call(x[row : row + 1])), bits(together[row : row + 1])), name
    assert dict(counters.CALLS) == {f"layer:linear/{RUNS[dtype]}": 3 * len(layers)}


def test_a_bias_is_added_before_the_one_rounding(taken: pytest.MonkeyPatch) -> None:
    """vLLM alone (0.20, 0.26) rounds the product, then adds the bias and rounds again: other bits."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    layer = ReplicatedLinear(48, 40, bias=True, params_dtype=torch.bfloat16).requires_grad_(False)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(7, 48, dtype=torch.bfloat16)
    found = layer(x)[0]
    assert torch.equal(bits(found), bits(portable(layer, x)))
    assert not torch.equal(bits(found), bits(portable_twice(layer, x)))


def portable_twice(layer: Any, x: Tensor) -> Tensor:
    from ir_core.ops import linear

    product: Tensor = linear.impls["portable"].impl_fn(x, layer.weight.data, None)
    return product + layer.bias


def test_without_the_seam_the_bits_are_others(settings: pytest.MonkeyPatch, ranks: None) -> None:
    """That the tests above can fail: a CPU's own product of long rows has another order."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0))):
        for layer, call in layers_of(torch.float32, k=4096).values():
            x = torch.randn(5, 4096)
            assert not torch.equal(call(x), portable(layer, x))


def test_a_shard_has_the_bits_of_its_slice(taken: pytest.MonkeyPatch) -> None:
    """Weights as a tensor-parallel rank holds them: columns as they are, rows of another stride after slicing."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    from ir_core.ops import linear

    layer = ReplicatedLinear(48, 40, params_dtype=torch.float32, bias=False).requires_grad_(False)
    whole = torch.randn(80, 96)
    x = torch.randn(3, 96)
    expected = linear.impls["portable"].impl_fn(x, whole, None)
    for half in range(2):  # of the outputs: the same bits as without ranks
        layer.weight.data = whole[40 * half : 40 * (half + 1)]
        assert torch.equal(layer(x)[0], expected[:, 40 * half : 40 * (half + 1)])
        layer.weight.data = whole[:40, 48 * half : 48 * (half + 1)]  # of K: a sum of its own
        part = x[:, 48 * half : 48 * (half + 1)]
        assert torch.equal(layer(part)[0], portable(layer, part.contiguous()))


def test_a_weight_that_is_kept_transposed_is_the_same_product(taken: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    layer = ReplicatedLinear(48, 40, params_dtype=torch.bfloat16, bias=False).requires_grad_(False)
    layer.weight.data.normal_()
    x = torch.randn(2, 3, 48, dtype=torch.bfloat16)  # more leading dimensions than one
    before = layer(x)[0]
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert torch.equal(bits(layer(x)[0]), bits(before))


@pytest.mark.parametrize("name", ["RowParallelLinear", "ParallelLMHead"])
def test_in_a_graph_the_product_is_one_opaque_node(taken: pytest.MonkeyPatch, name: str) -> None:
    layer, call = layers_of(torch.bfloat16)[name]
    targets: list[str] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x = torch.randn(5, 48, dtype=torch.bfloat16)
    torch._dynamo.reset()
    counters.CALLS.clear()
    with torch.no_grad():
        compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=True)
        found = compiled(x)
        assert torch.equal(bits(found), bits(portable(layer, x)))
        assert torch.equal(bits(compiled(x[:3])), bits(found[:3]))  # the same graph, another number of rows
    assert targets == ["ir_vllm.linear.default"]
    assert dict(counters.CALLS) == {"graph:linear/selected at the call": 2}


def test_inductor_keeps_the_bits(taken: pytest.MonkeyPatch) -> None:
    """With what stands around it: an activation before, a residual behind."""
    _, call = layers_of(torch.float32)["ColumnParallelLinear"]

    def block(x: Tensor) -> Tensor:
        return torch.relu(call(torch.relu(x))) * 2.0

    torch._dynamo.reset()
    x = torch.randn(4, 48)
    with torch.no_grad():
        assert torch.equal(torch.compile(block, fullgraph=True)(x), block(x))


def test_a_product_without_a_layer_is_ours_too(taken: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.utils import dispatch_unquantized_gemm

    layer = torch.nn.Module()
    layer.weight = torch.randn(40, 48)
    x = torch.randn(3, 48)
    counters.CALLS.clear()
    assert torch.equal(dispatch_unquantized_gemm()(layer, x, layer.weight, None), portable(layer, x))
    assert counters.CALLS["layer:linear/triton_fp32"] == 1


def test_what_was_taken_over_is_data(taken: pytest.MonkeyPatch) -> None:
    data = ATTACHED.takeovers["linear"].to_dict()
    assert data["runs"]["bfloat16"] == {
        "provider": "triton_batch_invariant",
        "distribution": "ir-kernels-triton",
        "order": "chain16",
    }
    assert data["runs"]["float32"]["order"] == "fma_chain"
    assert data["left"] == {}
    assert data["seams"] == [
        "vllm.model_executor.layers.linear.UnquantizedLinearMethod.apply",
        "vllm.model_executor.layers.vocab_parallel_embedding.UnquantizedEmbeddingMethod.apply",
        "vllm.model_executor.layers.utils.default_unquantized_gemm",
    ]


def test_another_provider_may_be_named(
    request: pytest.FixtureRequest, settings: pytest.MonkeyPatch, ranks: None
) -> None:
    settings.setenv("IR_PRIORITY", "linear=portable")
    request.getfixturevalue("invariant")
    linear_seam.install()
    assert {r.provider for r in ATTACHED.takeovers["linear"].runs.values()} == {"portable"}


def test_where_only_portable_is_left_vllm_keeps_its_own(invariant: pytest.MonkeyPatch) -> None:
    """A GPU for whose 16-bit products ir-core has no kernel: portable would be a thousand times slower."""
    from ir_core import current, platforms
    from ir_core.ops import linear

    invariant.setenv("IR_TARGET", "cuda:sm80")
    platforms.refresh()
    target = next(t for t in platforms.targets() if t.kind == "cuda")
    samples = [(torch.empty(1, 64, dtype=torch.bfloat16), torch.empty(8, 64, dtype=torch.bfloat16), None)]
    found = takeover.decide(linear, samples, current(), target)
    assert found.runs == {}
    assert "only portable" in found.left["bfloat16"] and "triton_batch_invariant: " in found.left["bfloat16"]
    named = current().with_op("linear", type(current().for_op("linear"))(prefer=("portable",)))
    assert takeover.decide(linear, samples, named, target).runs["bfloat16"].provider == "portable"


def test_a_dtype_that_was_left_goes_to_vllm(taken: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod

    layer = ReplicatedLinear(48, 40, params_dtype=torch.float64, bias=False).requires_grad_(False)
    layer.weight.data.normal_()
    x = torch.randn(3, 48, dtype=torch.float64)
    counters.CALLS.clear()
    assert torch.equal(layer(x)[0], torch.nn.functional.linear(x, layer.weight))
    assert not counters.CALLS
    assert is_wrapped(UnquantizedLinearMethod.apply)


def test_without_the_switch_nothing_is_touched(settings: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    plugin.register()
    linear_seam.install()
    assert ATTACHED.takeovers == {}
    assert not is_wrapped(UnquantizedLinearMethod.apply)


def test_it_is_taken_back(taken: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    places = [
        (UnquantizedLinearMethod, "apply"),
        (UnquantizedEmbeddingMethod, "apply"),
        (utils, "default_unquantized_gemm"),
    ]
    assert all(is_wrapped(getattr(*place)) for place in places)
    linear_seam.install()
    plugin.unregister()
    assert not any(is_wrapped(getattr(*place)) for place in places)
    assert ATTACHED.takeovers == {}


# -- a worker's life -----------------------------------------------------------------------------------------


def test_the_census_tells_ours_from_others(taken: pytest.MonkeyPatch) -> None:
    class Odd:
        def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
            return x

    layers = [layer for layer, _ in layers_of(torch.bfloat16).values()]
    layers[0].quant_method = Odd()
    found = linear_seam.census(torch.nn.ModuleList([*layers, torch.nn.Linear(2, 2)]))
    assert found == {"linear/bfloat16": 5, "Odd": 1, "torch.nn.Linear": 1}


def test_products_that_never_came_are_warned_about(taken: pytest.MonkeyPatch) -> None:
    model = torch.nn.ModuleList([layer for layer, _ in layers_of(torch.bfloat16).values()])
    state.STATE.loaded, state.STATE.linears = True, linear_seam.census(model)
    counters.CALLS.clear()
    counters.CALLS["layer:rms_norm/portable"] += 1  # other kinds of calls say nothing of these
    worker.check_calls()
    assert any("6 linear/bfloat16, and not one call of a linear went through" in line for line in log.LINES)
    log.LINES.clear()
    counters.CALLS["graph:linear/selected at the call"] += 1
    worker.check_calls()
    assert log.LINES == []


# -- compiled or breakable -----------------------------------------------------------------------------------


def model_config(dtype: torch.dtype) -> Any:
    """A VllmConfig as far as the choice looks at it, of a model that is in vLLM's table."""
    from types import SimpleNamespace

    return SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_stays_compiled_where_linear_is_ours(taken: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    choice = graph_mode.around(lambda self: True)
    assert choice(model_config(dtype)) is (dtype is torch.float64)
    assert (graph_mode.SETTING in ATTACHED.settings) is (dtype is torch.bfloat16)
    assert not graph_mode.around(lambda self: False)(model_config(dtype))


def test_the_choice_of_this_version_is_wrapped(taken: pytest.MonkeyPatch) -> None:
    """vLLM's own method, by its name, from the version on that has it; and it is asked before compilation is left."""
    import inspect

    from vllm.config.vllm import VllmConfig

    has_it = compat.parse(compat.host().version) >= (0, 32)
    assert is_wrapped(getattr(VllmConfig, graph_mode.CHOICE, None)) is has_it
    if has_it:
        asks = inspect.getsource(VllmConfig._maybe_enable_breakable_cudagraph)
        assert f"self.{graph_mode.CHOICE}()" in asks and graph_mode.SETTING in asks


def test_the_op_is_there_before_a_cached_graph_is_loaded(taken: pytest.MonkeyPatch) -> None:
    assert hasattr(getattr(torch.ops, graph_ops.NAMESPACE), "linear")
