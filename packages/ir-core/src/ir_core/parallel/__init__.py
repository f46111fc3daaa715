# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism with the same bits on 1, 2, 4 and 8 ranks, forward and backward.

A linear layer whose K is split over ranks computes its part of the order ``chain16x8`` on each of them
(``ops.linear_partial``), and the rest of the order's tree over the ranks in their order: never by a library's
all-reduce, whose order depends on the number of ranks, the size and the network. All else that tensor parallelism does
splits outputs, rows or heads, and keeps its order by construction. ``docs/parallel.md`` shows both.

The bits are promised in batch-invariant mode, as those of every op here; outside of it ``native`` computes the parts.
"""

from ir_core.parallel.dtensors import (
    ColwiseParallel,
    OrderedPlans,
    RowwiseParallel,
    linear_of_dtensors,
)
from ir_core.parallel.linears import column_parallel_linear, row_parallel_linear
from ir_core.parallel.summing import ordered_sum

__all__ = [
    "ColwiseParallel",
    "OrderedPlans",
    "RowwiseParallel",
    "column_parallel_linear",
    "linear_of_dtensors",
    "ordered_sum",
    "row_parallel_linear",
]
