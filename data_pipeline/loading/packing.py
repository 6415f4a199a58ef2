"""Which samples share a row, and which data-parallel rank gets which row.

A step's whole global batch is packed first and its rows are then dealt to the ranks. So a row, which is one microbatch,
holds the same samples whatever the number of ranks, and so do the sums that are taken over a microbatch.
"""

import heapq
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int, worst: Sequence[int], worst_budget: int) -> list[list[int]]:
    """Best-fit decreasing: the longest sample first, each into the fullest row with room for it.

    Args:
        lengths: tokens that each sample is expected to have in the language model.
        budget: expected tokens that a row may hold.
        worst: tokens that each sample has if nothing is compressed; at least its expected tokens.
        worst_budget: such tokens that a row may hold, so that no row outgrows the memory however wrong the expectation.

    Returns:
        Rows of indices into ``lengths``; every index occurs once. Equal lengths keep their order, so the result depends
        on the arguments alone.

    Raises:
        ValueError: a sample exceeds a budget alone.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    worst_room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -worst[i], i)):
        length, most = lengths[index], worst[index]
        if length > budget or most > worst_budget:
            raise ValueError(
                f"item {index} has {length} tokens, {most} at worst, more than the {budget} and {worst_budget} of a row"
            )
        fitting = [r for r, free in enumerate(room) if free >= length and worst_room[r] >= most]
        if fitting:
            row = min(fitting, key=lambda r: (room[r], r))
            rows[row].append(index)
            room[row] -= length
            worst_room[row] -= most
        else:
            rows.append([index])
            room.append(budget - length)
            worst_room.append(worst_budget - most)
    return rows


def assign_rows(row_costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal rows to ranks so that their loads are close: the costliest row first, to the least loaded rank.

    Returns:
        For each rank its row indices, in increasing order. A rank gets none when there are fewer rows than ranks. Ties
        go to the lower row and the lower rank, so the result depends on the arguments alone.
    """
    assert num_ranks > 0
    rows_of_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    # The number of rows breaks ties of load, so that rows without cost spread as well.
    loads = [(0, 0, rank) for rank in range(num_ranks)]
    for row in sorted(range(len(row_costs)), key=lambda r: (-row_costs[r], r)):
        load, count, rank = loads[0]
        rows_of_rank[rank].append(row)
        heapq.heapreplace(loads, (load + row_costs[row], count + 1, rank))
    return [sorted(rows) for rows in rows_of_rank]
