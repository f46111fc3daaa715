# SPDX-License-Identifier: Apache-2.0
"""What most likely makes an operation depend on the number of rows, in a sentence, and what covers it here."""

from __future__ import annotations

from typing import Any, Final

import torch

_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "product": (
        *("aten.mm", "aten.addmm", "aten.linear", "aten.mv", "aten.addmv", "aten.dot", "aten._scaled_mm"),
        *("aten.matmul", "aten.mkldnn_linear", "mkldnn._linear_pointwise"),
    ),
    "batched product": ("aten.bmm", "aten.baddbmm"),
    "mean": ("aten.mean",),
    "softmax": ("aten._softmax", "aten.softmax"),
    "log_softmax": ("aten._log_softmax", "aten.log_softmax"),
    "rms_norm": ("aten._fused_rms_norm", "aten.rms_norm"),
    "reduction": (
        *(
            "aten.sum",
            "aten.prod",
            "aten.var",
            "aten.std",
            "aten.var_mean",
            "aten.std_mean",
            "aten.logsumexp",
        ),
        *("aten.norm", "aten.linalg_vector_norm", "aten.cumsum", "aten.cumprod", "aten.native_layer_norm"),
        *("aten.native_group_norm", "aten._native_batch_norm_legit", "aten.index_add", "aten.scatter_add"),
    ),
}
_COVER: Final = {
    "product": "linear",
    "batched product": "bmm",
    "mean": "mean",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
    "rms_norm": "rms_norm",
    "attention": "attention",
}
"""The op of this project that computes the same in an order that no number of rows changes."""


def family(func: Any, name: str) -> str:
    """Which kind of operation it is."""
    plain = name.rstrip("_")
    for kind, names in _FAMILIES.items():
        if plain in names:
            return kind
    if "attention" in plain:
        return "attention"
    if "conv" in plain:
        return "convolution"
    if name == "compiled graph":
        return "compiled"
    if torch.Tag.pointwise in getattr(func, "tags", ()):
        return "element-wise"
    return "custom"


def cause(
    kind: str, name: str, device: str, alone: int, begins: int | None, matrix_rows: int | None, detail: str
) -> str:
    """A sentence.

    Args:
        kind: of :func:`family`.
        alone: rows of the smaller call of the comparison.
        begins: the smallest number of rows with other bits than ``alone``.
        matrix_rows: rows of the matrix in the smaller call, for a product.
        detail: what else is known, appended in brackets.
    """
    since = f" from {begins} rows on" if begins else ""
    library = "cuBLAS" if device == "cuda" else "the matrix library"
    said = {
        "product": f"{library} takes a matrix-vector kernel for one row"
        if matrix_rows == 1 and begins in (2, None)
        else f"{library} splits K or takes another tile{since}",
        "batched product": f"{library} chooses another kernel for the number of matrices{since}",
        "attention": f"the attention kernel splits queries or keys by the number of rows{since}",
        "convolution": f"the convolution takes another algorithm or blocking{since}",
        "element-wise": f"the vector loop and its remainder round differently, and where a row falls depends on the "
        f"number of rows{since}",
        "compiled": f"the compiler generated other kernels, or other loop bounds, for this number of rows{since}",
        "custom": f"the kernel behind {name} chooses by the number of rows{since}",
    }.get(kind, f"the reduction chooses its blocks or threads by the number of rows{since}")
    return said + (f" ({detail})" if detail else "")


def cure(kind: str) -> str:
    """The op of this project that covers it, or that nothing does."""
    import ir_core.ops  # noqa: F401  registers them
    from ir_core.op import IrOp

    name = _COVER.get(kind)
    if name is None or name not in IrOp.registry:
        return "nothing here covers it"
    return f"ir_core.ops.{name} computes it in an order that no number of rows changes"
