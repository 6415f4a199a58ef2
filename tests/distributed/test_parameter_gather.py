"""``overlap_param_gather`` changes when parameters travel, and nothing that is computed."""

from functools import partial

import pytest
import torch

from megatron_focus.training import build
from tests.distributed.assemble import assemble
from tests.distributed.harness import run_ranks
from tests.distributed.workers import ROWS, configure, run_steps, save_initial_weights

REDUCED = {"overlap_grad_reduce": True}
GATHERED = REDUCED | {"overlap_param_gather": True}
PP2 = {"pipeline_model_parallel_size": 2}
TEXT_FIRST = [ROWS[0], ROWS[3], ROWS[1], ROWS[3], ROWS[2], ROWS[0]]
"""With two data-parallel ranks the second one's first row has no images: its vision tower does not run."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    run_ranks(save_initial_weights, 1, configure(), str(folder))
    return str(folder)


def run_steps_in_small_buckets(config, weights):
    """The tiny model has many buckets then, as a large one has."""
    build.DistributedDataParallelConfig = partial(build.DistributedDataParallelConfig, bucket_size=20_000)
    return run_steps(config, weights, TEXT_FIRST, 3)


@pytest.mark.parametrize(
    ("world_size", "parallel"), [(2, {}), (4, PP2), (4, PP2 | {"virtual_pipeline_model_parallel_size": 2})]
)
def test_gathered_late_equals_gathered_at_once_to_the_bit(world_size, parallel, weights):
    training = {"precision": "bf16"}
    expected, got = (
        run_ranks(run_steps_in_small_buckets, world_size, configure(None, parallel | how, training), weights)
        for how in (REDUCED, GATHERED)
    )
    for one, other in zip(got, expected, strict=True):
        assert one.losses == other.losses and one.grad_norms == other.grad_norms
    a, b = (assemble(result.weights for result in results) for results in (got, expected))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
