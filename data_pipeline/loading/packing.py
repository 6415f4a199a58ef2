"""Which samples share a row, and which data-parallel rank gets which row.

A step's whole global batch is packed first and its rows are then dealt to the ranks. So a row, which is one microbatch,
holds the same samples whatever the number of ranks, and so do the sums that are taken over a microbatch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.loading.balancing import best_fit, even_out, largest_first

Numbers = Sequence[int] | NDArray[np.int64]


def pack(
    cost: Numbers,
    lengths: Numbers,
    budget: int,
    worst: Numbers,
    worst_budget: int,
    multiple: int = 1,
) -> list[list[int]]:
    """As few rows as best fit needs, rounded up to a multiple, with costs as even as can be had.

    Rows are not padded to their budget: the same tokens in a few rows more cost next to nothing, but a rank with a row
    more than the others makes them all wait.

    Args:
        cost: of each sample, at least 1.
        lengths: tokens that each sample is expected to have in the language model.
        budget: expected tokens that a row may hold.
        worst: tokens that each sample has if nothing is compressed; at least its expected tokens.
        worst_budget: such tokens that a row may hold, so that no row outgrows the memory however wrong the expectation.
        multiple: the number of rows is one of this, or that of the samples where it would be greater.

    Returns:
        Rows of indices into ``lengths``, each in increasing order; every index occurs once. They depend on the
        arguments alone.

    Raises:
        ValueError: a sample exceeds a budget alone.
    """
    assert multiple > 0
    costs, size, room = _int64(cost), np.stack([_int64(lengths), _int64(worst)], axis=1), _int64([budget, worst_budget])
    if len(size) == 0:
        return []
    if (exceeding := np.flatnonzero((size > room).any(axis=1))).size:
        length, most = size[exceeding[0]]
        raise ValueError(
            f"item {exceeding[0]} has {length} tokens, {most} at worst, more than the {budget} and {worst_budget} of a "
            "row"
        )
    fewest = best_fit(size, room)
    num_rows = min(-(-(int(fewest.max()) + 1) // multiple) * multiple, len(size))
    rows = largest_first(costs, num_rows, size, room)
    # With next to no room to spare, only the tightest packing is sure to fit; it is evened out as far as room allows.
    rows = fewest if rows is None else rows
    return _grouped(even_out(costs, rows, num_rows, size, room), num_rows)


def assign_rows(row_costs: Numbers, num_ranks: int) -> list[list[int]]:
    """Deal rows to ranks so that their loads are close and their numbers of rows differ by one at most.

    Returns:
        For each rank its row indices, in increasing order. A rank gets none when there are fewer rows than ranks. The
        result depends on the arguments alone.
    """
    assert num_ranks > 0
    if len(row_costs) <= num_ranks:
        return [[row] for row in range(len(row_costs))] + [[] for _ in range(num_ranks - len(row_costs))]
    costs, size = _int64(row_costs), np.ones((len(row_costs), 2), dtype=np.int64)
    room = _int64([-(-len(row_costs) // num_ranks)] * 2)
    ranks = largest_first(costs, num_ranks, size, room)
    assert ranks is not None, "ranks have room for all rows"
    return _grouped(even_out(costs, ranks, num_ranks, size, room), num_ranks)


def _grouped(bins: NDArray[np.int64], num_bins: int) -> list[list[int]]:
    """The members of each bin."""
    order = np.argsort(bins, kind="stable")
    return [part.tolist() for part in np.split(order, np.searchsorted(bins[order], np.arange(1, num_bins)))]


def _int64(values: Numbers) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
