# SPDX-License-Identifier: Apache-2.0
"""What torch keeps bits in by itself, and what is said of the rest.

Names of functions, without the underscore of an in-place one and the underscores of an operator. Two kinds of
functions are here: those that move, choose, compare, count or create numbers, and those whose every result is one
correctly rounded operation of IEEE 754 (or a few, each rounded to the dtype) on the elements at one place. Such a
result is the same in a vector loop, its remainder and a compiled graph; ``tests/test_covering_table.py`` compares
them. Everything else is covered (``table.py``) or reported.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from ir_core import policy as policies
from ir_core.errors import UncoveredError

logger = logging.getLogger("ir_core")

_MOVES: Final = """
    alias as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cartesian_prod
    cat chunk clone concat concatenate contiguous copy_ cpu cuda data detach diag diag_embed diagonal
    diagonal_scatter dsplit dstack expand expand_as fill flatten flip fliplr flipud gather getitem setitem
    hsplit hstack index_copy index_fill index_put index_select masked_fill masked_scatter masked_select meshgrid
    moveaxis movedim narrow narrow_copy one_hot pad permute pin_memory pixel_shuffle pixel_unshuffle ravel
    repeat repeat_interleave reshape reshape_as resize resize_as roll rot90 scatter select select_scatter set
    slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile
    to transpose tril triu type type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze vander view
    view_as view_as_complex view_as_real vsplit vstack where zero H T mH mT real imag conj resolve_conj
    resolve_neg adjoint unpad_sequence pad_sequence matrix_transpose channel_shuffle copy share_memory embedding
"""
_MAKES: Final = """
    arange empty empty_like empty_strided empty_permuted eye from_numpy frombuffer full full_like linspace
    new_empty new_empty_strided new_full new_ones new_tensor new_zeros ones ones_like rand rand_like randint
    randint_like randn randn_like randperm scalar_tensor tensor asarray as_tensor tril_indices triu_indices
    zeros zeros_like normal uniform bernoulli random Generator manual_seed trunc_normal_ kaiming_uniform_
    xavier_uniform_
"""
_CASTS: Final = """
    bool byte char short int long half bfloat16 float double item tolist numpy dequantize
"""
_ASKS: Final = """
    abs absolute all allclose amax amin aminmax any argmax argmin argsort argwhere bincount bitwise_and
    bitwise_not bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift bucketize clamp clamp_max
    clamp_min clip count_nonzero cummax cummin eq equal fmax fmin ge greater greater_equal gt histc isclose
    isfinite isin isinf isnan isneginf isposinf isreal kthvalue le less less_equal logical_and logical_not
    logical_or logical_xor lt max maximum median min minimum mode msort nan_to_num ne neg negative nonzero
    not_equal positive relu relu6 hardtanh searchsorted sgn sign signbit sort threshold topk tril_ unique
    unique_consecutive and or xor invert lshift rshift rand ror rxor max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d ceil floor round trunc fix frac nanmedian
    copysign nextafter heaviside histogram
"""
_ROUNDS: Final = """
    add radd sub subtract rsub mul multiply diff rmul div divide true_divide truediv rtruediv floor_divide floordiv
    rfloordiv mod square reciprocal leaky_relu prelu rdiv iadd isub imul idiv itruediv
"""
_TELLS: Final = """
    get backward data_ptr dim ndimension nelement numel element_size size stride storage storage_offset
    untyped_storage len bool index contains is_complex is_contiguous is_floating_point is_inference is_leaf
    is_same_size is_set_to is_shared is_signed is_tensor is_nonzero is_pinned is_conj is_neg is_storage
    has_names names requires_grad_ requires_grad retain_grad register_hook register_post_accumulate_grad_hook
    repr format str hash iter reversed deepcopy reduce_ex reduce dir setstate dlpack dlpack_device array
    array_wrap result_type can_cast promote_types get_device set_grad_enabled record_stream is_autocast_enabled
    get_default_dtype finfo iinfo broadcast_shapes set_default_dtype is_cuda is_cpu is_grad_enabled
    is_autocast_cache_enabled wait wait_tensor assert assert_async sym_size sym_numel sym_stride
    clear_autocast_cache autocast_increment_nesting autocast_decrement_nesting is_any_autocast_enabled
    get_autocast_dtype set_autocast_enabled set_autocast_dtype set_autocast_cache_enabled manual_seed
    synchronize get_autocast_gpu_dtype enter exit set del delete shape dtype device sizes mark_static
    mark_dynamic mark_unbacked maybe_mark_dynamic set_ namedtensor grad is_distributed
"""
_SENDS: Final = """
    all_gather all_gather_into_tensor all_gather_single all_to_all all_to_all_single broadcast scatter wait_tensor
    wrap_tensor_autograd barrier
"""
"""Collectives that move numbers between ranks and add none; a reducing one has an order of the library's own."""
INVARIANT: Final = frozenset(
    name
    for text in (_MOVES, _MAKES, _CASTS, _ASKS, _ROUNDS, _TELLS, _SENDS)
    for word in text.split()
    for name in (word, word.rstrip("_"))
)

_SETTERS: Final = (
    "_is_",
    "_has_",
    "_set_",
    "_get_",
    "_use_",
    "_make_",
    "_unsafe_set_",
    "_assert_",
    "_nested_",
)
"""How torch's private functions begin that compute nothing."""

_said: set[str] = set()
_judged: dict[Any, bool] = {}
_lock = threading.Lock()


def name_of(func: Any) -> str:
    """The bare name of a function of torch: ``matmul`` for ``Tensor.__matmul__``, ``add`` for ``Tensor.add_``."""
    name = getattr(func, "_opname", None) or getattr(func, "__name__", None) or str(func)
    return str(name).strip("_")


def _spoken(func: Any) -> str:
    module = getattr(func, "__module__", None) or ""
    name = getattr(func, "__name__", None) or str(func)
    owner = getattr(func, "__objclass__", None)
    if owner is not None:
        return f"torch.Tensor.{name}"
    return f"{module}.{name}" if module else f"torch.{name}"


def keeps_bits(func: Any) -> bool:
    """Whether torch's own ``func`` gives bits that do not depend on the batch."""
    known = _judged.get(func)
    if known is None:
        ours = getattr(func, "namespace", None) == "ir_core"
        asks = str(getattr(func, "__name__", "")).startswith(_SETTERS)
        known = _judged[func] = ours or asks or name_of(func) in INVARIANT
    return known


def notice(func: Any) -> None:
    """Say once that the mode does not cover ``func``, unless it keeps bits by itself.

    Raises:
        UncoveredError: the policy is strict.
    """
    if not keeps_bits(func):
        report(_spoken(func))


def report(name: str, why: str = "it is no function that is known to keep them by itself") -> None:
    """Say once that ``name`` runs as torch has it, without a promise about its bits.

    Raises:
        UncoveredError: the policy is strict.
    """
    what = f"batch_invariant_mode does not cover {name}: its bits may depend on the batch"
    if policies.current().strict:
        raise UncoveredError(
            f"{what}.", why=f"{why[0].upper()}{why[1:]}.", fix="Replace it, or drop IR_STRICT (strict=True)."
        )
    with _lock:
        if name in _said:
            return
        _said.add(name)
    logger.warning("%s; %s. IR_STRICT=1 makes this an error.", what, why)


def said() -> tuple[str, ...]:
    """The functions that were reported in this process, in order of name."""
    return tuple(sorted(_said))


def forget() -> None:
    """Report each function anew."""
    with _lock:
        _said.clear()


notice._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it leaves nothing in a trace
report._dynamo_marked_constant = True  # type: ignore[attr-defined]
