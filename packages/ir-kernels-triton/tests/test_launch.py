# SPDX-License-Identifier: Apache-2.0
"""From a call to a launch: what is chosen by, what is promised to the compiler, and what happens when Triton moves."""

import contextlib
import inspect
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ir_kernels_triton import (
    compat,
    gelu_and_mul_sparse,
    gelu_config,
    kernel_spec,
    launch_config,
    launcher,
    prepared_norm,
    rms_norm,
    rows,
)
from ir_kernels_triton.arguments import Arrangement, Launch
from ir_kernels_triton.kernel_spec import KernelSpec


class Recorded:
    """Takes the place of a launch and keeps what it was given."""

    takes_pointers = True
    specs: list[KernelSpec]
    calls: list[tuple[KernelSpec, int, tuple[Any, ...]]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorded]]:
    Recorded.specs, Recorded.calls = [], []

    def launch(spec: KernelSpec) -> Any:
        Recorded.specs.append(spec)

        class Compiled(Recorded):
            def prepare(self, arrange: Arrangement, device: int) -> Launch:
                return arrange.function(
                    ["$calls.append(($spec, programs, ({arguments},)))"],
                    {"calls": Recorded.calls, "spec": spec},
                )

        return Compiled()

    monkeypatch.setattr(compat, "launch", launch)
    before = dict(prepared_norm.PREPARED)
    prepared_norm.PREPARED.clear()
    gelu_and_mul_sparse._prepared.cache_clear()
    yield Recorded
    prepared_norm.PREPARED.clear()
    prepared_norm.PREPARED.update(before)
    gelu_and_mul_sparse._prepared.cache_clear()


def test_choice_reads_row_length_dtypes_and_flags_alone() -> None:
    scalars = {"int", "str", "str | None", "bool"}
    for function in (launch_config.rms_spec, launch_config.pair_spec, gelu_config.gelu_spec):
        parameters = inspect.signature(function).parameters
        assert set(parameters) <= {
            "d", "n", "x", "w", "aligned", "inner", "residual", "canonical", "tanh", "pdl"
        }  # fmt: skip
        assert {parameter.annotation for parameter in parameters.values()} <= scalars


def test_rows_never_change_or_recompile_a_kernel(recorded: type[Recorded]) -> None:
    for m in (1, 2, 3, 64, 300, 5000):
        x, w = torch.zeros(m, 128, dtype=torch.bfloat16), torch.zeros(128, dtype=torch.bfloat16)
        rms_norm.rms_norm_batch_invariant(x, w, 1e-6)
        rms_norm.fused_add_rms_norm_batch_invariant(x, x.clone(), w, 1e-6)
        gelu_and_mul_sparse.gelu_and_mul_sparse_batch_invariant(x, 1.0)
        qkv = torch.zeros(m, 4 * 128, dtype=torch.bfloat16)
        rms_norm.rms_norm_batch_invariant(qkv[:, 128:384].unflatten(-1, (2, 128)), w, 1e-6)
        rms_norm.rms_norm_batch_invariant(torch.zeros(m, 520, dtype=torch.bfloat16)[:, :128], w, 1e-6)
    assert [(spec.kernel, dict(spec.constants)["INNER"]) for spec in recorded.specs] == [
        ("rms_tile", False), ("rms_tile", False), ("gelu_tile", False), ("rms_tile", True)
    ]  # fmt: skip
    rows_of_tile = recorded.specs[0].rows_per_program
    programs = [p for spec, p, args in recorded.calls if spec is recorded.specs[0] and args[7] == 128]
    assert programs == [-(-m // rows_of_tile) for m in (1, 2, 3, 64, 300, 5000)]


def test_promise_of_alignment_is_kept(recorded: type[Recorded]) -> None:
    """Over all combinations of misaligned tensors and strides: an aligned kernel gets aligned rows, and only those."""

    def rows_at(offset: int, stride: int) -> torch.Tensor:
        return torch.zeros(4096, dtype=torch.bfloat16)[offset:].as_strided((3, 128), (stride, 1))

    places = list(itertools.product((0, 1, 4), (128, 129, 132, 136)))
    for (xo, xs), (ro, rs), wo in itertools.product(places, places, (0, 1)):
        x, r, w = rows_at(xo, xs), rows_at(ro, rs), torch.zeros(136, dtype=torch.bfloat16)[wo : wo + 128]
        for inplace in (True, False):
            recorded.calls.clear()
            function = rms_norm.fused_add_rms_norm_batch_invariant
            if not inplace:
                function = rms_norm.fused_add_rms_norm_batch_invariant_functional
            function(x, r, w, 1e-6)
            ((spec, _, args),) = recorded.calls
            reads, weight, writes = args[:2], args[2], args[3:5]
            strides = args[7:15]
            fits = all(p % 16 == 0 for p in (*reads, weight)) and all(s * 2 % 16 == 0 for s in strides)
            assert dict(spec.constants)["ALIGNED"] == fits
            assert all(p % 16 == 0 for p in writes) and all(s * 2 % 16 == 0 for s in strides[4:])
            touched = inplace and all(
                offset == 0 and stride % 8 == 0 for offset, stride in ((xo, xs), (ro, rs))
            )
            assert (writes == reads) == touched


def test_long_misaligned_rows_are_copied(recorded: type[Recorded]) -> None:
    x = torch.zeros(2, 20008)[:, 1:20001]
    rms_norm.rms_norm_batch_invariant(x, None, 1e-6)
    rms_norm.fused_add_rms_norm_batch_invariant(x, x.clone(), None, 1e-6)
    assert all(dict(spec.constants)["ALIGNED"] for spec in recorded.specs)


def test_vectors_divide_rows_and_fit_an_access() -> None:
    for n, x in itertools.product((*range(1, 70), 1000, 4096, 7168, 65537), kernel_spec.ITEMSIZE):
        vector = kernel_spec.vector(n, x)
        assert n % vector == 0 and kernel_spec.alignment(n, x) <= 16
        for w in kernel_spec.ITEMSIZE:
            assert kernel_spec.weight_alignment(n, x, w) in (vector * kernel_spec.ITEMSIZE[w], 16)


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (2, 1, 3, 8), (1, 1, 8), (8,), (2, 3, 4, 8)])
def test_collapse_addresses_every_row(shape: tuple[int, ...]) -> None:
    whole = torch.arange(2 * 3 * 4 * 6 * 16).reshape(2, 3, 4, 6, 16)
    for view in (
        torch.arange(torch.Size(shape).numel()).reshape(shape),
        whole[..., 1, :8][tuple(slice(0, n) for n in shape[:-1])]
        if len(shape) == 4
        else whole[0, :, 1, :, 4:12],
        whole[:, 1, 2, 3, :8],
        whole[1:2, :, 1:2, ::2, :8],
    ):
        found = rows.collapse(view, view)
        if found is None:
            continue
        flat = view.reshape(-1, view.shape[-1])
        assert found.number == len(flat)
        for row in range(found.number):
            outer, step = (row // found.inner, row % found.inner) if found.inner else (row, 0)
            start = view.storage_offset() + outer * found.outer[0] + step * found.step[0]
            assert int(flat[row, 0]) == int(torch.as_strided(view, (1,), (1,), start))


def test_three_strides_do_not_collapse() -> None:
    assert rows.collapse(torch.zeros(4, 6, 8, 16)[::2, ::2, ::2]) is None
    assert rows.collapse(torch.zeros(4, 6, 8, 16)[:, ::2, ::2]) is not None


@pytest.mark.parametrize("limit", [1, 4, 7, 100])
def test_parts_cover_all_rows_once(limit: int) -> None:
    base = torch.arange(5 * 40)
    for inner, outer, step in ((0, 8, 0), (3, 30, 8)):
        given = rows.Rows(6 if not inner else 15, inner, (outer,), (step,))
        seen = []
        for part, (tensor,) in rows.parts(given, (base,), limit):
            assert part.number <= max(limit, inner or 1)
            seen += [
                int(tensor) + (r // inner * outer + r % inner * step if inner else r * outer)
                for r in range(part.number)
            ]
        want = [r // inner * outer + r % inner * step if inner else r * outer for r in range(given.number)]
        assert seen == want


def test_more_rows_than_a_launch_takes(recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "MAX_ROWS", 4)
    monkeypatch.setattr(launcher, "MAX_ROWS", 4)
    monkeypatch.setattr(rows.parts, "__defaults__", (4,))
    x = torch.zeros(10, 128)
    y = rms_norm.rms_norm_batch_invariant(x, None, 1e-6)
    assert [args[5] for _, _, args in recorded.calls] == [4, 4, 2]
    assert [args[0] for _, _, args in recorded.calls] == [x[i].data_ptr() for i in (0, 4, 8)]
    assert [args[3] for _, _, args in recorded.calls] == [y[i].data_ptr() for i in (0, 4, 8)]


@pytest.mark.parametrize("calls", [0, 2])
def test_other_shapes_are_a_value_error(recorded: type[Recorded], calls: int) -> None:
    """Before a kernel is there, and on the short way that later calls take."""
    x, w = torch.zeros(4, 128), torch.zeros(128)
    for _ in range(calls):
        rms_norm.rms_norm_batch_invariant(x, w, 1e-6)
        rms_norm.fused_add_rms_norm_batch_invariant(x, x.clone(), w, 1e-6)
    for weight in (w[:64], w[None], w[:1]):
        with pytest.raises(ValueError, match="weight must be one row of 128 elements"):
            rms_norm.rms_norm_batch_invariant(x, weight, 1e-6)
    if not calls:  # the short way asks for the index of the device; on a CPU and on meta there is none
        with pytest.raises(ValueError, match="weight must be on x's device cpu, it is on meta"):
            rms_norm.rms_norm_batch_invariant(x, w.to("meta"), 1e-6)
    with pytest.raises(ValueError, match="x must have at least one dimension"):
        rms_norm.rms_norm_batch_invariant(torch.zeros(()), None, 1e-6)
    for function in (
        rms_norm.fused_add_rms_norm_batch_invariant,
        rms_norm.fused_add_rms_norm_batch_invariant_functional,
    ):
        with pytest.raises(ValueError, match=r"x's shape \(4, 128\), it has \(3, 128\)"):
            function(x, x[:3].clone(), w, 1e-6)
        if not calls:
            with pytest.raises(ValueError, match="x_residual must be on x's device cpu, it is on meta"):
                function(x, x.to("meta"), w, 1e-6)
        with pytest.raises(ValueError, match="x must have at least one dimension"):
            function(torch.zeros(()), torch.zeros(()), None, 1e-6)


def test_short_way_launches_what_the_long_way_does(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, r, w = torch.zeros(5, 128), torch.zeros(5, 128), torch.zeros(128)
    q = torch.zeros(5, 1024)[:, 256:768].unflatten(-1, (4, 128))

    def run() -> list[Any]:
        recorded.calls.clear()
        first = rms_norm.rms_norm_batch_invariant(x, w, 1e-6)
        second = rms_norm.rms_norm_batch_invariant(x, None, 1e-6)
        third = rms_norm.rms_norm_batch_invariant(q, w, 1e-6)
        assert third.shape == q.shape and third.is_contiguous()
        rms_norm.fused_add_rms_norm_batch_invariant(x, r, w, 1e-6)
        rms_norm.fused_add_rms_norm_batch_invariant(x, r, None, 1e-6, 64)
        names = {first.data_ptr(): "first", second.data_ptr(): "second", third.data_ptr(): "third"}
        return [(spec, programs, [names.get(a, a) for a in args]) for spec, programs, args in recorded.calls]

    long = run()
    quick = rms_norm._quick
    taken = []
    monkeypatch.setattr(rms_norm, "_quick", lambda *a, **k: (taken.append(quick(*a, **k)), taken[-1])[1])
    assert run() == long
    assert len(taken) == 5 and all(t is not None for t in taken)


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (1, 4), (5, 1), (5, 4), (0, 4)])
@pytest.mark.parametrize(("offset", "pad", "last"), [(0, 0, 1), (0, 8, 1), (4, 0, 1), (0, 4, 1), (0, 0, 2)])
def test_short_way_of_views_addresses_their_rows(
    recorded: type[Recorded], tokens: int, heads: int, offset: int, pad: int, last: int
) -> None:
    """Either way takes the kernel with two strides, aligned where every row is, and addresses every row."""
    base = torch.zeros(20000, dtype=torch.bfloat16)[offset:]
    q = base.as_strided((tokens, heads, 128), (heads * 128 * last + 256 + pad, 128 * last, last))
    plain = torch.zeros(3, 2, 128, dtype=torch.bfloat16)
    rms_norm.rms_norm_batch_invariant(plain, None, 1e-6)  # from now on the short way is there
    for _ in range(2):
        recorded.calls.clear()
        y = rms_norm.rms_norm_batch_invariant(q, None, 1e-6)
        assert y.shape == q.shape and y.is_contiguous()
        if not tokens:
            assert not recorded.calls
            continue
        ((spec, _, args),) = recorded.calls
        assert dict(spec.constants)["INNER"]
        rows, inner = args[5], args[6]
        aligned = (offset * 2 % 16 == 0 and pad * 2 % 16 == 0) or last == 2
        assert dict(spec.constants)["ALIGNED"] == aligned
        starts = [args[0] + 2 * (i // inner * args[7] + i % inner * args[8]) for i in range(rows)]
        ends = [args[3] + 2 * (i // inner * args[11] + i % inner * args[12]) for i in range(rows)]
        if last == 1:
            assert starts == [q[t, h].data_ptr() for t in range(tokens) for h in range(heads)]
        assert ends == [y[t, h].data_ptr() for t in range(tokens) for h in range(heads)]


def test_tensors_on_a_cpu_do_not_ask_for_the_current_device(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of torch for CUDA raises on that question where there is no driver."""

    def no_driver() -> int:
        raise RuntimeError("Found no NVIDIA driver on your system.")

    for module in (rms_norm, launcher):
        monkeypatch.setattr(module, "current_device", no_driver)
    x, w = torch.zeros(3, 128), torch.zeros(128)
    for _ in range(2):
        rms_norm.rms_norm_batch_invariant(x, w, 1e-6)
        rms_norm.rms_norm_batch_invariant(x.view(3, 1, 128), w, 1e-6)
        rms_norm.fused_add_rms_norm_batch_invariant(x, x.clone(), w, 1e-6)
    assert len(recorded.calls) == 6


def test_other_dtypes_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="float64"):
        rms_norm.rms_norm_batch_invariant(torch.zeros(2, 8, dtype=torch.float64), None, 1e-6)
    with pytest.raises(TypeError, match="int32"):
        gelu_and_mul_sparse.gelu_and_mul_sparse(torch.zeros(2, 8, dtype=torch.int32), 1.0)
    with pytest.raises(ValueError, match="sigmoid"):
        gelu_and_mul_sparse.gelu_and_mul_sparse(torch.zeros(2, 8), 1.0, "sigmoid")


def test_a_triton_that_moved_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def moved(spec: KernelSpec) -> None:
        raise AttributeError("'CompiledKernel' object has no attribute 'run'")

    monkeypatch.setattr(compat, "is_interpreted", lambda fn: False)
    monkeypatch.setattr(compat, "DirectLaunch", moved)
    monkeypatch.setattr(compat, "_complained", False)
    spec = launch_config.rms_spec(
        128, 128, "bf16", None, aligned=True, inner=False, residual=False, canonical=True
    )
    with caplog.at_level(logging.WARNING):
        first, second = compat.launch(spec), compat.launch(spec)
    assert isinstance(first, compat.SlowLaunch) and isinstance(second, compat.SlowLaunch)
    (record,) = caplog.records
    assert "kernel[grid]" in record.message and "no attribute 'run'" in record.message


@pytest.mark.parametrize("hooked", [False, True])
def test_direct_launch_speaks_to_triton_as_it_is(
    monkeypatch: pytest.MonkeyPatch, compiler: None, hooked: bool
) -> None:
    """What the direct launch gives the launcher in C is what Triton's own launcher gives it, hooked or not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.compiler import CompiledKernel

    for name in ("run", "launch_metadata"):
        assert hasattr(CompiledKernel, name)
    order = inspect.getsource(CompiledKernel.__getitem__)
    assert (
        "self.run(grid[0], grid[1], grid[2], stream, self.function, self.packed_metadata, launch_metadata,"
        in order
    )
    assert "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *args)" in order
    spec = launch_config.rms_spec(
        128, 128, "bf16", "bf16", aligned=True, inner=False, residual=False, canonical=True, pdl=True
    )  # fmt: skip
    kernel = compat.compile_for(spec, GPUTarget("cuda", 90, 32))
    given: list[tuple[Any, ...]] = []
    scratch = 0

    def launcher_for(source: Any, metadata: Any) -> CudaLauncher:
        made = CudaLauncher.__new__(CudaLauncher)
        made.launch = lambda *args: given.append(args)
        made.global_scratch_size, made.profile_scratch_size = scratch, 0
        made.global_scratch_align = made.profile_scratch_align = 1
        made.num_ctas, made.launch_cooperative_grid, made.launch_pdl = 1, False, metadata.launch_pdl
        if triton.__version__ >= "3.7":
            made.arg_annotations, made.kernel_signature = tuple(source.signature.values()), b"signature"
        made.takes = len(source.signature)
        return made

    run = launcher_for(kernel.src, kernel.metadata)
    monkeypatch.setattr(CompiledKernel, "run", run)
    kernel.function = 77
    monkeypatch.setattr(compat, "compile_for", lambda spec, target: kernel)
    active = type(
        "Driver", (), {"get_current_target": lambda self: None, "launcher_cls": staticmethod(launcher_for)}
    )()
    monkeypatch.setattr(triton.runtime.driver, "_active", active)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 5, raising=False)
    seen: list[Any] = []
    if hooked:
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", seen.append)
        monkeypatch.setattr(kernel, "launch_metadata", lambda *args: "about", raising=False)
    launch = compat.DirectLaunch(spec)
    args = tuple(range(16))
    in_order = Arrangement(spec.names, spec.names, {})
    launch.prepare(in_order, 0)(3, *args)
    names = list(kernel.src.signature)
    assert names[: len(spec.signature)] == [name for name, _ in spec.signature]
    tail = tuple(dict(spec.constants)[name] for name in names[len(spec.signature) :])
    assert run.takes == len(args) + len(tail) and launch._lean.takes == len(args)
    if hooked:
        run(3, 1, 1, 5, 77, kernel.packed_metadata, "about", seen.append, None, *args, *tail)
    else:  # the one without constants, as Triton would call it
        launch._lean(3, 1, 1, 5, 77, kernel.packed_metadata, None, None, None, *args)
    scratch = 16  # needs more than a call
    monkeypatch.setattr(CompiledKernel, "run", lambda *given: complete.append(given))
    complete: list[Any] = []
    compat.DirectLaunch(spec).prepare(in_order, 0)(1, *args)
    assert len(complete) == 1
    mine, theirs = given
    assert mine == theirs


def test_arguments_are_given_by_name(recorded: type[Recorded]) -> None:
    spec = gelu_config.gelu_spec(128, "bf16", inner=False, tanh=True, canonical=True)
    kernel = launcher.Kernel(spec, torch.device("cpu"))
    strides = {"inner": 0, "x_outer": 256, "x_inner": 0, "y_outer": 128, "y_inner": 0}
    launch = kernel.prepare(("multiplier", "x_ptr", "rows"), strides | {"y_ptr": "x_ptr"})
    launch(1, 1.5, 4096, 2)
    launch(programs=1, rows=2, x_ptr=4096, multiplier=1.5)
    assert recorded.calls == [(spec, 1, (4096, 4096, 2, 0, 256, 0, 128, 0, 1.5))] * 2
    assert spec.names == (
        "x_ptr",
        "y_ptr",
        "rows",
        "inner",
        "x_outer",
        "x_inner",
        "y_outer",
        "y_inner",
        "multiplier",
    )


@pytest.mark.parametrize(
    ("given", "fixed", "problem"),
    [
        (("x", "y"), {}, "missing: z"),
        (("x", "y", "z"), {"z": 1}, "named twice: z"),
        (("x", "y", "y", "z"), {}, "named twice: y"),
        (("x", "y", "z", "w"), {}, "unknown to the kernel: w"),
        (("x", "y", "z"), {"w": 0}, "unknown to the kernel: w"),
        (("x", "y"), {"z": "w"}, "repeated and not given: w"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(
    given: tuple[str, ...], fixed: dict[str, int | str], problem: str
) -> None:
    with pytest.raises(TypeError, match=f"{problem}.*It takes x, y, z"):
        Arrangement(("x", "y", "z"), given, fixed)


def test_a_launch_goes_to_the_device_of_its_kernel(
    monkeypatch: pytest.MonkeyPatch, recorded: type[Recorded]
) -> None:
    """From another device the kernel's one is made current for the launch; on that device nothing is switched."""
    switched: list[int] = []

    @contextlib.contextmanager
    def device(index: int | torch.device) -> Iterator[None]:
        switched.append(index if isinstance(index, int) else index.index)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(launcher, "current_device", lambda: 0)
    spec = gelu_config.gelu_spec(128, "bf16", inner=False, tanh=True, canonical=True)
    for index in (0, 1):
        kernel = launcher.Kernel(spec, torch.device("cuda", index))
        switched.clear()
        kernel.prepare(spec.names, {})(1, *range(9))
        assert switched == [1] * index
    assert len(recorded.calls) == 2


@pytest.mark.parametrize("what", ["x", "weight", "x_residual"])
def test_short_way_takes_the_kernel_by_the_alignment(recorded: type[Recorded], what: str) -> None:
    """Once the launch for aligned rows is there, a misaligned tensor still gets the kernel without that promise.

    The interpreter computes the same bits with either kernel, so only the choice shows a missing test of alignment.
    """

    def matrix(offset: int, *shape: int) -> torch.Tensor:
        return torch.zeros(1024, dtype=torch.bfloat16)[offset:].as_strided(shape, (128, 1)[-len(shape) :])

    def call(place: str | None) -> None:
        x, weight = matrix(place == "x", 3, 128), matrix(place == "weight", 128)
        if what == "x_residual":
            rms_norm.fused_add_rms_norm_batch_invariant(x, matrix(place == what, 3, 128), weight, 1e-6)
        else:
            rms_norm.rms_norm_batch_invariant(x, weight, 1e-6)

    call(None)
    (prepared,) = prepared_norm.PREPARED.values()
    assert prepared.quick_matrix is not None
    recorded.calls.clear()
    call(what)
    ((spec, _, args),) = recorded.calls
    aligned = all(address % 16 == 0 for address in args[:5])
    assert dict(spec.constants)["ALIGNED"] == aligned
    if what != "x_residual":  # a fused add in place gets aligned copies, for its results
        assert not aligned
