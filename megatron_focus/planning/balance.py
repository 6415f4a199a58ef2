"""Decoder layers dealt to pipeline stages so that the slowest stage is as fast as possible.

The vision tower and the projector weigh on the first stage, the head on the last, and layers behind the drop are
cheaper, so an even split is not a balanced one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.chunks import Chunk
from megatron_focus.planning.estimate import chunk_seconds
from megatron_focus.planning.hardware import Cluster
from megatron_focus.planning.workload import RowLoad


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one row, forward and backward."""

    first: float
    """Images, projector, sampler and embedding."""
    last: float
    """Final norm and head."""
    layers: tuple[float, ...]

    def stages(self, sizes: Sequence[int], stages: int) -> list[float]:
        """Seconds of each stage for chunks of these sizes."""
        ends = np.cumsum([0, *sizes])
        chunks = [sum(self.layers[a:b]) for a, b in pairwise(ends)]
        chunks[0] += self.first
        chunks[-1] += self.last
        return [sum(chunks[stage::stages]) for stage in range(stages)]


def layer_costs(config: RunConfig, row: RowLoad, cluster: Cluster) -> Costs:
    """What each part of the model costs under this configuration's tensor parallelism and recomputation."""
    layers = config.model.language.num_layers

    def seconds(start: int, end: int, first: bool = False, last: bool = False) -> float:
        return sum(chunk_seconds(config, Chunk(start=start, end=end, first=first, last=last), row, cluster))

    return Costs(
        first=seconds(0, 0, first=True),
        last=seconds(layers, layers, last=True),
        layers=tuple(seconds(layer, layer + 1) for layer in range(layers)),
    )


def balanced_sizes(costs: Costs, stages: int, chunks_per_stage: int = 1) -> list[int]:
    """Layers of each chunk, at least one: the slowest chunk as fast as possible, then the squares least.

    Dynamic programming over where chunks end, exact for one chunk a stage. For several, layers are then moved between
    neighbouring chunks as long as the slowest stage, which runs several, becomes faster.
    """
    count, layers = stages * chunks_per_stage, len(costs.layers)
    assert count <= layers
    sums = np.concatenate([[0.0], np.cumsum(costs.layers)])
    inner = sums[:, None] - sums  # [end, start]
    inner[np.triu_indices(layers + 1)] = np.inf  # no chunk without a layer
    worst, square = np.full(layers + 1, np.inf), np.full(layers + 1, np.inf)
    worst[0] = square[0] = 0.0
    starts = []
    for chunk in range(count):
        own = inner + (costs.first if chunk == 0 else 0.0) + (costs.last if chunk == count - 1 else 0.0)
        slowest, squares = np.maximum(worst, own), square + own**2
        worst = slowest.min(axis=1)
        squares[slowest > worst[:, None]] = np.inf
        best = squares.argmin(axis=1)
        square = squares[np.arange(layers + 1), best]
        starts.append(best)
    sizes, end = [], layers
    for best in reversed(starts):
        begin = int(best[end])
        sizes.append(end - begin)
        end = begin
    sizes.reverse()
    return sizes if chunks_per_stage == 1 else _improved(costs, sizes, stages)


def _improved(costs: Costs, sizes: list[int], stages: int) -> list[int]:
    """Moves of one layer between neighbouring chunks, as long as one helps."""

    def score(candidate: list[int]) -> tuple[float, float]:
        seconds = costs.stages(candidate, stages)
        return max(seconds), sum(s * s for s in seconds)

    best = score(sizes)
    while True:
        moves = []
        for i in range(len(sizes) - 1):
            for giver, taker in ((i, i + 1), (i + 1, i)):
                if sizes[giver] > 1:
                    moved = list(sizes)
                    moved[giver] -= 1
                    moved[taker] += 1
                    moves.append(moved)
        candidate = min(moves, key=score, default=sizes)
        if score(candidate) >= best:
            return sizes
        sizes, best = candidate, score(candidate)
