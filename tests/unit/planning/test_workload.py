"""Rows of a step."""

from dataclasses import replace

import pytest

from megatron_focus.config.schema import ModelConfig, RunConfig
from megatron_focus.models.flops import decoder_layer_flops, head_flops, vision_flops
from megatron_focus.planning.work import model_flops
from megatron_focus.planning.workload import Sample, assumed_sample, row_load, workload

SAMPLE = assumed_sample(480, 640, 200, 100, 80, ModelConfig().image)


def test_an_assumed_sample_counts_tokens_and_tiles_as_the_data_does():
    assert (SAMPLE.visual, SAMPLE.tiles) == (2340, 5)  # method.md: 640 x 480 gives 2,340


def test_layers_before_the_drop_see_all_and_layers_behind_it_less():
    load = row_load(ModelConfig(), [SAMPLE], 0.5, 0.75)
    before, after = 200 + 1170, 200 + 1170 * 0.75
    assert load.tokens == before
    assert [layer.tokens for layer in load.layers[:8]] == [before] * 8
    # Layers 8 to 24 are equally likely, so before layer 16 nine of seventeen have dropped.
    assert load.layers[16].tokens == pytest.approx(before + (after - before) * 9 / 17)
    assert [layer.tokens for layer in load.layers[24:]] == pytest.approx([after] * 8)
    assert load.layers[0].squares == before**2


@pytest.mark.parametrize(("mode", "shorter"), [("off", 32), ("direct", 32), ("train", 8)])
def test_fixed_modes_drop_before_their_layer_or_not_at_all(mode, shorter):
    model = ModelConfig()
    model = replace(model, text_sampler=replace(model.text_sampler, mode=mode))
    load = row_load(model, [SAMPLE], 0.5, 0.75)
    assert sum(layer.tokens == load.tokens for layer in load.layers) == shorter


def test_rows_are_packed_within_the_budget_and_the_worst_row_is_its_limit():
    config = RunConfig()
    load = workload(config, [SAMPLE], 0.435, 0.75, "here")
    assert load.mean.tokens <= config.data.max_sequence_length
    assert load.rows * load.mean.samples == pytest.approx(config.training.global_batch_size)
    worst = config.data.max_sequence_length * config.data.worst_case_factor
    assert {layer.tokens for layer in load.worst.layers} == {worst}  # nothing is dropped
    assert load.worst.tokens == pytest.approx(worst)
    assert load.worst.tiles == pytest.approx(worst / 2540 * 5)


def test_the_worst_row_bounds_rows_of_any_of_the_samples():
    """A row may hold only those with most tiles, or most labels, or the shortest."""
    config, image = RunConfig(), ModelConfig().image
    kinds = [assumed_sample(480, 640, 200, 100, 80, image), assumed_sample(60, 60, 30, 5, 20, image)]
    kinds.append(Sample(text=900, visual=0, tiles=0, labels=800, instruction=100))
    worst = workload(config, kinds * 50, 0.435, 0.75, "here").worst
    length = round(config.data.max_sequence_length * config.data.worst_case_factor)
    for kind in kinds:
        row = row_load(config.model, [kind] * (length // (kind.text + kind.visual)), 1.0, 1.0)
        for figure in ("samples", "text", "visual", "tiles", "labels", "selection_tokens", "selection_pairs"):
            assert getattr(row, figure) <= getattr(worst, figure)
        for layer, bound in zip(row.layers, worst.layers, strict=True):
            assert layer.tokens <= bound.tokens and layer.squares <= bound.squares
    few = assumed_sample(60, 60, 30, 5, 20, image)
    assert worst.tiles == pytest.approx(length * few.tiles / (few.text + few.visual))
    assert worst.labels == pytest.approx(length * 800 / 900)


def test_without_compression_the_worst_row_is_the_budget():
    config = RunConfig()
    plain = replace(config.model, vision_sampler=replace(config.model.vision_sampler, enabled=False))
    load = workload(replace(config, model=plain), [SAMPLE], 0.435, 0.75, "here")
    assert load.worst.layers[0].tokens == config.data.max_sequence_length
    assert load.mean.visual == pytest.approx(2340 * load.mean.samples)


def test_rows_are_as_many_as_divide_over_the_replicas():
    config = RunConfig()
    even = replace(config, data=replace(config.data, rows_multiple_of=32))
    assert workload(even, [SAMPLE], 0.435, 0.75, "here").rows == 32


def test_a_sample_longer_than_a_row_is_an_error():
    config = RunConfig()
    short = replace(config, data=replace(config.data, max_sequence_length=2000))
    with pytest.raises(ValueError, match=r"2540 tokens, more than data.max_sequence_length=2000"):
        workload(short, [SAMPLE], 0.435, 0.75, "here")


def test_model_flops_are_those_of_the_trainers_mfu():
    model = ModelConfig()
    load = row_load(replace(model, text_sampler=replace(model.text_sampler, mode="off")), [SAMPLE, SAMPLE], 1.0, 1.0)
    layers = 32 * decoder_layer_flops(model, [2540, 2540])
    config, (tower, head) = RunConfig(model=model), (vision_flops(model, 10), head_flops(model, 200))
    assert model_flops(config, load) == pytest.approx(3 * (layers + tower + head))
    # No gradient of frozen weights, and none at all before the first that is trained.
    config.optimizer.freeze = ["vision_tower", "language_model"]
    assert model_flops(config, load) == pytest.approx(2 * (layers + head) + tower)
