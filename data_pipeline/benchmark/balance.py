"""How even the ranks of a step are, before and after costs were evened out: a simulation, without a model.

A rank's time is the cost of its rows; a step takes as long as its costliest rank. The spread is that rank's cost
divided by the mean over ranks: 1.03 means that the ranks wait 3 % of the mean for the slowest.

What the samplers keep is known after the step only, so costs are planned with what is expected and the spread is taken
of costs that come out differently (``SURPRISES``). No plan can avoid what that adds.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_pipeline.benchmark.balance_before import plan_before
from data_pipeline.benchmark.balance_mix import assumed_mix
from data_pipeline.benchmark.balance_surprise import SURPRISES, realised_cost
from data_pipeline.benchmark.defaults import SCENARIOS
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.cost import SampleCost
from data_pipeline.loading.packing import assign_rows
from data_pipeline.loading.planning import StepPlanner, StepSamples

KEPT_RATIO = 0.45
"""Share of the visual tokens that the vision-guided sampler keeps on average."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Costliest rank divided by the mean rank, over the steps."""

    mean: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of packing and dealing, on the same steps."""

    spread: dict[str, Spread]
    """By surprise, see ``SURPRISES``."""
    rows_per_rank: float
    """Mean, fillers not counted."""
    fillers: float
    """Fillers, which keep ranks without a row in step, as a share of all rows that run."""
    fill: float
    """Share of the rows' token budget that is expected to be used."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of ranks and one batch."""

    ranks: int
    samples_per_rank: int
    before: Way
    after: Way
    unavoidable: dict[str, Spread]
    """Spread that is left, by surprise, if the expected costs of all ranks were equal to the last digit."""
    faster: dict[str, float]
    """Mean of the old step time divided by the new one, by surprise: the work is the same."""
    plan_seconds: float
    """To plan a step, on average, without the order of the epoch, which is made once."""


@dataclass(frozen=True, kw_only=True)
class BalanceReport:
    """All of them."""

    source: str
    """Where the lengths are from."""
    samples: int
    steps: int
    kept_ratio: float
    max_sequence_length: int
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_balance(
    cost: SampleCost,
    *,
    scenarios: Sequence[tuple[int, int]] = SCENARIOS,
    steps: int = 50,
    manifest: Manifest | None = None,
    geometry: ImageGeometry | None = None,
    max_sequence_length: int = 6144,
    kept_ratio: float = KEPT_RATIO,
    seed: int = 0,
) -> BalanceReport:
    """Plan steps both ways, and draw what comes of them.

    Args:
        cost: of a sample; decides both what is evened out and what is measured.
        scenarios: data-parallel ranks, and samples of a step for each of them.
        steps: steps of each.
        manifest: of a prepared data set; the assumed mix if None.
        geometry: how images are tiled; the paper's if None.
        max_sequence_length: expected tokens of a row.
        kept_ratio: share of the visual tokens that is expected to enter the language model.
        seed: of the order and the surprises.

    Raises:
        ValueError: no sample of the data set fits into ``max_sequence_length``.
    """
    assert steps > 0 and 0 < kept_ratio <= 1
    geometry = geometry or ImageGeometry()
    manifest = assumed_mix(seed) if manifest is None else manifest
    results = []
    with tqdm(total=steps * len(scenarios), unit="step", file=sys.stderr) as bar:
        for ranks, samples_per_rank in scenarios:
            bar.set_description(f"{ranks} ranks, {samples_per_rank} samples each")
            data = DataConfig(
                rows_multiple_of=ranks, max_sequence_length=max_sequence_length, on_bad_sample="skip", seed=seed
            )
            planner = StepPlanner(
                data,
                geometry,
                manifest,
                global_batch_size=ranks * samples_per_rank,
                data_parallel_size=ranks,
                cost=cost,
            )
            results.append(_measure(planner, steps, kept_ratio, seed, bar))
    return BalanceReport(
        source=manifest.folder,
        samples=len(manifest),
        steps=steps,
        kept_ratio=kept_ratio,
        max_sequence_length=max_sequence_length,
        results=results,
    )


def _measure(planner: StepPlanner, steps: int, kept_ratio: float, seed: int, bar: "tqdm[Any]") -> Result:
    random = np.random.default_rng(seed)
    ways = ("before", "after")
    loads: dict[str, dict[str, list[NDArray[np.int64]]]] = {way: {name: [] for name in SURPRISES} for way in ways}
    rows: dict[str, list[int]] = {way: [] for way in ways}
    fillers: dict[str, list[int]] = {way: [] for way in ways}
    tokens, seconds = 0, 0.0
    planner.samples(0, kept_ratio)  # makes the order of the whole epoch
    for step in range(steps):
        place = step * planner.global_batch_size
        started = time.perf_counter()
        samples = planner.samples(place, kept_ratio)
        planned = plan_after(samples, planner)
        seconds += time.perf_counter() - started
        tokens += int(samples.expected.sum())
        costs = {name: realised_cost(planner, samples, place, surprise, random) for name, surprise in SURPRISES.items()}
        for way, ranks in zip(ways, (plan_before(samples, planner), planned), strict=True):
            rank_of = _rank_of_samples(ranks, len(samples.index))
            rows[way].append(sum(map(len, ranks)))
            fillers[way].append(sum(not own for own in ranks))
            for name, cost in costs.items():
                load = np.zeros(planner.num_ranks, dtype=np.int64)
                np.add.at(load, rank_of, cost)
                loads[way][name].append(load)
        bar.update()
    described = {
        way: Way(
            spread={name: _spread(found) for name, found in loads[way].items()},
            rows_per_rank=sum(rows[way]) / (steps * planner.num_ranks),
            fillers=sum(fillers[way]) / (sum(fillers[way]) + sum(rows[way])),
            fill=tokens / (sum(rows[way]) * planner.budget),
        )
        for way in ways
    }
    expected = loads["after"]["none"]
    return Result(
        ranks=planner.num_ranks,
        samples_per_rank=planner.global_batch_size // planner.num_ranks,
        **described,
        unavoidable={
            name: _spread([found / want for found, want in zip(loads["after"][name], expected, strict=True)])
            for name in SURPRISES
        },
        faster={
            name: float(
                np.mean([old.max() / new.max() for old, new in zip(*(loads[w][name] for w in ways), strict=True)])
            )
            for name in SURPRISES
        },
        plan_seconds=seconds / steps,
    )


def plan_after(samples: StepSamples, planner: StepPlanner) -> list[list[NDArray[np.int64]]]:
    """For each rank its rows, as places in ``samples``: what ``StepPlanner.plan`` does."""
    rows = [np.array(row) for row in planner.rows(samples)]
    ranks = assign_rows([int(samples.cost[row].sum()) for row in rows], planner.num_ranks)
    return [[rows[row] for row in own] for own in ranks]


def _rank_of_samples(ranks: list[list[NDArray[np.int64]]], count: int) -> NDArray[np.int64]:
    """int64 [count]; every sample is on one rank."""
    rank_of = np.full(count, -1)
    for rank, rows in enumerate(ranks):
        for row in rows:
            assert (rank_of[row] == -1).all(), "a sample is in one row"
            rank_of[row] = rank
    assert (rank_of >= 0).all(), "the same work both ways"
    return rank_of


def _spread(loads: Sequence[NDArray[Any]]) -> Spread:
    found = [float(load.max() / load.mean()) for load in loads]
    return Spread(mean=float(np.mean(found)), p95=float(np.percentile(found, 95)))
