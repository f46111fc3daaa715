# SPDX-License-Identifier: Apache-2.0
"""The experts' tiles (all versions): vLLM's tuned ones in batch-invariant mode, where bits do not depend on them.

In batch-invariant mode vLLM runs its fused experts in one tile, 64x64x32, for any number of tokens. In fp16 and bf16 a
tile decides no bit, as long as one accumulator goes through all of K in steps of the hardware's product: the order is
``chain16`` then (``docs/orders.md``). That is checked, not believed: ``moe_check.py`` compares the bits of vLLM's own
experts over every tile that would be used, on this device, once; the outcome is kept as a certificate. Only then the
functions by which vLLM chooses a tile answer as in default mode. Quantised experts and float32 keep the one tile.
"""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Callable
from typing import Any, Final

from ir_vllm_adapter import log, moe_check, state
from ir_vllm_adapter.attachment import ATTACHED, unwrapped

HOME: Final = "vllm.model_executor.layers.fused_moe.fused_moe"
ROWS: Final = tuple(1 << n for n in range(15))
"""Numbers of tokens for which the default tiles are asked: the default function has thresholds between them."""


class _Default:
    """``vllm.envs``, as it is in default mode: batch-invariant mode is off."""

    VLLM_BATCH_INVARIANT = False

    def __init__(self, envs: Any) -> None:
        self._envs = envs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envs, name)


def install() -> None:
    """Give the experts of a loaded model their tuned tiles, once they are checked. Idempotent.

    It changes nothing where vLLM's experts are not imported, and outside of batch-invariant mode.
    """
    from ir_core import current

    policy = current()
    module = sys.modules.get(HOME)
    if module is None or policy.disabled or not policy.batch_invariant:
        return
    ATTACHED.wrap(module, "get_moe_configs", _configs)
    ATTACHED.wrap(module, "get_default_config", _default)


def _configs(original: Callable[..., Any]) -> Callable[..., Any]:
    """``get_moe_configs(E, N, dtype, block_n, block_k)``: the table of tiles by tokens, or ``None``."""
    tuned = _in_default_mode(original)

    def get_moe_configs(E: int, N: int, dtype: Any, block_n: Any = None, block_k: Any = None) -> Any:
        if dtype is None and not block_n and not block_k and may_vary(E, N):
            return tuned(E, N, dtype, block_n, block_k)
        return original(E, N, dtype, block_n, block_k)

    return get_moe_configs


def _default(original: Callable[..., Any]) -> Callable[..., Any]:
    """``get_default_config(M, E, N, K, topk, dtype, block_shape)``: the tile where there is no table."""
    tuned = _in_default_mode(original)

    def get_default_config(
        M: int, E: int, N: int, K: int, topk: int, dtype: Any, block_shape: Any = None
    ) -> Any:
        if dtype is None and block_shape is None and may_vary(E, N):
            return tuned(M, E, N, K, topk, dtype, block_shape)
        return original(M, E, N, K, topk, dtype, block_shape)

    return get_default_config


def _in_default_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of vLLM's, for which batch-invariant mode is off; nothing else sees a difference."""
    plain = getattr(function, "__wrapped__", function)  # a cache keeps what it answered in this mode
    names = dict(plain.__globals__)
    names["envs"] = _Default(names["envs"])
    made = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    return functools.lru_cache(maxsize=None)(made) if plain is not function else made


_asked: dict[tuple[int, int], bool] = {}


def may_vary(E: int, N: int) -> bool:
    """Whether the tiles of experts of this size were found to give equal bits on this device. Asked once a size.

    Args:
        E: experts of this rank.
        N: the size between the two products, of this rank.
    """
    if (E, N) not in _asked:
        if moe_check.is_capturing():
            return False  # a check launches kernels; vLLM's profiling pass comes first and asks
        _asked[E, N] = False  # also while the check itself runs experts
        log.guarded("check the experts' tiles", functools.partial(_ask, E, N))
        ATTACHED.on_undo(functools.partial(_asked.pop, (E, N), None))
    return _asked[E, N]


def _ask(E: int, N: int) -> None:
    dtype = str(state.STATE.worker.model_config.dtype).removeprefix("torch.")
    size = f"{E} experts of {N}"
    if dtype not in ("bfloat16", "float16"):
        ATTACHED.settings[f"MoE tiles, {size}"] = f"one tile for any batch: in {dtype} a tile may decide bits"
        return
    found = moe_check.evidence(tiles(E, N), dtype)
    _asked[E, N] = found.verdict == "certified"
    chosen = "vLLM's tuned tiles" if _asked[E, N] else "one tile for any batch"
    ATTACHED.settings[f"MoE tiles, {size}"] = (
        f"{chosen}: {found.verdict} {found.created[:10]}: {found.detail}"
    )
    if not _asked[E, N]:
        log.warn(f"experts ({size}) keep vLLM's one tile: {found.detail}")


def tiles(E: int, N: int) -> list[dict[str, int]]:
    """Every tile that default mode would use for experts of this size, each once; the table's, or the default ones."""
    module = sys.modules[HOME]
    table = _in_default_mode(unwrapped(module.get_moe_configs))(E, N, None, None, None)
    default = _in_default_mode(unwrapped(module.get_default_config))
    listed = list(table.values()) if table else [default(M, E, N, 2 * N, 8, None, None) for M in ROWS]
    return [json.loads(text) for text in dict.fromkeys(json.dumps(tile, sort_keys=True) for tile in listed)]
