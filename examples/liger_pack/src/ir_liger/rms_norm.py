# SPDX-License-Identifier: Apache-2.0
"""From ir-core's signature to Liger's."""

from liger_kernel.ops.rms_norm import rms_norm_forward
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """Liger's forward, with statistics in float32 and the product in x's dtype ("llama")."""
    return rms_norm_forward(x.contiguous(), weight, epsilon, 0.0, "llama", None)[0]


def supports(x, weight, epsilon, variance_size=None):  # type: ignore[no-untyped-def]
    """Liger normalises whole rows of up to 65536 elements, by a weight of their dtype."""
    if variance_size is not None:
        return "Liger takes no variance_size"
    if weight is None or weight.dtype != x.dtype:
        return "Liger's product is in x's dtype: the weight must have it"
    return x.shape[-1] <= 65536 or f"Liger takes rows of up to 65536 elements, not {x.shape[-1]}"
