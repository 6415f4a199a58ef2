"""The ranking of layouts, and what it says."""

from dataclasses import replace

import pytest

from megatron_focus.config.schema import ModelConfig, ParallelConfig, RunConfig
from megatron_focus.config.validation import validate
from megatron_focus.planning.chunks import chunks_of
from megatron_focus.planning.estimate import estimate
from megatron_focus.planning.hardware import GPUS, Cluster
from megatron_focus.planning.parameters import chunk_bytes
from megatron_focus.planning.remedies import remedies
from megatron_focus.planning.search import search
from megatron_focus.planning.workload import Workload, assumed_sample, workload

CLUSTER = Cluster(gpu=GPUS["a100-80gb"], gpus=16)


def load_of(config: RunConfig) -> Workload:
    return workload(config, [assumed_sample(480, 640, 200, 100, 80, config.model.image)], 0.435, 0.75, "assumed")


def llama(**parallel) -> RunConfig:
    return RunConfig(model=ModelConfig(transformer_impl="transformer_engine"), parallel=ParallelConfig(**parallel))


@pytest.fixture(scope="module")
def ranked():
    return search(llama(), load_of, CLUSTER)


def test_every_layout_is_one_that_validation_accepts(ranked):
    assert len(ranked) > 10
    for each in ranked:
        config = each.estimate.config
        validate(replace(config, model=replace(config.model, transformer_impl="local")), CLUSTER.gpus)


def test_those_that_fit_come_first_and_faster_ones_before_slower(ranked):
    fits = [each.estimate.fits for each in ranked]
    assert fits == sorted(fits, reverse=True) and fits[0]
    seconds = [each.estimate.time.total for each in ranked if each.estimate.fits]
    assert seconds == sorted(seconds)


def test_every_layout_but_the_best_has_a_reason_to_lose(ranked):
    assert ranked[0].reason == ""
    assert all(each.reason for each in ranked[1:])
    for each in ranked[1:]:
        if each.estimate.fits:
            said = each.estimate.time.total - ranked[0].estimate.time.total
            assert each.reason.startswith(f"+{said:.2f} s, most by ")
    across = [each for each in ranked if each.estimate.tensor_parallel_across_nodes and each.estimate.fits]
    assert across and all("tensor-parallel messages across nodes" in each.reason for each in across)


def test_a_group_across_nodes_has_the_cards_of_its_members_there():
    gpu, share = CLUSTER.gpu, CLUSTER.assumptions.link_share
    assert CLUSTER.bandwidth(8, 8) == share * gpu.node_bandwidth
    assert CLUSTER.bandwidth(16, 1) == share * gpu.network_bandwidth
    assert CLUSTER.bandwidth(16, 4) == 4 * share * gpu.network_bandwidth
    assert CLUSTER.bandwidth(16, 100) == share * gpu.node_bandwidth  # no more than NVLink carries

    # A node of eight has two members of a data-parallel group of TP 4, and one of a group of TP 8.
    for tp, cards in ((4, 2), (8, 1)):
        found = estimate(llama(tensor_model_parallel_size=tp), load_of(llama()), CLUSTER)
        seconds = found.messages.data_parallel / (cards * share * gpu.network_bandwidth)
        assert found.time.data_parallel == pytest.approx(seconds)


def test_a_layout_that_does_not_fit_names_stage_and_bytes():
    ranked = search(llama(), load_of, replace(CLUSTER, gpus=2, gpu=GPUS["a100-40gb"]))
    assert not ranked[0].estimate.fits
    assert all(each.reason.startswith("does not fit: stage ") and "GiB" in each.reason for each in ranked)


def test_what_would_help_does_help():
    cluster = replace(CLUSTER, gpus=2)
    config = llama()
    said = remedies(config, load_of, cluster, search(config, load_of, cluster))
    assert any("GPUs of the same kind" in line for line in said)
    count = int(said[0].split(" ", 1)[0])
    assert search(config, load_of, replace(cluster, gpus=count))[0].estimate.fits


def test_the_step_is_the_slowest_stage_for_every_row_and_what_comes_beside_it(ranked):
    for found in (each.estimate for each in ranked):
        time = found.time
        beside = time.bubble + time.pipeline + time.data_parallel + time.optimizer
        assert min(time.bubble, time.pipeline, time.data_parallel, time.optimizer, time.tensor_parallel) >= 0
        assert time.total == pytest.approx(found.rows_per_replica * max(found.stage_seconds) + beside)
        assert 0 < found.mfu < CLUSTER.assumptions.matmul_share


def test_recomputation_trades_memory_for_time():
    none = estimate(llama(tensor_model_parallel_size=4), load_of(llama()), CLUSTER)
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    full = estimate(llama(tensor_model_parallel_size=4, **full), load_of(llama()), CLUSTER)
    assert full.memory[0].activations < none.memory[0].activations / 3
    assert full.time.recompute > 0 == none.time.recompute
    assert full.flops == pytest.approx(none.flops * 4 / 3, rel=0.05)


def test_messages_that_overlap_cost_less():
    reduced, gathered = {"overlap_grad_reduce": True}, {"overlap_grad_reduce": True, "overlap_param_gather": True}
    plain, one, both = (
        estimate(llama(tensor_model_parallel_size=4, **how), load_of(llama()), CLUSTER).time.data_parallel
        for how in ({}, reduced, gathered)
    )
    assert plain > one > both


def test_the_distributed_optimizer_shards_its_state_alone():
    config = llama()
    (chunk,) = chunks_of([32])
    one, eight = (chunk_bytes(config, chunk, size) for size in (1, 8))
    assert eight.optimizer == pytest.approx(one.optimizer / 8, rel=1e-3)
    assert (eight.parameters, eight.gradients) == pytest.approx((one.parameters, one.gradients), rel=1e-3)
    # Llama-3-8B, its tower and its projector: 8.03 B + 0.29 B + 0.02 B, as published and as CLIP ViT-L/14 has.
    assert one.trained == pytest.approx(8.34e9, rel=0.01)
