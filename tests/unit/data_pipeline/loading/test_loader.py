import dataclasses
import json
from collections import Counter
from itertools import pairwise

import pytest
import torch

from data_pipeline.config import ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.loader import StepLoader
from data_pipeline.loading.steps import LoaderState
from data_pipeline.row import IGNORE_INDEX
from tests.unit.data_pipeline.loading.loader_steps import (
    BATCH,
    BUDGET,
    batches,
    ids,
    same_row,
    same_steps,
    steps,
    worst_case,
)


def test_every_sample_once_an_epoch_in_rows_within_budget(make, small_geometry):
    seen = Counter()
    for batch in batches(make(packing_estimate="baseline"), 24):  # 24 * 7 samples are 7 epochs of 24
        seen.update(ids(batch))
        assert batch.report.samples_by_source == {"llava": BATCH} and not batch.report.skipped
        assert all(worst_case(row, small_geometry) <= BUDGET for row in batch.rows)
    assert seen == {f"s{number}": 7 for number in range(24)}


def test_what_the_sampler_keeps_lets_more_samples_into_a_row(make, small_geometry):
    """Steps 0 to 4 are packed before anything is known; then ever fuller, never beyond the worst case."""
    learnt = batches(make(worst_case_factor=2.0, batch=24), 24)
    careful = batches(make(packing_estimate="baseline", batch=24), 24)
    assert [sorted(ids(batch)) for batch in learnt] == [sorted(ids(batch)) for batch in careful]
    rows, careful_rows = ([len(batch.rows) for batch in got] for got in (learnt, careful))
    assert rows[:5] == careful_rows[:5]
    assert sum(rows[12:]) <= 0.8 * sum(careful_rows[12:])
    fullest = max(worst_case(row, small_geometry) for batch in learnt for row in batch.rows)
    assert BUDGET < fullest <= 2 * BUDGET


def test_rows_are_well_formed(make, tokenizer, prepared):
    keys = dict(zip(Manifest.load(prepared).ids.to_pylist(), Manifest.load(prepared).keys.tolist(), strict=True))
    for batch in batches(make(), 4):
        for row in batch.rows:
            bounds = row.cu_seqlens.tolist()
            assert bounds[0] == 0 and bounds[-1] == len(row.tokens) == len(row.labels) == len(row.user_turn)
            assert row.num_samples == len(row.sample_ids) == len(row.sample_keys)
            assert row.sample_keys.tolist() == [keys[id] for id in row.sample_ids]
            assert (row.tokens == tokenizer.image_token_id).sum() == len(row.grids) == len(row.image_sizes)
            assert len(row.tiles) == int((row.grids.prod(1) + 1).sum())
            assert row.tiles.shape[1:] == (3, 112, 112) and row.tiles.dtype == torch.uint8
            for begin, end in pairwise(bounds):
                assert row.tokens[begin] == tokenizer.bos_token_id and row.labels[end - 1] == IGNORE_INDEX
                learnt = begin + torch.nonzero(row.labels[begin:end] != IGNORE_INDEX).flatten()
                assert len(learnt) and torch.equal(row.labels[learnt], row.tokens[learnt + 1])


def test_step_holds_the_samples_that_the_order_says(make, prepared):
    manifest, loader = Manifest.load(prepared), make()
    for number, batch in enumerate(batches(loader, 5)):
        expected = [manifest.id(i) for i in loader.planner.order.take(number * BATCH, BATCH)]
        assert sorted(ids(batch)) == sorted(expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(make, workers):
    assert same_steps(steps(make(), 9), steps(make(num_workers=workers), 9))


def test_resume_is_bit_equal(make):
    """The state of any step gives the next ones: across the end of an epoch, with other workers, through JSON."""
    whole = steps(make(), 12)
    for done in (1, 3, 4, 9):
        stored = json.loads(json.dumps(dataclasses.asdict(whole[done - 1][1])))
        resumed = make(state=LoaderState(**stored), num_workers=2 if done == 3 else 0)
        assert same_steps(whole[done:], steps(resumed, 12 - done))


def test_state_is_small(make):
    assert len(json.dumps(dataclasses.asdict(steps(make(), 1)[0][1]))) < 500


@pytest.mark.parametrize("size", [2, 3, 16])
def test_ranks_share_the_rows_of_a_step(make, size):
    """Resumed with another number of ranks: same rows, dealt differently, and fillers where a rank has none."""
    state = steps(make(), 6)[-1][1]
    alone = steps(make(state=state), 3)
    ranks = [steps(make(rank=rank, size=size, state=state), 3) for rank in range(size)]
    for number, (whole, after) in enumerate(alone):
        shares = [rank[number][0] for rank in ranks]
        assert all(share.rows for share in shares) and all(rank[number][1] == after for rank in ranks)
        rows = [row for share in shares for row in share.rows if row.sample_ids != ["(filler)"]]
        assert len(rows) == len(whole.rows)
        for row in whole.rows:
            assert any(same_row(row, other) for other in rows)
        assert sum((share.report.samples_by_source for share in shares), Counter()) == whole.report.samples_by_source
        fillers = [row for share in shares for row in share.rows if row.sample_ids == ["(filler)"]]
        assert len(fillers) == max(0, size - len(whole.rows))
        assert all(row.loss_tokens == 0 and len(row.tiles) == 0 for row in fillers)


def test_global_batch_may_change_at_a_resume(make):
    state = steps(make(), 2)[-1][1]
    resumed = batches(make(state=state, batch=5), 2)
    following = sorted(ids(resumed[0]) + ids(resumed[1]))
    assert following == sorted(ids(batches(make(state=state, batch=10), 1)[0]))


def test_paper_geometry(make, config):
    loader = StepLoader(
        dataclasses.replace(config, max_sequence_length=6144),
        ImageGeometry(),
        global_batch_size=2,
        data_parallel_rank=0,
        data_parallel_size=1,
    )
    assert loader.next_step().rows[0].tiles.shape[1:] == (3, 336, 336)
    loader.close()
