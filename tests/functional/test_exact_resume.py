"""What a run is fed does not depend on workers, data-parallel ranks and interruptions."""

import copy

import pytest

from tests.distributed.harness import run_ranks
from tests.functional.runs import train_recorded


def fed(results, steps):
    """Step -> the rows of all ranks, without fillers, in a fixed order."""
    return {
        step: sorted(row for r in results for row in r.fed.get(step, []) if row[0] != ("(filler)",)) for step in steps
    }


@pytest.fixture
def config(run_config):
    """Small steps of uneven rows, over the end of an epoch of 16 samples."""
    config = run_config(training={"train_iters": 8, "global_batch_size": 5})
    config.data.source_weights = {"colours": 1.0}
    config.data.shuffle, config.data.shuffle_window = "shards", 5
    config.checkpoint.save_interval = 3
    return config


@pytest.fixture
def undisturbed(config):
    alone = copy.deepcopy(config)
    alone.checkpoint.save = None
    return fed(run_ranks(train_recorded, 1, alone), range(1, 9))


def test_stop_and_continue_with_other_workers_and_ranks(config, undisturbed):
    config.training.exit_iter, config.data.num_workers = 4, 2
    first = run_ranks(train_recorded, 1, config)
    config.training.exit_iter, config.data.num_workers = None, 1
    second = run_ranks(train_recorded, 3, config)
    assert fed(first, range(1, 5)) | fed(second, range(5, 9)) == undisturbed


def test_kill_in_the_middle_of_a_step(config, undisturbed):
    config.data.num_workers = 1
    with pytest.raises(AssertionError, match="died without a word"):
        run_ranks(train_recorded, 2, config, 5)
    config.data.num_workers = 2
    after = run_ranks(train_recorded, 1, config)
    assert min(after[0].fed) == 4  # the step after the last checkpoint
    assert fed(after, range(4, 9)) == {step: undisturbed[step] for step in range(4, 9)}
