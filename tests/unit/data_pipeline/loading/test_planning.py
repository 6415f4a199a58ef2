"""What share a row, and who gets it."""

import numpy as np
import pytest

from data_pipeline.anyres import plan_tiles
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.cost import SampleCost
from data_pipeline.loading.planning import StepPlanner, tiles_of_samples
from tests.unit.data_pipeline.loading.loader_steps import batches, same_steps, steps

COST = SampleCost(per_tile=30, attention=1e-4, head=0.1, expected_drop=lambda keys, step: drawn(keys, step))


def drawn(keys, step):
    """Another drop for every sample and step."""
    return (keys + step) % 4 / 4, 0.5 + (keys + 3 * step) % 5 / 10


def planner(config, geometry, ranks=1, batch=20, cost=COST, **changes):
    for name, value in changes.items():
        setattr(config, name, value)
    manifest = Manifest.load(config.path)
    return StepPlanner(config, geometry, manifest, global_batch_size=batch, data_parallel_size=ranks, cost=cost)


@pytest.mark.parametrize("multiple", [1, 4, 6])
def test_rows_do_not_depend_on_the_number_of_ranks(config, small_geometry, multiple):
    plans = [planner(config, small_geometry, ranks, rows_multiple_of=multiple).plan(40, 0.5) for ranks in (1, 2, 3, 8)]
    for plan in plans:
        assert plan.rows == plans[0].rows and plan.costs == plans[0].costs
        assert sorted(row for rows in plan.rows_of_rank for row in rows) == list(range(len(plan.rows)))
    assert len(plans[0].rows) % multiple == 0


def test_every_rank_has_as_many_rows_where_the_multiple_is_the_number_of_ranks(config, small_geometry):
    for place in range(0, 100, 20):
        plan = planner(config, small_geometry, 4, rows_multiple_of=4).plan(place, 0.6)
        assert len({len(rows) for rows in plan.rows_of_rank}) == 1


def test_costs_and_tokens_are_those_of_the_samples(config, small_geometry):
    found = planner(config, small_geometry, rows_multiple_of=3, batch=20)
    plan, samples = found.plan(120, 0.5), found.samples(120, 0.5)  # the beginning of an epoch: no sample twice
    place = {index: number for number, index in enumerate(samples.index.tolist())}
    assert sorted(place) == sorted(index for row in plan.rows for index in row)
    for row, cost, expected in zip(plan.rows, plan.costs, plan.expected, strict=True):
        assert cost == sum(samples.cost[place[index]] for index in row)
        assert expected == sum(samples.expected[place[index]] for index in row)
    # The seventh step of 20 samples.
    cost = COST(
        tiles=found.tiles[samples.index],
        text=found.text[samples.index],
        visual=samples.expected - found.text[samples.index],
        labels=found.manifest.loss_tokens[samples.index],
        keys=found.manifest.keys[samples.index],
        step=6,
    )
    assert cost.tolist() == samples.cost.tolist()
    assert (found.manifest.loss_tokens[samples.index] > 0).all()


def test_tiles(config, small_geometry):
    manifest = Manifest.load(config.path)
    tiles, no_cell = tiles_of_samples(manifest, small_geometry)
    assert not no_cell.any()
    for index in range(len(manifest)):
        images = range(manifest.first_image[index], manifest.first_image[index + 1])
        plans = [plan_tiles(int(manifest.heights[i]), int(manifest.widths[i]), small_geometry) for i in images]
        assert tiles[index] == sum(1 + plan.rows * plan.cols for plan in plans)
    assert (tiles == 0).any() and tiles.max() > 5  # text only, and two images


@pytest.mark.parametrize("multiple", [0, -1, 21])
def test_a_multiple_that_cannot_be(config, small_geometry, multiple):
    with pytest.raises(ValueError, match=rf"data\.rows_multiple_of={multiple}: must be 1 to .*global_batch_size=20"):
        planner(config, small_geometry, rows_multiple_of=multiple)


def test_other_settings_of_rows_leave_the_samples_of_a_step_alone(make):
    """So a checkpoint can be continued with another multiple or cost."""
    first = make()
    begun = steps(first, 2)
    state = begun[-1][1]
    unchanged, changed = make(state=state), make(state=state, rows_multiple_of=5)

    def samples(batch):
        return sorted(id for row in batch.rows for id in row.sample_ids)

    for one, other in zip(batches(unchanged, 3), batches(changed, 3), strict=True):
        assert samples(one) == samples(other) and len(other.rows) % 5 == 0


def test_resume_is_exact_with_a_multiple(make):
    whole = steps(make(rows_multiple_of=3), 6)
    state = whole[2][1]
    assert same_steps(whole[3:], steps(make(state=state, rows_multiple_of=3, num_workers=2), 3))


def test_the_load_of_ranks_is_even(config, small_geometry):
    """Of 24 small samples only, so not as even as a large step."""
    spread = {}
    for multiple in (1, 4):
        found = planner(config, small_geometry, 4, batch=24, rows_multiple_of=multiple)
        plans = [found.plan(place, 0.5) for place in range(0, 240, 24)]
        loads = [np.array([sum(plan.costs[row] for row in rows) for rows in plan.rows_of_rank]) for plan in plans]
        spread[multiple] = float(np.mean([load.max() / load.mean() for load in loads]))
    assert spread[4] < 1.03 < spread[1]
