# SPDX-License-Identifier: Apache-2.0
"""What an audit costs over the model's own run, and what it finds in a decoder with the shapes of a Qwen3.

    python benchmarks/audit.py                    # small shapes on a CPU, Qwen3-8B's where there is a GPU
    python benchmarks/audit.py --tokens 1         # one token a row: the smallest calls, where an audit costs most

The decoder is a few layers of norms, grouped attention and a gated feed-forward block, with random weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ir_core.auditing import audit

ROUNDS = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    name: str
    hidden: int
    heads: int
    groups: int
    head: int
    inner: int
    layers: int
    rows: int
    tokens: int


CPU = Shape("small", hidden=512, heads=8, groups=4, head=64, inner=1536, layers=4, rows=32, tokens=64)
GPU = Shape(
    "Qwen3-8B", hidden=4096, heads=32, groups=8, head=128, inner=12288, layers=4, rows=64, tokens=1024
)


class Layer(nn.Module):
    """One layer, as in a Qwen3."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, wide, narrow = shape, shape.heads * shape.head, shape.groups * shape.head
        self.before, self.between = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.q_norm, self.k_norm = nn.RMSNorm(shape.head), nn.RMSNorm(shape.head)
        self.q_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden, bias=False)
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], -1, self.shape.head)
        y = self.before(x)
        q = self.q_norm(self.q_proj(y).view(split)).transpose(1, 2)
        k = self.k_norm(self.k_proj(y).view(split)).transpose(1, 2)
        v = self.v_proj(y).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """How long one call takes, the device's work included, and what it returns."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=0, help="tokens a row, instead of the shape's")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch on a CPU")
    parser.add_argument("--layers", type=int, default=0, help="layers, instead of the shape's")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, shape = ("cuda", GPU) if torch.cuda.is_available() else ("cpu", CPU)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokens, layers = options.tokens or shape.tokens, options.layers or shape.layers
    torch.manual_seed(0)
    with torch.device(device):
        model = nn.Sequential(*(Layer(shape) for _ in range(layers))).to(dtype)
        x = torch.randn(shape.rows, tokens, shape.hidden, dtype=dtype)
    runs, times = [], []
    for _ in range(ROUNDS + 1):  # they alternate, so that noise hits both
        with torch.no_grad():
            runs.append(seconds(lambda: model(x), device)[0])
        took, report = seconds(lambda: audit(model, x, rows=(1, 2, 8)), device)
        times.append(took)
    own, times = min(runs[1:]), times[1:]  # the first of each warms up
    cost = min(times) / own
    print(report.explain())
    print(f"the model {own * 1e3:.1f} ms, the audit {min(times) * 1e3:.1f} ms: {cost:.2f} times")
    found = {
        "shape": {**vars(shape), "tokens": tokens, "layers": layers},
        "model_milliseconds": own * 1e3,
        "audit_milliseconds": min(times) * 1e3,
        "times": cost,
        "findings": [
            json.loads(json.dumps(one.to_dict()).replace(f"{common.RESULTS.parents[1]}/", ""))
            for one in report.findings
        ],
    }
    print(f"Wrote {common.save(f'audit_{device}' + '_one_token' * (tokens == 1), found)}.")


if __name__ == "__main__":
    main()
