"""How rows were packed and dealt before costs were evened out; the benchmark compares with it.

Expected tokens were the only measure, and rows were as full as could be.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from data_pipeline.loading.balancing import best_fit
from data_pipeline.loading.planning import StepPlanner, StepSamples


def plan_before(samples: StepSamples, planner: StepPlanner) -> list[list[NDArray[np.int64]]]:
    """For each rank its rows, as places in ``samples``."""
    rows_of = best_fit(
        np.stack([samples.expected, samples.worst], axis=1), np.array([planner.budget, planner.worst_budget])
    )
    order = np.argsort(rows_of, kind="stable")
    rows = np.split(order, np.searchsorted(rows_of[order], np.arange(1, int(rows_of.max()) + 1)))
    tokens = [int(samples.expected[row].sum()) for row in rows]
    ranks: list[list[NDArray[np.int64]]] = [[] for _ in range(planner.num_ranks)]
    loads = [(0, 0, rank) for rank in range(planner.num_ranks)]
    for row in sorted(range(len(rows)), key=lambda r: (-tokens[r], r)):
        load, count, rank = loads[0]
        ranks[rank].append(rows[row])
        heapq.heapreplace(loads, (load + tokens[row], count + 1, rank))
    return ranks
