# SPDX-License-Identifier: Apache-2.0
"""attention: from a call to a launch. Providers ``triton_batch_invariant`` (fp16, bf16) and ``triton_fp32``.

One kernel goes over all keys of its rows, or over 512 of them; then a second one merges the parts. Which of the two
runs, and with how many rows a program, depends on the call's sizes, and no bit does.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from ir_core.ops.attention_arguments import call_of
from ir_core.ops.scaled_dot_product import check
from ir_core.ops.tiles64 import prepared_scale
from ir_kernels_triton import attention_config, compat
from ir_kernels_triton.arguments import Launch
from ir_kernels_triton.attention_config import Choice, Shape
from ir_kernels_triton.kernel_spec import TRITON_NAMES, KernelSpec
from ir_kernels_triton.launcher import Kernel, dependent_launch

_INTEGERS: Final = {torch.int32: "i32", torch.int64: "i64"}
_KERNELS: dict[tuple[KernelSpec, int], tuple[Kernel, Launch]] = {}


def attention_batch_invariant(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """Attention in the order of query's dtype; see :func:`ir_core.ops.attention`.

    Raises ArgumentError when the arguments are no call of ``attention``, TypeError for a dtype without a kernel.
    """
    return attend(query, key, value, scale, causal, mask, key_lengths, None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    choice: Choice | None = None,
) -> Tensor:
    """The same, launched as ``choice`` says; ``None``: as ``attention_config`` chooses."""
    check(query, key, value, scale, causal, mask, key_lengths)
    call = call_of(query, key, value, mask, key_lengths)
    if str(query.dtype) not in TRITON_NAMES:
        raise TypeError(f"the Triton attention takes float16, bfloat16 and float32, not {query.dtype}")
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    if not out.numel():
        return out
    if not call.keys or not query.shape[-1]:
        if call.keys:  # scores of no products are zero: the mean of the values
            query, key = (t.new_zeros((*t.shape[:-1], 16)) for t in (query, key))
        else:
            return out.zero_()
    query, factor = prepared_scale(query, scale)
    query, key, value = (_rows(t) for t in (query, key, value))
    if mask is not None:
        whole = (call.batch, call.heads, call.queries, call.keys)
        mask = mask.expand((*query.shape[:0], *call.leading, *whole[1:])).reshape(whole).view(torch.uint8)
    if key_lengths is not None:
        key_lengths = call.lengths(key_lengths).contiguous()
    interpreted = _interpreted()
    shape = Shape(
        dtype=TRITON_NAMES[str(query.dtype)],
        d=query.shape[-1],
        c=value.shape[-1],
        group=call.heads // call.groups,
        causal=causal and call.queries > 1,
        mask=mask is not None,
        lengths=None if key_lengths is None else _INTEGERS[key_lengths.dtype],
        aligned=all(_aligned(t) for t in (query, key, value)),
        pdl=dependent_launch(query.device),
        interpret=interpreted,
    )
    rows, matrices = call.queries * shape.group, call.batch * call.groups
    if choice is None:
        choice = attention_config.choose(shape, rows, call.keys, matrices)
    operands = (
        query,
        key,
        value,
        query if mask is None else mask,
        query if key_lengths is None else key_lengths,
    )
    sizes = (rows, call.keys, call.queries, call.groups)
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    strides += (0, 0, 0, 0) if mask is None else tuple(mask.stride())
    with torch.cuda.device(query.device) if query.is_cuda else _Nothing():
        programs = matrices * -(-rows // choice.BM)
        if not choice.parts:
            _launch(attention_config.rows_spec(shape, choice), query.device, programs,
                    (*operands, out, out, out), (*sizes, *strides, factor))  # fmt: skip
            return out
        parts = -(-call.keys // attention_config.PART_KEYS)
        c = query.new_empty((matrices, parts, rows, value.shape[-1]), dtype=torch.float32)
        m, sums = query.new_empty((2, matrices, parts, rows), dtype=torch.float32)
        _launch(attention_config.rows_spec(shape, choice), query.device, programs * parts,
                (*operands, c, m, sums), (*sizes, *strides, factor))  # fmt: skip
        spec = attention_config.merge_spec(shape)
        programs = matrices * -(-rows // dict(spec.constants)["BR"])
        _launch(spec, query.device, programs, (c, m, sums, out, operands[4]), sizes)
    return out


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _launch(
    spec: KernelSpec,
    device: torch.device,
    programs: int,
    tensors: tuple[Tensor, ...],
    numbers: tuple[Any, ...],
) -> None:
    """Launch a kernel on its device, which is the current one."""
    key = spec, -1 if device.index is None else device.index
    if key not in _KERNELS:
        made = Kernel(spec, device)
        _KERNELS[key] = made, made.prepare_here(spec.names, {})
    kernel, launch = _KERNELS[key]
    launch(programs, *map(kernel.pointer, tensors), *numbers)


def _interpreted() -> bool:
    from ir_kernels_triton import attention_kernel

    return compat.is_interpreted(attention_kernel.attention_rows)


def _rows(t: Tensor) -> Tensor:
    """``[B, H, M, X]`` with contiguous rows; a copy only where there is no such view."""
    if t.dim() != 4:
        t = t.reshape(-1, *t.shape[-3:])
    return t if t.stride(3) == 1 or t.shape[3] == 1 else t.contiguous()


def _aligned(t: Tensor) -> bool:
    """Whether each row starts at a multiple of 16 bytes, and is a multiple of 16 bytes long."""
    step = 16 // t.element_size()
    strides = (stride for stride, size in zip(t.stride()[:3], t.shape[:3], strict=True) if size > 1)
    return t.data_ptr() % 16 == 0 and t.shape[3] % step == 0 and all(stride % step == 0 for stride in strides)
