# SPDX-License-Identifier: Apache-2.0
"""Do the bits of vLLM's fused experts depend on the tile? Tried on this device, tile by tile, and kept.

Each tile runs the whole chain (assignment of tokens, both products, activation, the sum over a token's experts) on the
same tokens as vLLM's one tile of batch-invariant mode. Their exponents are spread, so that another grouping of the
sums, or another cut-off, shows. The outcome is a certificate under ``vllm.moe_tiles``, for this device, this text of
vLLM's kernel and these tiles.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

OP: Final = "vllm.moe_tiles"
PROVIDER: Final = "fused_moe_kernel"
PACKAGE: Final = "vllm.model_executor.layers.fused_moe"
PINNED: Final = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 8, "SPLIT_K": 1}
"""vLLM's tile in batch-invariant mode, in all versions that are supported."""
EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 8, 2, 1032, 392
"""Small, and no multiple of a tile: masks are part of what is compared. (16-byte rows, as every model has.)"""
TOKENS: Final = (1, 5, 64, 300)

Run = Callable[[dict[str, int], int], Any]
"""``run(tile, tokens)``: the experts' output for so many tokens, always the same ones."""


class Found(NamedTuple):
    """What is known: the verdict, when it was found, and a clause that says what was compared."""

    verdict: str
    created: str
    detail: str


def is_capturing() -> bool:
    """Whether a CUDA graph is being recorded in this thread."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def evidence(tiles: Sequence[dict[str, int]], dtype: str) -> Found:
    """The certificate of this device for these tiles, made now if there is none.

    Args:
        tiles: vLLM's configurations.
        dtype: "bfloat16" or "float16".
    """
    from ir_core.verification import certificate, identity, store
    from ir_core.verification.evidence import certificate_of
    from ir_vllm_adapter import compat, state
    from ir_vllm_adapter.standing import target_here

    target, uuid = target_here(state.STATE.index), digest(tiles, dtype)
    if target.kind == "cpu":
        return Found("not checked", "", "a CPU says nothing about a GPU's tiles")
    known = certificate_of(OP, PROVIDER, uuid, target)
    if known is None:
        start = time.monotonic()
        difference = compare(tiles, run_of(dtype, f"cuda:{state.STATE.index or 0}"))
        known = certificate.Certificate(
            op=OP,
            provider=PROVIDER,
            distribution="vllm",
            version=compat.host().version,
            uuid=uuid,
            device=identity.device(target),
            declared=False,
            verdict="refuted" if difference else "certified",
            findings=(certificate.Finding("tiles", difference, {}, ""),) if difference else (),
            cases={"tiles": len(tiles) * len(TOKENS)},
            settings=tuple(json.dumps(tile, sort_keys=True) for tile in tiles),
            seconds=time.monotonic() - start,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=identity.software(),
        )
        store.save(known, identity.key_of(OP, PROVIDER, uuid, target))
    said = known.findings[0].summary if known.findings else f"{len(tiles)} tiles gave equal bits in {dtype}"
    return Found(known.verdict, known.created, said)


def digest(tiles: Sequence[dict[str, int]], dtype: str) -> str:
    """What the outcome depends on beside the device: vLLM's kernel and the code around it, the tiles, the dtype."""
    import importlib

    home = Path(str(importlib.import_module(f"{PACKAGE}.fused_moe").__file__)).parent
    files = sorted(home.glob("*.py"))
    text = "\0".join(file.read_text("utf-8") for file in files)
    return hashlib.sha256(f"{text}\0{json.dumps(list(tiles), sort_keys=True)}\0{dtype}".encode()).hexdigest()


def compare(tiles: Sequence[dict[str, int]], run: Run) -> str:
    """The first tile whose bits differ from those of vLLM's one tile, as a sentence; "" if none does."""
    import torch

    for tokens in TOKENS:
        expected = run(PINNED, tokens).view(torch.int16)
        for tile in tiles:
            if tile.get("SPLIT_K", 1) != 1:
                return f"{_text(tile)} splits K"
            differs = int((run(tile, tokens).view(torch.int16) != expected).sum())
            if differs:
                return f"{_text(tile)}: {differs} of {expected.numel()} outputs differ, {tokens} tokens"
    return ""


def _text(tile: dict[str, int]) -> str:
    m, n, k = (tile[f"BLOCK_SIZE_{name}"] for name in "MNK")
    return f"tile {m}x{n}x{k}"


def run_of(dtype: str, device: str) -> Run:
    """Runs vLLM's own experts, as a model does."""
    import importlib

    import torch

    experts = importlib.import_module(f"{PACKAGE}.fused_moe").fused_experts
    generator = torch.Generator(device=device).manual_seed(0)

    def spread(*shape: int) -> Any:
        values = torch.randn(*shape, device=device, generator=generator)
        exponents = torch.randint(-6, 7, shape, device=device, generator=generator)
        return torch.ldexp(values, exponents).to(getattr(torch, dtype))

    x = spread(max(TOKENS), HIDDEN) / 8
    w1, w2 = spread(EXPERTS, 2 * INTERMEDIATE, HIDDEN) / 32, spread(EXPERTS, HIDDEN, INTERMEDIATE) / 20
    scores = torch.rand(max(TOKENS), EXPERTS, device=device, generator=generator)
    weights, ids = scores.softmax(-1).topk(TOP_K)

    def run(tile: dict[str, int], tokens: int) -> Any:
        with using(tile):
            found = experts(x[:tokens], w1, w2, weights[:tokens].float(), ids[:tokens].to(torch.int32))
        return found.clone()

    return run


@contextmanager
def using(tile: dict[str, int]) -> Iterator[None]:
    """vLLM's own override of the tile (its benchmarks use it), taken back whatever happens inside."""
    import importlib

    package: Any = importlib.import_module(PACKAGE)
    before = package._config
    package._config = dict(tile)
    try:
        yield
    finally:
        package._config = before
