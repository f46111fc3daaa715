# SPDX-License-Identifier: Apache-2.0
"""Mutants whose bits depend on how many rows there are, where a row stands, or what the other rows hold."""

import torch
from torch import Tensor

from mutants import Mutant, blocked_sum, finish, mixed, norm, rows_of


def _block_size_by_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 1024 if rows_of(x) < 256 else 256)


def _split_by_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    square = x32 * x32
    if (
        rows_of(x) <= 16 and x.shape[-1] >= 64
    ):  # too few rows to fill the device: split each over two programs
        half = x.shape[-1] // 2
        total = blocked_sum(square[..., :half], 64) + blocked_sum(square[..., half:], 64)
    else:
        total = blocked_sum(square, 64)
    return finish(x32, total, weight, epsilon, x.dtype)


def _two_pass_for_one_row(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if rows_of(x) == 1 else 64)


def _token_bucket(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    bucket = 1 << (rows_of(x) - 1).bit_length()
    tuned = {1: 32, 2: 32, 4: 64, 8: 64, 16: 64, 32: 64, 64: 128}
    return norm(x, weight, epsilon, tuned.get(bucket, 128))


def _row_parity(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return mixed(x, weight, epsilon, torch.arange(rows_of(x)) % 2 == 1)


def _tile_edge(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    rows = rows_of(x)
    return mixed(x, weight, epsilon, torch.arange(rows) >= rows // 16 * 16)


def _persistent_programs(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return mixed(x, weight, epsilon, torch.arange(rows_of(x)) >= 132)  # second round of 132 programs


def _first_row_of_tile(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return mixed(x, weight, epsilon, torch.arange(rows_of(x)) % 4 == 0)


def _neighbour_nan(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    following = x32.reshape(-1, x.shape[-1]).roll(-1, 0).reshape(x32.shape)
    masked = (
        following[..., : x.shape[-1] % 64 or 8] * 0.0
    )  # loaded past the row's end, multiplied by the mask
    total = blocked_sum(x32 * x32, 64) + masked.sum(-1, keepdim=True)
    return finish(x32, total, weight, epsilon, x.dtype)


def _batch_statistics(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    scale = x32.abs().max().clamp(min=1.0)  # against overflow: of the batch, where it should be of the row
    total = blocked_sum((x32 / scale) * (x32 / scale), 64) * (scale * scale)
    return finish(x32, total, weight, epsilon, x.dtype)


def _shared_exponent(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    rows = x32.reshape(-1, x.shape[-1])
    pairs = rows.abs().amax(-1)
    pairs = torch.maximum(pairs, pairs.roll(1, 0)).clamp(min=1e-6)  # quantisation scale shared by two rows
    pairs = pairs.reshape(*x.shape[:-1], 1)
    total = blocked_sum((x32 / pairs) * (x32 / pairs), 64) * (pairs * pairs)
    return finish(x32, total, weight, epsilon, x.dtype)


def _only_float16(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    if x.dtype == torch.float16 and rows_of(x) < 32:  # packed arithmetic in float16
        low = x.to(torch.float32)
        total = blocked_sum((low * low).to(torch.float16).to(torch.float32), 64)
        return finish(low, total, weight, epsilon, x.dtype)
    return norm(x, weight, epsilon)


def _above_8192_columns(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.shape[-1] > 8192
    return norm(x, weight, epsilon, 1024 if wide and rows_of(x) < 4 else 4096 if wide else 64)


def _beyond_32768_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return norm(x, weight, epsilon, 16 if rows_of(x) > 2**15 else 64)


def _padded_mean(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    n = x.shape[-1]
    padded = -(-n // 64) * 64
    return finish(x32, blocked_sum(x32 * x32, 64) * (n / padded), weight, epsilon, x.dtype)


def _rstd_in_bfloat16(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x32 = x.to(torch.float32)
    mean = blocked_sum(x32 * x32, 64) / x.shape[-1]
    rstd = (1.0 / torch.sqrt(mean + epsilon)).to(torch.bfloat16).to(torch.float32)
    return (x32 * rstd * weight.to(torch.float32)).to(x.dtype)


MUTANTS = [
    Mutant(
        "block_size_by_rows",
        _block_size_by_rows,
        "block of 1024 below 256 rows, of 256 from there on",
        ("rows",),
        "vLLM #48271",
    ),
    Mutant(
        "split_by_rows",
        _split_by_rows,
        "splits the reduction when there are few rows",
        ("rows",),
        "pytorch #180832",
    ),
    Mutant(
        "two_pass_for_one_row",
        _two_pass_for_one_row,
        "a lone row takes another path",
        ("rows",),
        "ATen on CPU",
    ),
    Mutant("token_bucket", _token_bucket, "tuned configurations by bucket of rows", ("rows",), "vLLM #54243"),
    Mutant("row_parity", _row_parity, "odd rows are summed in another order", ("position",)),
    Mutant("tile_edge", _tile_edge, "the rows of the last, partial tile take a masked path", ("position",)),
    Mutant(
        "first_row_of_tile", _first_row_of_tile, "the first row of a tile is loaded otherwise", ("position",)
    ),
    Mutant(
        "persistent_programs", _persistent_programs, "rows of the second round of programs", ("position",)
    ),
    Mutant(
        "neighbour_nan", _neighbour_nan, "a masked lane reads the next row: NaN * 0 is NaN", ("neighbours",)
    ),
    Mutant("batch_statistics", _batch_statistics, "scales by the maximum of the batch", ("neighbours",)),
    Mutant("shared_exponent", _shared_exponent, "one scale for two adjacent rows", ("neighbours",)),
    Mutant("only_float16", _only_float16, "another arithmetic for few rows, in float16 only", ("rows",)),
    Mutant(
        "above_8192_columns", _above_8192_columns, "another block for few rows, above 8192 columns", ("rows",)
    ),
    Mutant(
        "beyond_32768_rows", _beyond_32768_rows, "a kernel of its own beyond 2**15 rows", ("rows",), "Liger"
    ),
    Mutant("padded_mean", _padded_mean, "the mean counts the padding", ("numerics",)),
    Mutant("rstd_in_bfloat16", _rstd_in_bfloat16, "keeps the statistic in bfloat16", ("numerics",)),
]
