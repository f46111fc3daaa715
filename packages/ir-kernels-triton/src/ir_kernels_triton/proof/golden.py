# SPDX-License-Identifier: Apache-2.0
"""Golden digests: the right bits of a fixed set of inputs, one set for all devices.

Inputs come from integer arithmetic, so they are the same on every platform; digests are SHA-256 of the output's
little-endian bytes. ``python -m ir_kernels_triton.proof.golden --write PATH`` writes them from ``portable``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_MASK: Final = 0xFFFFFFFF


def hashed(seed: int, *shape: int) -> Tensor:
    """float32 numbers in [-4, 4), multiples of 2**-21: the 32-bit hash ``lowbias32`` of each element's index.

    ``h = i + seed * 0x9E3779B9; h ^= h >> 16; h *= 0x7FEB352D; h ^= h >> 15; h *= 0x846CA68B; h ^= h >> 16``, all
    modulo 2**32; the value is ``((h >> 8) - 2**23) / 2**21``.
    """
    count = 1
    for size in shape:
        count *= size
    h = (torch.arange(count, dtype=torch.int64) + seed * 0x9E3779B9) & _MASK
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK
    h = h ^ (h >> 16)
    return (((h >> 8) - (1 << 23)).to(torch.float32) * 2.0**-21).reshape(shape)


class Golden(NamedTuple):
    """One call: the op, and its arguments on the CPU."""

    name: str
    op: str
    args: tuple[Any, ...]


def calls() -> Iterator[Golden]:
    """The fixed set of calls."""
    seed = 0
    for x_name, x in DTYPES.items():
        for w_name in (x_name, "float32", "none"):
            for n in (1, 7, 128, 1000, 4096, 7168, 20000):
                if w_name != x_name and n not in (128, 4096):
                    continue
                seed += 1
                w = None if w_name == "none" else hashed(seed + 1000, n).to(DTYPES[w_name])
                rows = hashed(seed, 3, n).to(x)
                rows[2] *= 2.0**-10  # where epsilon matters
                more = hashed(seed + 2000, 3, n).to(x)
                what = f"{n} {x_name} weight={w_name}"
                yield Golden(f"rms_norm {what}", "rms_norm", (rows, w, 1e-6, None))
                yield Golden(f"fused_add_rms_norm {what}", "fused_add_rms_norm", (rows, more, w, 1e-5, None))
        yield Golden(
            f"rms_norm 4096[:2048] {x_name}", "rms_norm", (hashed(77, 2, 4096).to(x), None, 1e-6, 2048)
        )
        for n, approximate in (
            (128, "none"),
            (128, "tanh"),
            (2048, "none"),
            (16384, "tanh"),
            (20000, "none"),
        ):
            args = (hashed(99 + n, 2, 2 * n).to(x), 0.5, approximate)
            yield Golden(f"gelu_and_mul_sparse {n} {x_name} {approximate}", "gelu_and_mul_sparse", args)


def digest(result: Any) -> str:
    """SHA-256 of a result's bytes (several tensors one after the other)."""
    sha = hashlib.sha256()
    for tensor in result if isinstance(result, tuple) else (result,):
        flat = tensor.detach().cpu().contiguous().view(torch.uint8)
        sha.update(flat.numpy().tobytes())
    return sha.hexdigest()


def digests(provider: Callable[[str], Callable[..., Any]], device: str = "cpu") -> dict[str, str]:
    """Digest of each call, by the function that ``provider`` gives for an op's name."""
    found = {}
    for name, op, args in calls():
        here = [a.to(device, copy=True) if isinstance(a, Tensor) else a for a in args]
        found[name] = digest(provider(op)(*here))
    return found


def portable(op: str) -> Callable[..., Any]:
    """The op's ``portable`` implementation."""
    import ir_core

    function: Callable[..., Any] = ir_core.IrOp.registry[op].impls["portable"].impl_fn
    return function


def main() -> None:
    """Write or print the digests of ``portable``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="file for the digests")
    options = parser.parse_args()
    text = json.dumps(digests(portable), indent=1) + "\n"
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
