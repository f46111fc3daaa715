# SPDX-License-Identifier: Apache-2.0
"""A digest of vLLM's code behind one kind of kernel: what a certificate of it is keyed by.

A certificate has to lose its worth when the kernel changes, and should keep it when something else of vLLM does. So
each kind names the modules and packages of vLLM where its kernels are. Compiled libraries count by the hash that the
wheel's list of files has for them: they are hundreds of megabytes.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_DETERMINISM: Final = ("model_executor/determinism", "model_executor/layers/batch_invariant.py")
PLACES: Final[dict[str, tuple[str, ...]]] = {
    "norm": ("model_executor/layers/layernorm.py", "kernels", "ir", *_DETERMINISM),
    "linear": (
        "model_executor/layers/linear.py",
        "model_executor/layers/utils.py",
        "model_executor/layers/quantization",
        "model_executor/kernels",
        *_DETERMINISM,
    ),
    "attention": ("v1/attention", "model_executor/layers/attention", "attention", "vllm_flash_attn"),
    "moe": ("model_executor/layers/fused_moe", "model_executor/layers/quantization", *_DETERMINISM),
    "activation": ("model_executor/layers/activation.py",),
    "rotary": ("model_executor/layers/rotary_embedding",),
    "embedding": ("model_executor/layers/vocab_parallel_embedding.py",),
    "sampler": ("v1/sample", "v1/worker/gpu/sample", *_DETERMINISM),
    "all-reduce": ("distributed/device_communicators", "distributed/parallel_state.py", *_DETERMINISM),
    "glue": ("model_executor/models",),
    "graph": ("compilation", "model_executor/models", "model_executor/layers", *_DETERMINISM),
}
"""By kind, files and folders below vLLM's package. What a release does not have is passed over."""
LIBRARIES: Final = (
    "flashinfer-python",
    "flash-attn",
    "deep-gemm",
    "deep_gemm",
    "aiter",
    "quack-kernels",
    "helion",
)
"""Distributions with kernels that vLLM may take instead of its own."""


def digest(kind: str, objects: Iterable[Any] = ()) -> str:
    """SHA-256, in hex, of what stands behind a kind of kernel.

    Args:
        kind: a key of :data:`PLACES`; any other has vLLM's version and ``objects`` alone.
        objects: classes and functions; those of another package than vLLM count by what they reach
            (``ir_core.sources``).
    """
    from ir_core import sources

    foreign = [o for o in objects if str(getattr(o, "__module__", "")).partition(".")[0] != "vllm"]
    text = [_of_vllm(kind), _libraries(), *sorted(f"{o.__module__}:{o.__qualname__}" for o in foreign)]
    if foreign:
        text.append(sources.digest(foreign, sorted({o.__module__ for o in foreign})))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


@functools.cache
def _of_vllm(kind: str) -> str:
    package = sys.modules.get("vllm")
    hasher = hashlib.sha256(_compiled().encode())
    if package is not None and package.__file__:
        root = Path(package.__file__).parent
        for place in PLACES.get(kind, ()):
            found = root / place
            for file in sorted(found.rglob("*.py")) if found.is_dir() else [found] if found.is_file() else []:
                hasher.update(
                    f"{file.relative_to(root)} ".encode() + hashlib.sha256(file.read_bytes()).digest()
                )
    return hasher.hexdigest()


@functools.cache
def _compiled() -> str:
    """vLLM's version, and its compiled libraries as its list of files has them."""
    try:
        files = metadata.files("vllm") or []
        named = sorted(f"{f} {f.hash.value if f.hash else f.size}" for f in files if f.suffix == ".so")
        return f"vllm {metadata.version('vllm')}\n" + "\n".join(named)
    except metadata.PackageNotFoundError:
        return "vllm of unknown version"


@functools.cache
def _libraries() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(found)


def forget() -> None:
    """Read the files again."""
    _of_vllm.cache_clear()
