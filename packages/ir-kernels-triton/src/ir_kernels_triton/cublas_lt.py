# SPDX-License-Identifier: Apache-2.0
"""cuBLASLt, called without torch: plans without split-K and without workspace, and nothing changed for the process.

torch's switches (``allow_bf16_reduced_precision_reduction``, ``CUBLASLT_WORKSPACE_SIZE``) hold for every matmul of the
process. A plan of one's own has its own preferences: cuBLASLt is asked for algorithms whose reduction scheme is "none"
and that need no workspace. The library is the one that torch has loaded.

That alone is no order: of random shapes, 39 of 2345 aligned ones and most others vary with the number of rows even so
(H200, cuBLAS 13.1). See ``cublas.py`` for what a plan must show before it is used.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

# Values of cublasLt.h and library_types.h, CUDA 12 and 13.
_COMPUTE_32F: Final = 68
_TYPES: Final = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_DESC_TRANSA: Final = 3
_DESC_EPILOGUE, _DESC_BIAS_POINTER, _DESC_BIAS_TYPE = 7, 8, 26
_EPILOGUE_BIAS: Final = 4
_PREF_WORKSPACE, _PREF_REDUCTION = 1, 3
_PREF_ALIGNMENTS: Final = (5, 6, 7, 8)
_CONFIG: Final = (
    "id",
    "tile",
    "split_k",
    "reduction",
    "swizzle",
    "custom",
    "stages",
    "inner_shape",
    "cluster_shape",
)


class CublasError(RuntimeError):
    """cuBLASLt is missing, or refused a call."""


class _Result(ctypes.Structure):
    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@cache
def library() -> Any:
    """The cuBLASLt that torch has loaded.

    Raises CublasError when this process has loaded none (torch loads it with its first matmul on a GPU).
    """
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "libcublasLt.so" in line}
    except OSError as error:
        raise CublasError(f"the loaded libraries cannot be listed: {error}") from error
    if not paths:
        raise CublasError("cuBLASLt is not loaded: torch loads it with its first matmul on a GPU")
    loaded = ctypes.CDLL(sorted(paths)[0])
    loaded.cublasLtGetVersion.restype = ctypes.c_size_t
    return loaded


def version() -> int:
    """cuBLASLt's version as a number, 130100 for 13.1."""
    return int(library().cublasLtGetVersion())


def _call(name: str, *args: Any) -> None:
    status = getattr(library(), name)(*args)
    if status:
        raise CublasError(f"{name} returned status {status}")


@cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


def _made(name: str, *args: Any) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(name, ctypes.byref(made), *args)
    return made


def _set(name: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
    _call(name, of, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


class Plan:
    """One product ``y = x @ weight.T (+ bias)`` of fixed shapes and strides, and the algorithms that cuBLASLt offers
    for it.

    Args:
        x, weight, y: matrices ``[M, K]``, ``[N, K]`` and ``[M, N]`` of one dtype with contiguous rows; only shapes,
            strides, dtype and alignment to 16 bytes are kept.
        bias: whether a bias is added.
        offers: algorithms to ask for.

    Raises:
        CublasError: cuBLASLt offers none.
    """

    def __init__(self, x: Tensor, weight: Tensor, y: Tensor, *, bias: bool, offers: int = 8) -> None:
        self.device = x.device.index
        self._biased, self._lock = bias, threading.Lock()
        (m, k), n, kind = x.shape, weight.shape[0], _TYPES[x.dtype]
        self._handle = _handle(self.device)
        self._desc = _made("cublasLtMatmulDescCreate", _COMPUTE_32F, _TYPES[torch.float32])
        _set("cublasLtMatmulDescSetAttribute", self._desc, _DESC_TRANSA, ctypes.c_int32(1))
        if bias:
            _set(
                "cublasLtMatmulDescSetAttribute", self._desc, _DESC_EPILOGUE, ctypes.c_uint32(_EPILOGUE_BIAS)
            )
            _set("cublasLtMatmulDescSetAttribute", self._desc, _DESC_BIAS_TYPE, ctypes.c_int32(kind))
        # cuBLAS is column-major: the transposed product of the transposed matrices.
        self._layouts = [
            _made(
                "cublasLtMatrixLayoutCreate",
                kind,
                ctypes.c_uint64(a),
                ctypes.c_uint64(b),
                ctypes.c_int64(step),
            )
            for a, b, step in ((k, n, weight.stride(0)), (k, m, x.stride(0)), (n, m, y.stride(0)))
        ]
        preference = _made("cublasLtMatmulPreferenceCreate")
        _set("cublasLtMatmulPreferenceSetAttribute", preference, _PREF_WORKSPACE, ctypes.c_size_t(0))
        _set("cublasLtMatmulPreferenceSetAttribute", preference, _PREF_REDUCTION, ctypes.c_uint32(0))
        for attribute in _PREF_ALIGNMENTS:
            _set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.c_uint32(16))
        self._results, found = (_Result * offers)(), ctypes.c_int()
        a, b, d = self._layouts
        _call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._desc, a, b, d, d, preference, offers, self._results,
            ctypes.byref(found),
        )  # fmt: skip
        library().cublasLtMatmulPreferenceDestroy(preference)
        self.offers = [i for i in range(found.value) if self.config(i)["split_k"] == 1]
        if not self.offers:
            raise CublasError("cuBLASLt offers no algorithm without split-K")

    def config(self, offer: int) -> dict[str, int]:
        """The configuration of an algorithm."""
        found = {}
        for attribute, name in enumerate(_CONFIG):
            value, written = ctypes.c_uint32(), ctypes.c_size_t()
            library().cublasLtMatmulAlgoConfigGetAttribute(
                ctypes.byref(self._results[offer]), attribute, ctypes.byref(value), ctypes.c_size_t(4),
                ctypes.byref(written),
            )  # fmt: skip
            found[name] = value.value
        return found

    def runner(self, offer: int) -> Callable[[int, int, int, int], None]:
        """``run(x, weight, bias, y)`` by addresses, with one algorithm, on the current stream of the plan's device."""
        matmul, stream, pointer = (
            library().cublasLtMatmul,
            torch._C._cuda_getCurrentRawStream,
            ctypes.c_void_p,
        )
        one, zero = ctypes.byref(ctypes.c_float(1.0)), ctypes.byref(ctypes.c_float(0.0))
        handle, desc, device = self._handle, self._desc, self.device
        a, b, d = self._layouts
        algorithm, none = ctypes.byref(self._results[offer]), ctypes.c_size_t(0)

        def run(x: int, weight: int, bias: int, y: int) -> None:
            out = pointer(y)
            status = matmul(
                handle, desc, one, pointer(weight), a, pointer(x), b, zero, out, d, out, d, algorithm, None, none,
                pointer(stream(device)),
            )  # fmt: skip
            if status:
                raise CublasError(f"cublasLtMatmul returned status {status}")

        lock = self._lock

        def run_biased(x: int, weight: int, bias: int, y: int) -> None:
            with lock:  # the address stands in the description, which threads share
                _set("cublasLtMatmulDescSetAttribute", desc, _DESC_BIAS_POINTER, pointer(bias))
                run(x, weight, bias, y)

        return run_biased if self._biased else run
