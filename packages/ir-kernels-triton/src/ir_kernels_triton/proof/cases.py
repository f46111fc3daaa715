# SPDX-License-Identifier: Apache-2.0
"""Every kernel that can be launched.

Row length, dtypes and flags decide which kernel runs, so the list is: each power of two that changes the tile, lengths
between them that are and are not a multiple of a 16-byte access, lengths that loop, each dtype pair, and for all of
them both states of the two flags that stand for a call's layout (alignment kept or not; one stride or two).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from ir_kernels_triton.gelu_config import gelu_spec
from ir_kernels_triton.kernel_spec import ACCESS_BYTES, ITEMSIZE, KernelSpec
from ir_kernels_triton.launch_config import (
    COPY_MISALIGNED_ABOVE,
    DEPENDENT_LAUNCH,
    pair_spec,
    rms_spec,
)
from ir_kernels_triton.reduction_config import layer_norm_spec, reduction_spec

TARGETS: Final = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")
CORE: Final = (128, 1024, 4096, 7168, 16384)
LENGTHS: Final = (1, 64, 256, 512, 1000, 1001, 2048, 2880, 5120, 8192, *CORE)
LONG: Final = (32768, 65536)
PAIRS: Final = (("bf16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32"), ("fp32", "bf16"), ("bf16", None))
REDUCTIONS: Final = ("softmax", "log_softmax", "logsumexp", "sum", "mean", "layer_norm")
BOTH: Final = (True, False)


@dataclass(frozen=True)
class Case:
    """One kernel to compile. Cases of one ``group`` differ by a call's layout alone."""

    group: str
    variant: str
    spec: KernelSpec
    vectors: int
    """16-byte accesses that it must have: those of x, residual and outputs; 0 where the row's length forbids them."""
    canonical: bool

    @property
    def name(self) -> str:
        return f"{self.group} {self.variant}".strip()


def _rms(d: int, x: str, w: str | None, residual: bool, canonical: bool, aligned: bool, inner: bool,
         n: int | None = None) -> Case:  # fmt: skip
    spec = rms_spec(
        d,
        n or d,
        x,
        w,
        aligned=aligned,
        inner=inner,
        residual=residual,
        canonical=canonical,
        pdl=DEPENDENT_LAUNCH,
    )
    op = "fused_add" if residual else "rms"
    size = f"{d}" if n is None else f"{d}[:{n}]"
    group = f"{op} {size} {x}*{w}" + ("" if canonical else " plain")
    variant = ("" if aligned else "misaligned") + (" two-strides" if inner else "")
    tensors = (4 if residual else 2) if aligned else (2 if residual else 1)
    return Case(group, variant.strip(), spec, _vectors(spec, d, x, tensors), canonical)


def _pair(d: int, x: str, w: str, canonical: bool) -> Case:
    """Two calls in one launch; a row is computed as in one call, so this is a variant of that case."""
    spec = pair_spec(d, x, w, canonical=canonical, pdl=DEPENDENT_LAUNCH)
    group = f"rms {d} {x}*{w}" + ("" if canonical else " plain")
    return Case(group, "pair", spec, _vectors(spec, d, x, 2), canonical)


def _gelu(d: int, x: str, tanh: bool, canonical: bool, inner: bool) -> Case:
    spec = gelu_spec(d, x, inner=inner, tanh=tanh, canonical=canonical)
    group = f"gelu {d} {x} {'tanh' if tanh else 'erf'}" + ("" if canonical else " plain")
    return Case(group, "two-strides" if inner else "", spec, _vectors(spec, d, x, 3), canonical)


def _vectors(spec: KernelSpec, d: int, x: str, tensors: int) -> int:
    constants = dict(spec.constants)
    size = ITEMSIZE[x]
    if constants["VEC"] * size < 16:
        return 0
    tile = constants["HALVES"] * constants["CHUNKS"] * constants.get("ROWS", 1) * constants["SPAN"]
    if "OUT_CHUNKS" in constants:
        tile = constants["OUT_HALVES"] * constants["OUT_CHUNKS"] * constants["OUT_SPAN"]
    if spec.kernel == "gelu_long":
        tile //= 2
    return int(tensors * max(tile * size // (16 * 32 * spec.num_warps), 1))


def _reduction(op: str, n: int, x: str, inner: bool = False) -> Case:
    """A reduction; ``layer_norm`` has a weight and a bias, in float32 where the row is."""
    if op == "layer_norm":
        spec = layer_norm_spec(n, x, x, x, inner=inner)
    else:
        spec = reduction_spec(op, n, x, inner=inner)
    constants = dict(spec.constants)
    read = constants["HALVES"] * constants["CHUNKS"] * constants.get("ROWS", 1) * constants["SPAN"]
    written = 0 if op in ("logsumexp", "sum", "mean") else read
    if "OUT_CHUNKS" in constants:
        written = written * constants["OUT_CHUNKS"] // constants["CHUNKS"]
    access = 16 * 32 * spec.num_warps
    vectors = sum(max(part * ITEMSIZE[x] // access, 1) for part in (read, written) if part)
    wide = constants["VEC"] * ITEMSIZE[x] == ACCESS_BYTES
    return Case(f"{op} {n} {x}", "two-strides" if inner else "", spec, vectors if wide else 0, True)


def _reductions(core: bool) -> Iterator[Case]:
    for op in REDUCTIONS:
        for n in (4096, 151_936) if core else (64, 1001, 4096, 16384, 151_936):
            yield _reduction(op, n, "bf16")
        if not core:
            yield _reduction(op, 4096, "bf16", inner=True)
            yield _reduction(op, 16384, "fp32")
            yield _reduction(op, 32768, "fp32")


def cases(*, core: bool = False) -> Iterator[Case]:
    """All cases, or the everyday ``core`` of them, as for SM 9.0 and newer."""
    lengths = CORE if core else LENGTHS
    for d, residual, aligned, inner in product((*lengths, *LONG[: 1 if core else 2]), BOTH, BOTH, BOTH):
        if aligned or d <= COPY_MISALIGNED_ABOVE:
            yield _rms(d, "bf16", "bf16", residual, True, aligned, inner)
    for (x, w), d, residual, aligned in product(PAIRS, (4096,) if core else (128, 4096, 16384), BOTH, BOTH):
        yield _rms(d, x, w, residual, True, aligned, False)
    for d, w, residual in product(() if core else (32768, 49152, 131072), ("bf16", "fp32", None), BOTH):
        if w != "bf16" or d not in LONG:
            yield _rms(d, "bf16", w, residual, True, True, False)
    for residual in BOTH:
        yield _rms(20001, "bf16", "bf16", residual, True, True, False)
        yield _rms(32768, "fp32", "fp32", residual, True, True, False)
        yield _rms(4096, "bf16", "bf16", residual, True, True, False, 2048)
        for d in () if core else (2, 8, 24):
            yield _rms(d, "bf16", "bf16", residual, True, True, False)
    for d, n in () if core else ((1024, 1), (1024, 3), (4096, 12), (20000, 17000)):
        yield _rms(d, "bf16", "bf16", True, True, True, False, n)
    for d, residual in product((4096,) if core else (128, 1024, 4096, 8192, 16384, 32768), BOTH):
        yield _rms(d, "bf16", "bf16", residual, False, True, False)
    for d, (x, w) in product(
        (128,) if core else (1, 64, 128, 256, 512, 1024), (("bf16", "bf16"), *PAIRS[:4])
    ):
        if d == 128 or x == w == "bf16":
            yield _pair(d, x, w, True)
    yield _pair(128, "bf16", "bf16", False)
    for d, x, tanh in product((2048,) if core else (128, 2048, 8192, 16384, 40000), ("bf16", "fp32"), BOTH):
        for inner in (False,) if core else BOTH:
            yield _gelu(d, x, tanh, True, inner)
    yield _gelu(2048, "bf16", True, False, False)
    yield from _reductions(core)


def sample() -> Iterator[Case]:
    """A few cases that are compiled for the targets that are not today's."""
    for d, residual, aligned in product((128, 4096), BOTH, BOTH):
        if residual or aligned:
            yield _rms(d, "bf16", "bf16", residual, True, aligned, False)
    for op in ("log_softmax", "layer_norm"):
        yield _reduction(op, 4096, "bf16")


def before_sm90(case: Case) -> Case:
    """The case as a device without dependent launch gets it."""
    if not case.spec.pdl:
        return case
    constants = dict(case.spec.constants) | {"PDL": False}
    return replace(case, spec=replace(case.spec, pdl=False, constants=tuple(constants.items())))
