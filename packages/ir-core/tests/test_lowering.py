# SPDX-License-Identifier: Apache-2.0
"""Lowering: compiled graphs run what was selected, with the bits of the eager call."""

import logging
import operator

import pytest
import torch
from torch import fx

import ir_core
from ir_core import lowering, ops, policy
from ir_core.errors import LoweringError, SelectionError
from ir_core.lowering.clone_elimination import eliminate_clones
from ir_core.lowering.lowering_pass import DONATION, Lowering

EPS = 1e-6


class Block(torch.nn.Module):
    """Norm, projection and fused norm, as a decoder layer has them."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(width))
        self.linears = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = x * 2
        x = ops.rms_norm(x, self.weight, EPS)
        for linear in self.linears:
            x = linear(x)
            x, residual = ops.fused_add_rms_norm.maybe_inplace(x, residual, self.weight, EPS)
        return x, residual


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def equal_bits(one, other):
    if isinstance(one, tuple):
        return all(equal_bits(a, b) for a, b in zip(one, other, strict=True))
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


def graph_targets(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


class Capture(lowering.Passes):
    """Passes that keep the graphs they lowered."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.graphs = []
        inner = self.lower._run
        self.lower._run = lambda graph: (inner(graph), self.graphs.append(graph))[0]


def run_eagerly(model, *args, policy=None, **kwargs):
    passes = Capture(policy)
    compiled = torch.compile(model, backend=lowering.eager_backend(passes), fullgraph=True, **kwargs)
    return compiled(*args), passes


@pytest.mark.parametrize("wrap", [True, False])
def test_batch_invariant_bits_are_the_eager_ones(wrap):
    model, x = Block(), torch.randn(5, 64)
    with torch.no_grad(), ir_core.scope(batch_invariant=True), ir_core.enable_torch_wrap(wrap):
        expected = model(x)
        found, _ = run_eagerly(model, x)
    assert equal_bits(found, expected)


@pytest.mark.slow
def test_inductor_gives_the_eager_bits_in_batch_invariant_mode():
    model, x = Block(), torch.randn(5, 64)
    no_caches = torch.compiler.config.patch(
        force_disable_caches=True
    )  # a graph from a cache is not lowered again
    with torch.no_grad(), ir_core.scope(batch_invariant=True), no_caches:
        compiled = ir_core.compile(model, fullgraph=True)
        assert equal_bits(compiled(x), model(x))
        assert (
            lowering.reports(compiled)[0].summary() == "fused_add_rms_norm: portable*2; rms_norm: portable*1"
        )


def test_implementations_stay_whole_in_batch_invariant_mode_and_are_inlined_otherwise():
    model, x = Block(), torch.randn(5, 64)
    with torch.no_grad():
        _, plain = run_eagerly(model, x)
        torch._dynamo.reset()
        _, invariant = run_eagerly(model, x, policy=ir_core.Policy(batch_invariant=True))
    assert not any("ir_core" in str(node.target) for node in plain.graphs[0].nodes)
    targets = [str(node.target) for node in invariant.graphs[0].nodes if "ir_core" in str(node.target)]
    assert targets == ["ir_core.rms_norm.portable"] + ["ir_core.fused_add_rms_norm.portable"] * 2
    assert {node.form for node in plain.reports[0].nodes} == {"inlined"}
    assert {node.form for node in invariant.reports[0].nodes} == {"whole"}


def test_the_report_says_what_why_and_where():
    _, passes = run_eagerly(Block(), torch.randn(5, 64), policy=ir_core.Policy(batch_invariant=True))
    node = passes.reports[0].nodes[0]
    assert "test_lowering.py" in node.where
    reasons = {c["provider"]: c["reason"] for c in node.to_dict()["candidates"]}
    assert reasons["portable"] == "selected, in the order tree"


def test_batch_sizes_stay_dynamic():
    model = Block()
    passes = Capture(ir_core.Policy(batch_invariant=True))
    compiled = torch.compile(model, backend=lowering.eager_backend(passes), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (2, 3, 7, 64, 300):
            x = torch.randn(rows, 64)
            with ir_core.scope(batch_invariant=True):
                assert equal_bits(compiled(x), model(x))
    assert len(passes.reports) == 1


def test_the_report_says_what_was_selected_for_each_policy():
    model, x = Block(), torch.randn(5, 64)
    compiled = ir_core.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        with ir_core.scope(batch_invariant=True):
            first = compiled(x)
        compiled(x)
        with ir_core.scope(batch_invariant=True):
            assert equal_bits(compiled(x), first)
    assert [r.summary() for r in lowering.reports(compiled)] == [
        "fused_add_rms_norm: portable*2; rms_norm: portable*1",
        "fused_add_rms_norm: native*2; rms_norm: native*1",
    ]


def test_training_step_compiles_and_its_forward_has_the_eager_bits():
    model, x = Block(), torch.randn(5, 64, requires_grad=True)
    with ir_core.scope(batch_invariant=True):
        expected = model(x)
        expected[0].square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        found, _ = run_eagerly(model, x)
        assert equal_bits(tuple(t.detach() for t in found), tuple(t.detach() for t in expected))
        found[0].square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_backward_compiles_under_the_policy_of_its_forward():
    def checkpointed(x, w):
        return torch.utils.checkpoint.checkpoint(
            lambda y: ops.rms_norm(y, w, EPS).square(), x, use_reentrant=False
        ).sum()

    passes = Capture()
    compiled = torch.compile(checkpointed, backend=lowering.eager_backend(passes), fullgraph=True)
    x, w = torch.randn(3, 64, requires_grad=True), torch.randn(64)
    with ir_core.scope(batch_invariant=True):
        out = compiled(x, w)
    out.backward()  # the scope is left
    assert {n.selection.provider for r in passes.reports for n in r.nodes} == {"portable"}


def test_other_inductor_passes_keep_running():
    seen = []

    class Theirs(torch._inductor.custom_graph_pass.CustomGraphPass):
        def __call__(self, graph):
            seen.append(len(graph.nodes))

        def uuid(self):
            return "theirs"

    options = lowering.options(
        given={"post_grad_custom_post_pass": Theirs(), "pre_grad_custom_pass": Theirs()}
    )
    graph = fx.Graph()
    graph.output(())
    options["post_grad_custom_post_pass"](graph)
    options["pre_grad_custom_pass"](graph)
    assert seen == [1, 1]
    assert "theirs" in options["pre_grad_custom_pass"].uuid()


def test_a_foreign_backend_is_refused():
    with pytest.raises(LoweringError, match="does not know the backend 'onnxrt'"):
        ir_core.compile(Block(), backend="onnxrt")


def test_no_qualified_implementation_is_an_error_with_reasons():
    requirement = ir_core.Policy(ops={"rms_norm": ir_core.OpPolicy(deny={"native"})})
    with pytest.raises(Exception, match="denied by the policy") as caught:
        run_eagerly(Block(), torch.randn(5, 64), policy=requirement)
    chain = [caught.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert any(isinstance(error, SelectionError) for error in chain) or "denied" in str(caught.value)


def test_an_unlowered_node_warns_and_is_an_error_when_strict(caplog):
    graph = fx.Graph()
    x = graph.placeholder("x")  # no metadata
    graph.output(graph.call_function(ops.rms_norm.torch_op, (x, None, EPS)))
    with caplog.at_level(logging.WARNING, "ir_core"):
        lowering.Passes(ir_core.Policy()).lower(graph)
    assert "not lowered" in caplog.text
    with pytest.raises(LoweringError, match="IR_STRICT"):
        lowering.Passes(ir_core.Policy(strict=True)).lower(graph)


def test_what_cannot_be_traced_names_the_remedy():
    op = ops.rms_norm

    @op.register_impl("untraceable")
    def untraceable(
        x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> torch.Tensor:
        return torch.from_numpy(x.numpy())

    try:
        with pytest.raises(Exception, match="opaque=True"):
            run_eagerly(Block(), torch.randn(5, 64), policy=ir_core.Policy(prefer=("untraceable",)))
    finally:
        op.unregister_impl("untraceable")


# -- donations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("the input itself", lambda x, r, w: (ops.fused_add_rms_norm.maybe_inplace(x, r, w, EPS), x + 1)),
        ("returned", lambda x, r, w: (ops.fused_add_rms_norm.maybe_inplace(x, (y := r * 2), w, EPS), y)),
        (
            "through a view",
            lambda x, r, w: (lambda v: (ops.fused_add_rms_norm.maybe_inplace(x, r, w, EPS), v + 1))(
                x.view(-1)
            ),
        ),
        (
            "the base of a view",
            lambda x, r, w: (ops.fused_add_rms_norm.maybe_inplace(x[:2], r[:2], w, EPS), x + 1),
        ),
    ],
)
def test_a_donated_input_that_is_used_again_is_an_error_naming_both_nodes(name, function):
    with pytest.raises(Exception, match=r"donated to fused_add_rms_norm.maybe_inplace at node '.*used again"):
        run_eagerly(function, torch.randn(4, 64), torch.randn(4, 64), torch.randn(64))


def test_donating_the_same_memory_twice_is_an_error():
    with pytest.raises(Exception, match="share memory"):
        run_eagerly(
            lambda x, w: ops.fused_add_rms_norm.maybe_inplace(x, x.view(4, 64), w, EPS),
            torch.randn(4, 64),
            torch.randn(64),
        )


def test_donating_one_slice_of_a_projection_leaves_the_others_usable():
    def function(qkv, r, w):
        q, k = qkv[:, :64], qkv[:, 64:]
        return ops.fused_add_rms_norm.maybe_inplace(q, r, w, EPS), k + 1

    run_eagerly(function, torch.randn(4, 128), torch.randn(4, 64), torch.randn(64))


def test_keyword_arguments_are_functionalised():
    def function(x, r, w):
        return ops.fused_add_rms_norm.maybe_inplace(x=x, x_residual=r, epsilon=EPS, weight=w)

    x, r, w = torch.randn(4, 64), torch.randn(4, 64), torch.randn(64)
    found, _ = run_eagerly(function, x, r, w)
    assert equal_bits(found, ops.fused_add_rms_norm(x, r, w, EPS))


# -- in-place implementations and their copies -------------------------------------------------------------


@pytest.fixture(params=["copies", "functional form"])
def inplace_provider(request):
    """An in-place implementation with portable's bits; alone, and with a functional form beside it."""
    op = ops.fused_add_rms_norm
    form = op.impls["portable"].impl_fn if request.param == "functional form" else None

    @op.register_impl("scribble", inplace=True, batch_invariant=True, functional=form)
    def scribble(
        x: torch.Tensor,
        x_residual: torch.Tensor,
        weight: torch.Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, total = op.impls["portable"].impl_fn(x, x_residual, weight, epsilon, variance_size)
        x.copy_(y)
        x_residual.copy_(total)
        return x, x_residual

    yield ir_core.Policy(
        batch_invariant=True, ops={"fused_add_rms_norm": ir_core.OpPolicy(prefer=("scribble",))}
    )
    op.unregister_impl("scribble")


def check_against_eager(function, *args, policy, removed):
    """Compiled results and the arguments afterwards equal the functional eager ones; ``removed`` copies are gone."""
    with torch.no_grad():
        with ir_core.scope(ir_core.Policy(batch_invariant=True)):
            expected = function(*[a.clone() for a in args])
        inputs = [a.clone() for a in args]
        found, passes = run_eagerly(function, *inputs, policy=policy)
    flat = torch.utils._pytree.tree_leaves(found)
    for one, other in zip(flat, torch.utils._pytree.tree_leaves(expected), strict=True):
        assert equal_bits(one, other)
    assert passes.reports[0].clones_removed == removed
    return inputs, flat


def fused(x, r, w):
    return ops.fused_add_rms_norm(x, r, w, EPS)


def donate(x, r, w):
    return ops.fused_add_rms_norm.maybe_inplace(x, r, w, EPS)


ARGS = (torch.randn(4, 64), torch.randn(4, 64), torch.randn(64))


def test_intermediate_values_are_overwritten(inplace_provider):
    def function(x, r, w):
        a, b = donate(x * 2, r + 1, w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=2)


def test_intermediate_values_are_overwritten_without_a_donation_when_nobody_sees_it(inplace_provider):
    def function(x, r, w):
        a, b = fused(x * 2, r + 1, w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=2)


def test_graph_inputs_keep_their_contents(inplace_provider):
    def function(x, r, w):
        a, b = fused(x, r, w)
        return a + b

    inputs, _ = check_against_eager(function, *ARGS, policy=inplace_provider, removed=0)
    assert all(torch.equal(i, a) for i, a in zip(inputs, ARGS, strict=True))


def test_where_nothing_can_be_overwritten_the_functional_form_is_called(inplace_provider):
    def function(x, r, w):
        a, b = fused(x, r, w)
        c, d = fused(a * 2, b, w)  # b is read later
        return c + d + b

    x, r, w = ARGS
    found, passes = run_eagerly(function, x, r, w, policy=inplace_provider)
    with ir_core.scope(ir_core.Policy(batch_invariant=True)):
        assert equal_bits(found, function(x, r, w))
    (report,), (graph,) = passes.reports, passes.graphs
    called = [str(n.target) for n in graph.nodes if n.op == "call_function" and "scribble" in str(n.target)]
    if ops.fused_add_rms_norm.impls["scribble"].functional_fn is None:
        assert called == ["ir_core.fused_add_rms_norm.scribble__inplace"] * 2
        assert (report.clones_removed, report.clones_kept) == (1, 3)
    else:
        assert called == [f"ir_core.fused_add_rms_norm.scribble{form}" for form in ("", "__inplace")]
        assert (report.clones_removed, report.clones_kept) == (1, 1)
        assert [node.form for node in report.nodes] == ["whole", "inplace"]


def test_donated_graph_inputs_are_reused(inplace_provider):
    def function(x, r, w):
        a, b = donate(x, r, w)
        return a + b

    inputs, _ = check_against_eager(function, *ARGS, policy=inplace_provider, removed=2)
    assert not torch.equal(inputs[0], ARGS[0])


def test_a_donated_input_that_would_be_returned_keeps_its_copy(inplace_provider):
    def function(x, r, w):
        a, b = donate(x, r, w)
        return a + 1, b

    inputs, flat = check_against_eager(function, *ARGS, policy=inplace_provider, removed=1)
    storages = {t.untyped_storage().data_ptr() for t in flat}
    assert inputs[1].untyped_storage().data_ptr() not in storages


def test_a_view_of_a_graph_input_keeps_its_contents(inplace_provider):
    def function(x, r, w):
        a, b = fused(x.view(2, 2, 64), r.view(2, 2, 64), w)
        return a + b

    inputs, _ = check_against_eager(function, *ARGS, policy=inplace_provider, removed=0)
    assert torch.equal(inputs[0], ARGS[0])


def test_a_value_read_later_keeps_its_contents(inplace_provider):
    def function(x, r, w):
        y, z = x * 2, r + 1
        a, b = fused(y, z, w)
        return a + b, y.sum(), z[0].sum()

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=0)


def test_a_view_read_later_keeps_the_contents(inplace_provider):
    def function(x, r, w):
        y, z = x * 2, r + 1
        view = y[1:3]
        a, b = fused(y, z, w)
        return a + b + view.sum()

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=1)


def test_one_value_in_both_places_keeps_one_copy(inplace_provider):
    def function(x, r, w):
        y = x * 2
        a, b = fused(y, y, w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=1)


def test_two_views_of_one_buffer_keep_one_copy(inplace_provider):
    def function(x, r, w):
        y = torch.cat([x, r]) * 2
        a, b = fused(y[:4], y[4:], w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=1)


def test_chains_reuse_the_same_memory(inplace_provider):
    def function(x, r, w):
        a, b = x * 2, r + 1
        for _ in range(4):
            a, b = donate(a, b, w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=8)


def test_an_expanded_input_keeps_its_copy(inplace_provider):
    def function(x, r, w):
        y = (x[:1] * 2).expand(4, 64)
        a, b = fused(y, r + 1, w)
        return a + b

    check_against_eager(function, *ARGS, policy=inplace_provider, removed=1)


def test_a_transposed_input_is_copied_into_the_layout_of_the_results(inplace_provider):
    def function(x, r, w):
        x, r = ops.fused_add_rms_norm.maybe_inplace((x + 1).transpose(0, 1), r.cos(), w, EPS)
        return x.reshape(-1, 64), r.reshape(-1, 64)

    args = (torch.randn(2, 3, 64), torch.randn(3, 2, 64), torch.randn(64))
    check_against_eager(function, *args, policy=inplace_provider, removed=1)


def test_both_outputs_returned_do_not_alias(inplace_provider):
    def function(x, r, w):
        return fused(x * 2, r + 1, w)

    _, flat = check_against_eager(function, *ARGS, policy=inplace_provider, removed=2)
    assert flat[0].untyped_storage().data_ptr() != flat[1].untyped_storage().data_ptr()


def test_copies_that_lowering_did_not_make_are_left_alone():
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 2)
    copy = graph.call_function(torch.ops.aten.clone.default, (x,))
    copy.meta["val"] = torch.empty(2, 2)
    graph.output(copy)
    assert eliminate_clones(graph) == (0, 0)
    assert operator.contains(list(graph.nodes), copy)


# -- cache key ---------------------------------------------------------------------------------------------


def key(requirement):
    from ir_core.lowering.cache_key import cache_key

    return cache_key(requirement)


def test_the_cache_key_covers_requirement_priority_target_and_sources(monkeypatch):
    plain = ir_core.Policy()
    keys = {
        key(plain),
        key(ir_core.Policy(batch_invariant=True)),
        key(ir_core.Policy(strict=True)),
        key(ir_core.Policy(prefer=("portable",))),
        key(ir_core.Policy(ops={"rms_norm": ir_core.OpPolicy(prefer=("portable",))})),
    }
    assert len(keys) == 5
    assert key(plain) in keys
    with monkeypatch.context() as patch:
        patch.setattr(ops.rms_norm.impls["native"], "uuid", lambda: "another source")
        assert key(plain) not in keys
    with monkeypatch.context() as patch:
        patch.setenv("IR_TARGET", "sm90")
        ir_core.refresh()
        assert key(plain) not in keys
    ir_core.refresh()
    assert key(plain) in keys


def test_equal_nodes_are_selected_and_traced_once(monkeypatch):
    from ir_core.lowering import lowering_pass

    calls = []
    inner = lowering_pass.trace
    monkeypatch.setattr(lowering_pass, "trace", lambda *a: calls.append(1) or inner(*a))

    def function(x, w):
        for _ in range(20):
            x = ops.rms_norm(x, w, EPS)
        return x

    _, passes = run_eagerly(function, torch.randn(4, 64), torch.randn(64))
    assert len(passes.reports[0].nodes) == 20
    assert len(calls) == 1


def test_lowering_without_dynamo_context_uses_the_policy_in_force():
    assert lowering.Passes().policy() == policy.current()
    with ir_core.scope(batch_invariant=True):
        assert lowering.Passes().policy().batch_invariant
    assert Lowering(ir_core.Policy()).run(fx.Graph()).nodes == []


@pytest.mark.parametrize(
    ("written", "removed"),
    [("before the copy", 1), ("after the copy", 0), ("after the copy, through a view", 0), ("never", 1)],
)
def test_an_original_that_is_written_after_the_copy_keeps_the_copy(written: str, removed: int):
    """The copy holds the old value: gone, the call that works in it would see the new one."""
    aten = torch.ops.aten
    graph = fx.Graph()

    def node(target, *args, shares=None):
        made = graph.call_function(target, args)
        made.meta["val"] = torch.empty(4, 8, device="meta") if shares is None else shares.meta["val"]
        return made

    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, 8, device="meta")
    original = node(aten.mul.Tensor, x, 2)
    view = node(aten.alias.default, original, shares=original)
    if written == "before the copy":
        node(aten.add_.Tensor, original, 5, shares=original)
    copy = node(aten.clone.default, original)
    copy.meta[DONATION] = True
    if written == "after the copy":
        node(aten.add_.Tensor, original, 5, shares=original)
    elif written == "after the copy, through a view":
        node(aten.add_.Tensor, view, 5, shares=original)
    node(aten.neg_.default, copy, shares=copy)  # what works in place
    graph.output(node(aten.add.Tensor, copy, 1))
    module = fx.GraphModule(torch.nn.Module(), graph)
    given = torch.arange(32.0).reshape(4, 8)
    expected = module(given.clone())
    assert eliminate_clones(graph) == (removed, 1 - removed)
    module.recompile()
    assert torch.equal(module(given.clone()), expected)
