"""The order of Megatron's schedules, and what is in flight."""

import pytest
from megatron.core.pipeline_parallel.schedules import get_schedule_table

from megatron_focus.planning.schedule import _forward_order, bubble_seconds, peak_in_flight


@pytest.mark.parametrize(("chunks", "stages", "microbatches"), [(2, 2, 4), (2, 4, 8), (4, 4, 12), (3, 2, 2)])
def test_chunks_run_in_the_order_of_megatrons_table(chunks, stages, microbatches):
    table = get_schedule_table(microbatches, chunks, stages)
    assert _forward_order(chunks, stages, microbatches) == [chunk for _, chunk in table]


def test_plain_pipeline_holds_one_microbatch_for_each_stage_behind():
    assert [peak_in_flight([1.0], stage, 4, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert peak_in_flight([1.0], 0, 4, 2) == 2  # no more than there are
    assert peak_in_flight([1.0], 0, 1, 16) == 1


def test_interleaving_holds_more_chunks_as_published():
    # Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.3: the first of p stages holds 1 + (p - 1) / (p v) times
    # the activations of p whole stages.
    stages, chunks = 4, 2
    held = peak_in_flight([0.5, 0.5], 0, stages, 16)
    assert held == pytest.approx(stages * (1 + (stages - 1) / (stages * chunks)))


def test_the_bubble_is_the_other_stages_time_and_shrinks_with_chunks():
    assert bubble_seconds([1.0, 1.0, 1.0, 1.0], 1) == 3.0
    assert bubble_seconds([1.0, 1.0, 1.0, 1.0], 2) == 1.5
    assert bubble_seconds([1.0], 1) == 0.0
