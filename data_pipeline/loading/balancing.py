"""Dividing items among bins so that the loads are even and no bin holds more than it may.

Known rules: the longest-processing-time rule (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969) or
best-fit decreasing (D. S. Johnson, Near-optimal bin packing algorithms, 1973), then moves and swaps between full and
empty bins. All take a bounded number of steps, never a bounded time, and compute with whole numbers, so that every rank
comes to the same result.

Shapes: n items, b bins; k places for the items of a bin.
"""

import bisect
import heapq

import numpy as np
from numpy.typing import NDArray

PAIRS = 64
"""Pairs of bins that a round of swaps looks at."""
ROUNDS = 32
"""Rounds at most."""
PATIENCE = 2
"""Rounds that gain next to nothing after which no more is expected."""
GAIN = 200
"""A round gains something if the fullest bin falls by at least 1 / 200."""
EVEN = 100
"""It is even enough when the fullest bin is within 1 / 100 of the mean: content moves costs by more (README.md)."""
LOOKED_AT = 24
"""Items of a bin that are tried for a swap: the largest, from which it has most to gain."""

_NEVER = np.iinfo(np.int64).max


def largest_first(
    cost: NDArray[np.int64], num_bins: int, size: NDArray[np.int64], room: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The costliest item first, each to the emptiest bin that has room for it.

    Args:
        cost: int64 [n], what is to be even; at least 1.
        num_bins: b.
        size: int64 [n, 2], room of two kinds that each item takes.
        room: int64 [2], room of a bin; every item fits into an empty one.

    Returns:
        int64 [n], the bin of each item, or None if one was left for which no bin had room. No bin is empty unless there
        are fewer items.
    """
    # Where costs are equal the largest goes first, as it is the hardest to place; then the order given.
    order = np.lexsort((-size.sum(axis=1), -cost))
    result = np.empty(len(cost), dtype=np.int64)
    first = order[:num_bins]  # to a bin each
    result[first] = np.arange(len(first))
    emptiest = [(0, bin) for bin in range(len(first), num_bins)]
    emptiest += zip(cost[first].tolist(), range(len(first)), strict=True)
    heapq.heapify(emptiest)
    free = np.repeat(room[None], num_bins, axis=0)
    free[: len(first)] -= size[first]
    (one, other), rest = free.T.tolist(), order[num_bins:]
    bins = []
    for load, need, need_other in zip(cost[rest].tolist(), *size[rest].T.tolist(), strict=True):
        passed = []
        while emptiest and (one[emptiest[0][1]] < need or other[emptiest[0][1]] < need_other):
            passed.append(heapq.heappop(emptiest))
        if not emptiest:
            return None
        before, bin = emptiest[0]
        heapq.heapreplace(emptiest, (before + load, bin))
        for entry in passed:
            heapq.heappush(emptiest, entry)
        one[bin] -= need
        other[bin] -= need_other
        bins.append(bin)
    result[rest] = bins
    return result


def best_fit(size: NDArray[np.int64], room: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest item first, each into the fullest bin that has room for it (best-fit decreasing): few bins.

    Args:
        size: int64 [n, 2], room of two kinds that each item takes; what is large and full goes by the kind of which all
            items together take the greater share of a bin's room, by the first where they take the same.
        room: int64 [2], room of a bin; every item fits into an empty one.

    Returns:
        int64 [n], the bin of each item.
    """
    # A bin is searched for by the kind that is scarcer: where that fits, the other mostly does too, so few are passed.
    (total, total_other), (most, most_other) = size.sum(axis=0).tolist(), room.tolist()
    if total_other * most > total * most_other:
        size, most, most_other = size[:, ::-1], most_other, most
    order = np.lexsort((-size[:, 1], -size[:, 0]))
    result = np.empty(len(size), dtype=np.int64)
    bins, opened = [], 0
    free: list[tuple[int, int, int]] = []  # room of both kinds and number of each bin, the fullest first
    for need, need_other in size[order].tolist():
        place = bisect.bisect_left(free, (need, need_other, 0))
        while place < len(free) and free[place][1] < need_other:
            place += 1
        if place < len(free):
            one, other, bin = free.pop(place)
        else:
            one, other, bin, opened = most, most_other, opened, opened + 1
        bisect.insort(free, (one - need, other - need_other, bin))
        bins.append(bin)
    result[order] = bins
    return result


def even_out(
    cost: NDArray[np.int64], bins: NDArray[np.int64], num_bins: int, size: NDArray[np.int64], room: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Moves and swaps of items between the fullest and the emptiest bins, as long as that helps.

    A round pairs them, another way in each round, and makes the best change in every pair at once.

    Args:
        cost: int64 [n], what is to be even.
        bins: int64 [n], the bin of each item.
        num_bins: b.
        size: int64 [n, 2], room of two kinds that each item takes.
        room: int64 [2], room of a bin.

    Returns:
        int64 [n], the new bin of each item.
    """
    bins = bins.copy()
    load = np.zeros(num_bins, dtype=np.int64)
    np.add.at(load, bins, cost)
    free = np.repeat(room[None], num_bins, axis=0)
    np.subtract.at(free, bins, size)
    chosen = min(2 * PAIRS, num_bins - num_bins % 2)
    fullest, idle = _NEVER, 0
    for round in range(ROUNDS if chosen else 0):
        order = np.argsort(load, kind="stable")
        idle += 1
        if load[order[-1]] * GAIN <= fullest * (GAIN - 1):
            fullest, idle = int(load[order[-1]]), 0
        if load[order[-1]] * num_bins * EVEN <= load.sum() * (EVEN + 1) or idle == PATIENCE:
            break
        full, empty = _paired(np.concatenate([order[: chosen // 2], order[-(chosen // 2) :]]), round)
        turned = load[full] < load[empty]
        full, empty = np.where(turned, empty, full), np.where(turned, full, empty)
        give, take, better = _best_changes(cost, size, bins, load, free, full, empty)
        for pair in np.flatnonzero(better).tolist():
            for item, source, target in ((give[pair], full[pair], empty[pair]), (take[pair], empty[pair], full[pair])):
                if item >= 0:
                    bins[item] = target
                    load[source] -= cost[item]
                    load[target] += cost[item]
                    free[source] += size[item]
                    free[target] -= size[item]
    return bins


def _paired(bins: NDArray[np.int64], round: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every bin with another one, in each of ``len(bins) - 1`` rounds with a new one, as in a tournament.

    The last is paired with the first in round 0, the second last with the second, and so on.
    """
    ring = np.concatenate([np.roll(bins[:-1], -round), bins[-1:]])
    half = len(bins) // 2
    return ring[half:][::-1], ring[:half]


def _best_changes(
    cost: NDArray[np.int64],
    size: NDArray[np.int64],
    bins: NDArray[np.int64],
    load: NDArray[np.int64],
    free: NDArray[np.int64],
    full: NDArray[np.int64],
    empty: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """For each pair of bins the item to give and the item to take for it (-1: none), and whether that is better."""
    given, taken = _members(cost, bins, full), _members(cost, bins, empty)
    taken = np.concatenate([taken, np.full((len(empty), 1), -1)], axis=1)  # a move takes nothing back
    none = (taken < 0)[:, None, :]
    gain = cost[given][:, :, None] - np.where(none, 0, cost[taken][:, None, :])
    moved = size[given][:, :, None] - np.where(none[..., None], 0, size[taken][:, None])
    fits = (moved <= free[empty][:, None, None]).all(axis=3) & (-moved <= free[full][:, None, None]).all(axis=3)
    # Several places without an item are one move, and only the last of them is one.
    fits &= (given >= 0)[:, :, None] & ~(none & (np.arange(taken.shape[1]) < taken.shape[1] - 1))
    fullest = np.maximum(load[full][:, None, None] - gain, load[empty][:, None, None] + gain)
    fullest = np.where(fits, fullest, _NEVER).reshape(len(full), -1)
    best = fullest.argmin(axis=1)
    pair = np.arange(len(full))
    give, take = given[pair, best // taken.shape[1]], taken[pair, best % taken.shape[1]]
    return give, take, fullest[pair, best] < load[full]


def _members(cost: NDArray[np.int64], bins: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [len(chosen), k], the items of the chosen bins, the costliest first; -1 where a bin has fewer."""
    place = np.full(max(int(bins.max()), int(chosen.max())) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    items = np.flatnonzero(place[bins] >= 0)
    items = items[np.lexsort((-cost[items], place[bins[items]]))]
    row = place[bins[items]]
    column = np.arange(len(items)) - np.searchsorted(row, row)
    seen = column < LOOKED_AT
    table = np.full((len(chosen), int(column[seen].max(initial=0)) + 1), -1)
    table[row[seen], column[seen]] = items[seen]
    return table
