# SPDX-License-Identifier: Apache-2.0
"""Discover: lazy, cached, isolated; whatever a pack does wrong is its own failure and takes nothing down."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

import ir_core
from ir_core import catalog, discovery, ops, platforms, resolve
from ir_core.errors import DuplicateError, PackError, UnknownOpError, UnknownProviderError
from ir_core.pack import ImplSpec, KernelPack

X = torch.zeros(2, 8)

KERNELS = """
import torch
from torch import Tensor

def norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    return torch.full_like(x, {value})

def predicate(x, weight, epsilon, variance_size=None):
    return x.shape[-1] == 8 or "wants 8 columns"

def crashing(x, weight, epsilon, variance_size=None):
    return 1 / 0

def other(x: Tensor) -> Tensor:
    return x
"""


def good(site, name: str, provider: str, value: int = 7, op: str = "rms_norm", **more) -> None:
    """A distribution with a pack that implements one op."""
    code = site.module(f"kernels_{name.replace('-', '_')}_{site.folder.name}", KERNELS.format(value=value))
    more = {key: text.format(code=code) if isinstance(text, str) else text for key, text in more.items()}
    spec = {"op": op, "provider": provider, "impl": f"{code}:norm", **more}
    site.pack(name, f"PACK = {{'api': 1, 'name': {name!r}, 'implementations': [{spec!r}]}}\n")


def mine() -> list[str]:
    return [pack.distribution for pack in ir_core.packs() if pack.distribution.startswith("t-")]


def failures() -> dict[str, discovery.Failure]:
    return {f.distribution: f for f in ir_core.failures() if f.distribution.startswith("t-")}


def test_a_pack_is_found_and_runs(site):
    good(site, "t-good", "t_good")
    assert mine() == ["t-good"]
    impl = ops.rms_norm.impls["t_good"]
    assert (impl.distribution, impl.version) == ("t-good", "1.0")
    assert impl.label == "rms_norm/t_good (t-good 1.0)"
    with ops.rms_norm.set_priority(["t_good"]):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 7
        assert torch.ops.ir_core.rms_norm.t_good(X, None, 1e-6)[0, 0] == 7
    assert failures() == {}


def test_each_step_happens_when_it_is_needed(site):
    good(site, "t-lazy", "t_lazy", supports_args="{code}:predicate")
    data, code = f"t_lazy_{site.folder.name}".replace("-", "_"), f"kernels_t_lazy_{site.folder.name}"
    assert data not in sys.modules  # installed is not imported
    outcome = ir_core.select(
        ops.rms_norm, ir_core.Policy(), ir_core.Target("cpu", "cpu"), (X, None, 1e-6, None)
    )
    assert data in sys.modules  # an account of everything reads what is offered ...
    assert code not in sys.modules  # ... and imports no code of it
    assert {c.provider: c.reason for c in outcome.candidates}[
        "t_lazy"
    ] == "not in the priority list (none is set)"
    ops.rms_norm(X, None, 1e-6)
    assert code not in sys.modules
    with ops.rms_norm.set_priority(["t_lazy"]):
        ops.rms_norm(X, None, 1e-6)
    assert code in sys.modules


def test_what_is_found_is_kept_until_a_refresh(site):
    good(site, "t-first", "t_first")
    before = ir_core.packs()
    good(site, "t-second", "t_second")
    assert ir_core.packs() is before
    assert mine() == ["t-first"]
    ir_core.refresh()
    assert mine() == ["t-first", "t-second"]
    assert {"t_first", "t_second"} <= set(ops.rms_norm.impls)
    for file in site.folder.glob("t_first*.dist-info/*"):
        file.unlink()
    ir_core.refresh()
    assert mine() == ["t-second"]
    assert "t_first" not in ops.rms_norm.impls


def test_what_code_registered_survives_a_refresh(site):
    good(site, "t-pack", "t_pack")
    ops.rms_norm.register_impl("t_code")(ops.rms_norm.impls["native"].impl_fn)
    ops.rms_norm.set_default(["t_pack"])
    ir_core.refresh()
    assert "t_code" in ops.rms_norm.impls
    assert ops.rms_norm(X, None, 1e-6)[0, 0] == 7


def test_the_order_is_that_of_the_names(site):
    for name in ("t-b", "t-a", "t-c"):
        good(site, name, name.replace("-", "_"), batch_invariant=True)
    assert mine() == ["t-a", "t-b", "t-c"]
    with ir_core.scope(batch_invariant=True):
        names = [impl.provider for impl, _ in resolve.ladder(ops.rms_norm, ir_core.current())]
    assert [name for name in names if name.startswith("t_")] == ["t_a", "t_b", "t_c"]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [("", []), ("t-a", ["t-a"]), ("T_A, t.b", ["t-a", "t-b"]), ("nobody", []), (" t-b ,,", ["t-b"])],
)
@pytest.mark.filterwarnings("ignore:IR_PACKS names nobody")
def test_the_allow_list(site, monkeypatch: pytest.MonkeyPatch, allowed: str, expected: list[str]):
    good(site, "t-a", "t_a")
    good(site, "t-b", "t_b")
    monkeypatch.setenv("IR_PACKS", allowed)
    ir_core.refresh()
    assert mine() == expected
    assert {name for name in catalog.skipped() if name.startswith("t-")} == {"t-a", "t-b"} - set(expected)
    modules = {f"t_{x}_{site.folder.name}" for x in "ab"} & set(sys.modules)
    assert len(modules) == len(expected)  # what is not allowed is not imported


def test_a_pack_may_be_an_object(site):
    site.pack(
        "t-object",
        "from ir_core.pack import ImplSpec, KernelPack\n"
        "PACK = KernelPack(1, 'object', (ImplSpec('rms_norm', 't_object', 'x:y', batch_invariant=True),))\n",
    )
    assert ops.rms_norm.impls["t_object"].batch_invariant


BROKEN = {
    "import error": ("import nothing_of_that_name", "ModuleNotFoundError"),
    "syntax error": ("PACK = (", "SyntaxError"),
    "exit": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "exit without reason": ("raise SystemExit", "SystemExit"),
    "raises": ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
    "endless": ("def f(): f()\nf()", "RecursionError"),
    "no PACK": ("", "AttributeError"),
    "a number": ("PACK = 3", "names int 3, which is no pack"),
    "a list": ("PACK = []", "which is no pack"),
    "no api": ("PACK = {'name': 'x'}", "PACK_API None"),
    "another api": ("PACK = {'api': 99, 'name': 'x'}", "PACK_API 99"),
    "no name": ("PACK = {'api': 1}", "has no name"),
    "unknown key": ("PACK = {'api': 1, 'name': 'x', 'kernels': []}", "unknown key kernels"),
    "ops is a list": ("PACK = {'api': 1, 'name': 'x', 'ops': ['y']}", "'ops' is"),
    "op without path": ("PACK = {'api': 1, 'name': 'x', 'ops': {'y': 'z'}}", "is at 'z'"),
    "implementations is None": ("PACK = {'api': 1, 'name': 'x', 'implementations': None}", "TypeError"),
    "implementation is text": ("PACK = {'api': 1, 'name': 'x', 'implementations': ['y']}", "Describe it"),
    "no impl": (
        "PACK = {'api': 1, 'name': 'x', 'implementations': [{'op': 'rms_norm', 'provider': 'y'}]}",
        "'rms_norm/y' has no impl",
    ),
    "bad requirement": (
        (
            "PACK = {'api': 1, 'name': 'x', 'implementations': "
            "[{'op': 'rms_norm', 'provider': 'y', 'impl': 'a:b', 'requires': 'sm>>9'}]}"
        ),
        "malformed requirement",
    ),
    "bad flag": (
        (
            "PACK = {'api': 1, 'name': 'x', 'implementations': "
            "[{'op': 'rms_norm', 'provider': 'y', 'impl': 'a:b', 'inplace': 'no'}]}"
        ),
        "inplace='no'",
    ),
    "calls an op": (
        "import ir_core, torch\nir_core.ops.rms_norm.impls\nPACK = {}",
        "The packs are being read",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_pack_is_a_failure_and_the_rest_goes_on(site, how: str, caplog: pytest.LogCaptureFixture):
    text, expected = BROKEN[how]
    site.pack("t-broken", text, version="2.5")
    good(site, "t-fine", "t_fine")
    with caplog.at_level(logging.WARNING, "ir_core"):
        assert mine() == ["t-fine"]
        for _ in range(2):
            ir_core.packs()
            ops.rms_norm(X, None, 1e-6)
        ir_core.refresh()
        assert mine() == ["t-fine"]
    failure = failures()["t-broken"]
    assert expected in failure.error
    assert (failure.distribution, failure.version, failure.doing) == ("t-broken", "2.5", "load the pack")
    assert failure.entry_point.startswith("t-broken = t_broken_")
    assert "Traceback (most recent call last)" in failure.traceback
    assert failure.to_dict()["error"] == failure.error
    warnings = [r for r in caplog.records if "t-broken 2.5" in r.getMessage()]
    assert len(warnings) == 1  # once, also after the refresh
    assert "doctor" in warnings[0].getMessage()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("no_such_module_at_all:PACK", "ModuleNotFoundError"),
        ("json:PACK", "AttributeError"),
        ("json", "no pack"),
    ],
)
def test_broken_entry_points(site, entry: str, expected: str):
    site.distribution("t-entry", f"[ir_core.kernels]\nmain = {entry}\n")
    good(site, "t-fine", "t_fine")
    assert mine() == ["t-fine"]
    assert expected in failures()["t-entry"].error
    assert failures()["t-entry"].entry_point == f"main = {entry}"


@pytest.mark.parametrize("metadata", [None, "", "Metadata-Version: 2.1\n", "Name: t-meta\n", "\x00\x01"])
def test_a_distribution_with_broken_metadata(site, metadata: str | None):
    good(site, "t-fine", "t_fine")
    site.pack("t-meta", "PACK = 3", version=None)
    if metadata is not None:
        (next(site.folder.glob("t_meta*.dist-info")) / "METADATA").write_text(metadata)
    assert "t-fine" in mine()
    assert any("which is no pack" in failure.error for failure in ir_core.failures())
    ops.rms_norm(X, None, 1e-6)


BROKEN_OFFERS = {
    "reserved": ({"provider": "portable"}, "reserved"),
    "bad name": ({"provider": "Bad-Name"}, "is invalid"),
    "torch's own": ({"provider": "overloads"}, "cannot be an overload"),
    "in place where not allowed": ({"provider": "t_x", "inplace": True}, "does not allow that"),
}


def test_a_functional_form_belongs_to_an_inplace_one() -> None:
    offer = {"op": "fused_add_rms_norm", "provider": "t_x", "impl": "a:b", "functional": "a:c"}
    pack = {"api": 1, "name": "t", "implementations": [offer]}
    with pytest.raises(PackError, match="functional form beside it"):
        KernelPack.parse(pack)
    (spec,) = KernelPack.parse({**pack, "implementations": [{**offer, "inplace": True}]}).implementations
    assert spec.functional == "a:c"
    with pytest.raises(PackError, match="functional of Implementation"):
        KernelPack.parse({**pack, "implementations": [{**offer, "inplace": True, "functional": "a"}]})


@pytest.mark.parametrize("how", BROKEN_OFFERS)
def test_an_offer_that_cannot_be_taken(site, how: str):
    fields, expected = BROKEN_OFFERS[how]
    good(site, "t-offer", **fields)
    good(site, "t-fine", "t_fine")
    assert "t_fine" in ops.rms_norm.impls
    failure = failures()["t-offer"]
    assert expected in failure.error
    assert failure.doing == f"offer rms_norm/{fields['provider']}"


BROKEN_CODE = {
    "no module": ({"impl": "nothing_of_that_name:norm"}, "No module named"),
    "no function": ({"impl": "{code}:nope"}, "has no attribute"),
    "another schema": ({"impl": "{code}:other"}, "another schema"),
    "no such predicate": ({"supports_args": "{code}:nope"}, "has no attribute"),
    "a predicate with other parameters": ({"supports_args": "{code}:other"}, "other parameters"),
}


@pytest.mark.parametrize("how", BROKEN_CODE)
def test_code_that_cannot_be_loaded(site, how: str, caplog: pytest.LogCaptureFixture):
    fields, expected = BROKEN_CODE[how]
    good(site, "t-code", "t_code", **fields)
    with caplog.at_level(logging.WARNING, "ir_core"), ops.rms_norm.set_priority(["t_code"]):
        for _ in range(3):
            assert ops.rms_norm(X, None, 1e-6)[0, 0] == 0
        outcome = ir_core.select(
            ops.rms_norm, ir_core.current(), ir_core.Target("cpu", "cpu"), (X, None, 1e-6, None)
        )
    assert outcome.provider == "native"
    assert "cannot be loaded" in outcome.candidates[0].reason
    assert expected in outcome.candidates[0].reason
    failure = failures()["t-code"]
    assert failure.doing == "load rms_norm/t_code"
    assert expected in failure.error
    assert len([r for r in caplog.records if r.getMessage().startswith("t-code 1.0")]) == 1
    with pytest.raises(PackError, match=r"rms_norm/t_code \(t-code 1.0\)"):
        ops.rms_norm.impls["t_code"].load()


def test_code_that_leaves_the_process(site):
    site.module("leaving_kernels", "raise SystemExit(3)")
    good(site, "t-exit", "t_exit", impl="leaving_kernels:norm")
    with ops.rms_norm.set_priority(["t_exit"]):
        ops.rms_norm(X, None, 1e-6)
    assert "SystemExit" in failures()["t-exit"].error


def test_a_predicate_that_raises(site):
    good(site, "t-crash", "t_crash", supports_args="{code}:crashing")
    with ops.rms_norm.set_priority(["t_crash"]):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 0


def test_a_predicate_is_asked(site):
    good(site, "t-picky", "t_picky", supports_args="{code}:predicate")
    assert not ops.rms_norm.impls["t_picky"].supports_all_args
    with ops.rms_norm.set_priority(["t_picky"]):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 7
        assert ops.rms_norm(torch.zeros(2, 9), None, 1e-6)[0, 0] == 0
        assert ops.rms_norm.dispatch(torch.zeros(2, 9), None, 1e-6).provider == "native"


def test_a_requirement_is_data(site):
    good(site, "t-new", "t_new", requires="sm>=9.0")
    assert not ops.rms_norm.impls["t_new"].supported
    with ops.rms_norm.set_priority(["t_new"]):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 0
    assert f"kernels_t_new_{site.folder.name}" not in sys.modules  # unsupported code is never imported


# -- the same thing from two sides


def test_two_distributions_with_one_provider_are_both_left_out(site):
    good(site, "t-one", "t_same", 1)
    good(site, "t-two", "t_same", 2)
    good(site, "t-fine", "t_fine")
    assert "t_same" not in ops.rms_norm.impls
    assert "t_fine" in ops.rms_norm.impls
    for name in ("t-one", "t-two"):
        assert "t-one and t-two both offer 'rms_norm/t_same'; neither is used" in failures()[name].error
    with pytest.raises(UnknownProviderError, match="offered but broken"):
        ops.rms_norm.set_default(["t_same"])


def test_the_allow_list_resolves_it(site, monkeypatch: pytest.MonkeyPatch):
    good(site, "t-one", "t_same", 1)
    good(site, "t-two", "t_same", 2)
    monkeypatch.setenv("IR_PACKS", "t-two")
    ir_core.refresh()
    with ops.rms_norm.set_priority(["t_same"]):
        assert ops.rms_norm(X, None, 1e-6)[0, 0] == 2


def test_one_pack_that_offers_a_provider_twice(site):
    spec = {"op": "rms_norm", "provider": "t_twice", "impl": "a:b"}
    site.pack("t-twice", f"PACK = {{'api': 1, 'name': 'x', 'implementations': [{spec!r}, {spec!r}]}}")
    assert "t_twice" in ops.rms_norm.impls
    assert "already registered" in failures()["t-twice"].error


def test_a_pack_and_code_with_one_provider(site):
    good(site, "t-pack", "t_pack")
    assert "t_pack" in ops.rms_norm.impls
    with pytest.raises(DuplicateError, match=r"t-pack 1\.0"):
        ops.rms_norm.register_impl("t_pack")(ops.rms_norm.impls["native"].impl_fn)


# -- ops of packs

OPS = """
import ir_core
from torch import Tensor

@ir_core.register_op
def {op}(x: Tensor) -> Tensor:
    return x + 41
"""


def op_pack(site, name: str, op: str, path: str = "", text: str = OPS) -> str:
    code = site.module(f"ops_{name.replace('-', '_')}_{site.folder.name}", text.format(op=op))
    site.pack(name, f"PACK = {{'api': 1, 'name': 'x', 'ops': {{{op!r}: {path or f'{code}:{op}'!r}}}}}")
    return code


def test_an_op_of_a_pack(site):
    code = op_pack(site, "t-ops", "t_new_op")
    assert "t_new_op" in catalog.op_names()
    assert code not in sys.modules
    assert ops.t_new_op(torch.zeros(1)) == 41
    assert ir_core.get_op("t_new_op") is ops.t_new_op
    with pytest.raises(UnknownOpError, match="t_new_op"):  # the message lists it
        ir_core.get_op("t_other_op")


def test_an_op_of_a_pack_gets_the_implementations_of_another(site):
    op_pack(site, "t-ops", "t_shared_op")
    good(site, "t-impl", "t_impl", op="t_shared_op", impl="{code}:other")
    op = ir_core.get_op("t_shared_op")
    with op.set_priority(["t_impl"]):
        assert op(torch.ones(1)) == 1


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("nothing_of_that_name:t_bad_op", OPS, "No module named"),
        ("json:loads", OPS, "not the op 't_bad_op'"),
        ("ir_core.ops.layernorm:rms_norm", OPS, "not the op 't_bad_op'"),
        ("", "raise SystemExit(1)", "SystemExit"),
    ],
)
def test_a_broken_op_of_a_pack(site, path: str, text: str, expected: str):
    op_pack(site, "t-ops", "t_bad_op", path, text)
    with pytest.raises(PackError, match=r"t-ops 1\.0") as caught:
        ir_core.get_op("t_bad_op")
    assert expected in str(caught.value)
    assert expected in failures()["t-ops"].error
    with pytest.raises(PackError):
        _ = ops.t_bad_op


OWN_PORTABLE = """
import ir_core
from torch import Tensor

@ir_core.register_op(has_reduction=True)
def {op}(x: Tensor) -> Tensor:
    return x + 41

def portable(x: Tensor) -> Tensor:
    return x + 42
"""


def portable_pack(site, op: str, brings: bool = True, provider: str = "portable", **more) -> None:
    """A pack that offers a reserved name, to an op that it brings or to another's."""
    code = site.module(f"ops_portable_{site.folder.name}", OWN_PORTABLE.format(op=op))
    spec = {"op": op, "provider": provider, "impl": f"{code}:portable", "batch_invariant": True, **more}
    own = {op: f"{code}:{op}"} if brings else {}
    site.pack("t-own", f"PACK = {{'api': 1, 'name': 'x', 'ops': {own!r}, 'implementations': [{spec!r}]}}\n")


def test_a_pack_brings_portable_for_its_own_op(site):
    portable_pack(site, "t_own_op")
    op = ir_core.get_op("t_own_op")
    assert list(op.impls) == ["native", "portable"]
    assert failures() == {}
    with ir_core.scope(batch_invariant=True):
        assert op.dispatch(X).provider == "portable"
        assert op(X)[0, 0] == 42
    bound = ir_core.Target("cuda:0", "cuda", batch_invariant=False)
    policy = ir_core.Policy(batch_invariant=True)
    assert ir_core.select(op, policy, bound, (X,)).provider == "portable"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"provider": "native"}, "reserved"),
        ({"provider": "unfused"}, "reserved"),
        ({"requires": "cpu"}, "requires cpu"),
    ],
)
def test_what_a_pack_may_not_bring_for_its_own_op(site, fields: dict[str, str], expected: str):
    portable_pack(site, "t_own_op", **fields)
    assert list(ir_core.get_op("t_own_op").impls) == ["native"]
    assert expected in failures()["t-own"].error


def test_portable_of_the_op_of_another_pack_is_refused(site):
    op_pack(site, "t-ops", "t_foreign_op")
    portable_pack(site, "t_foreign_op", brings=False)
    assert list(ir_core.get_op("t_foreign_op").impls) == ["native"]
    assert "only to an op that it brings" in failures()["t-own"].error


def test_a_pack_that_claims_to_bring_an_op_of_the_core_gets_no_portable_there(site):
    portable_pack(site, "rms_norm")
    assert ops.rms_norm.impls["portable"].distribution == "ir-core"
    assert "reserved" in failures()["t-own"].error


def test_two_packs_with_one_op_are_an_error(site):
    op_pack(site, "t-one", "t_twin_op")
    op_pack(site, "t-two", "t_twin_op")
    with pytest.raises(PackError, match=r"t-one 1\.0 and t-two 1\.0 both bring the op 't_twin_op'"):
        ir_core.get_op("t_twin_op")


def test_an_op_that_comes_back_gets_what_packs_offer_again(site):
    good(site, "t-pack", "t_pack", op="t_returning", impl="{code}:other")
    for _ in range(2):

        def t_returning(x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        op = ir_core.register_op(t_returning)
        assert list(op.impls) == ["native", "t_pack"]
        op.unregister()


def test_a_name_in_a_policy_may_be_that_of_a_packs_op(site):
    op_pack(site, "t-ops", "t_policy_op")
    with ir_core.scope(ir_core.Policy(ops={"t_policy_op": ir_core.OpPolicy(prefer=("native",))})):
        ops.rms_norm(X, None, 1e-6)


# -- many, and their order


def test_a_hundred_packs(site):
    for n in range(100):
        module = f"many_{site.folder.name}"
        site.distribution(f"t-many-{n:03}", f"[ir_core.kernels]\nmain = {module}:PACK_{n}\n")
    site.module(
        f"many_{site.folder.name}",
        "".join(
            f"PACK_{n} = {{'api': 1, 'name': 'x', 'implementations': "
            f"[{{'op': 'rms_norm', 'provider': 't_many_{n}', 'impl': 'nothing:f', 'batch_invariant': True}}]}}\n"
            for n in range(100)
        ),
    )
    assert len(mine()) == 100
    offered = [name for name in ops.rms_norm.impls if name.startswith("t_many")]
    assert offered == [f"t_many_{n}" for n in range(100)]
    assert "nothing" not in sys.modules
    assert ops.rms_norm(X, None, 1e-6).shape == X.shape
    with ir_core.scope(batch_invariant=True):
        assert ops.rms_norm.dispatch(X, None, 1e-6).provider in ("portable", "triton_batch_invariant")
    assert len(failures()) == 100  # each was tried once in that mode, and named


# -- the parse is the contract


def test_a_pack_is_data():
    pack = KernelPack.parse(
        {
            "api": 1,
            "name": "mine",
            "ops": {"new": "a.b:c"},
            "implementations": [
                {"op": "new", "provider": "p", "impl": "a:b", "requires": "sm>=9.0", "sources": ["a.c"]}
            ],
        }
    )
    assert pack.implementations == (
        ImplSpec("new", "p", "a:b", requires=ir_core.SM(min="9.0"), sources=("a.c",)),
    )
    assert KernelPack.parse(pack) == pack


def test_who_to_ask_for_a_provider(site, monkeypatch: pytest.MonkeyPatch):
    good(site, "t-pack", "t_pack")
    ir_core.packs()
    assert "'t_pack' implements rms_norm" in catalog.who_offers("t_pack", "other")
    monkeypatch.setenv("IR_PACKS", "")
    ir_core.refresh()
    ir_core.packs()
    assert "ir-kernels-triton" in catalog.who_offers("triton", "rms_norm")
    assert "Check the spelling" in catalog.who_offers("nope", "rms_norm")


# -- platforms

DEVICES = (
    "class PACK:\n    PLATFORM_API = {api}\n    @staticmethod\n    def describe_devices():\n        {body}\n"
)


@pytest.mark.parametrize(
    ("api", "body", "expected"),
    [
        (1, "raise RuntimeError('no driver')", "no driver"),
        (2, "return []", "PLATFORM_API = 2"),
        (1, "return [{'kind': 'cuda'}]", "device"),
        (1, "raise SystemExit(1)", "SystemExit"),
        (1, "return 3", "TypeError"),
    ],
)
def test_a_broken_platform_provider_leaves_the_cpu(site, api: int, body: str, expected: str):
    site.pack("t-platform", DEVICES.format(api=api, body=body), group=platforms.GROUP)
    assert any(target.device == "cpu" for target in platforms.targets())
    failure = next(f for f in platforms.failures() if f.distribution == "t-platform")
    assert expected in failure.error
    assert failure.doing == "describe the devices"
    ops.rms_norm(X, None, 1e-6)


def test_a_platform_provider_describes_devices(site):
    body = "return [{'device': 'cuda:7', 'kind': 'cuda', 'name': 'Test', 'capability': '9.0', 'source': 't'}]"
    site.pack("t-platform", DEVICES.format(api=1, body=body), group=platforms.GROUP)
    target = platforms.target_of(torch.device("cuda:7"))
    assert target.capability == ir_core.Capability(9, 0)
    unknown = platforms.target_of(torch.device("cuda:6"))
    assert unknown.capability is None
    assert "is not among the devices of this machine" in unknown.batch_invariant_reason
    assert platforms.target_of(torch.device("cuda:6")) is unknown
