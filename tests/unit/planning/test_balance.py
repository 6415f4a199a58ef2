"""Layers dealt to stages."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_focus.config.schema import ModelConfig, ParallelConfig
from megatron_focus.planning.balance import Costs, balanced_sizes
from megatron_focus.planning.chunks import chunks_of, configured_sizes, even_sizes, layout_string


def random_costs(seed: int, layers: int) -> Costs:
    generator = np.random.default_rng(seed)
    first, last = generator.uniform(0, 4, 2).tolist()
    return Costs(first=first, last=last, layers=tuple(generator.uniform(0.5, 1.5, layers).tolist()))


def every_split(layers: int, count: int):
    for ends in combinations(range(1, layers), count - 1):
        yield [b - a for a, b in pairwise([0, *ends, layers])]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_split_has_a_faster_slowest_stage(seed):
    costs = random_costs(seed, 10)
    for stages in (1, 2, 3, 4):
        best = min(max(costs.stages(sizes, stages)) for sizes in every_split(10, stages))
        assert max(costs.stages(balanced_sizes(costs, stages), stages)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_several_chunks_a_stage_are_close_to_the_best_of_all_splits(seed):
    costs = random_costs(seed, 12)
    sizes = balanced_sizes(costs, 2, 2)
    assert len(sizes) == 4 and sum(sizes) == 12 and min(sizes) >= 1
    best = min(max(costs.stages(split, 2)) for split in every_split(12, 4))
    # A search by single moves: measured 2.6 % behind the best of all at most.
    assert max(costs.stages(sizes, 2)) <= best * 1.05


def test_images_take_layers_from_the_first_stage_and_cheap_layers_go_together():
    costs = Costs(first=4.0, last=1.0, layers=(1.0,) * 8 + (0.5,) * 8)
    sizes = balanced_sizes(costs, 4)
    assert sizes[0] < sizes[-1]
    assert max(costs.stages(sizes, 4)) < max(costs.stages(even_sizes(16, 4), 4))


@pytest.mark.parametrize(("sizes", "vpp"), [([5, 9, 9, 9], None), ([1, 1, 2, 28], None), ([1, 3, 2, 4], 2)])
def test_layout_strings_are_read_by_megatron_as_they_were_meant(sizes, vpp):
    layout = layout_string(sizes)
    stages = len(sizes) // (vpp or 1)
    parallel = ParallelConfig(
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=vpp,
        pipeline_model_parallel_layout=layout,
    )
    assert configured_sizes(ModelConfig(), parallel) == sizes
    read = PipelineParallelLayerLayout.from_str(layout, stages)
    for number, size in enumerate(sizes):
        assert read.layout[number % stages][number // stages].count(LayerType.decoder) == size


def test_parentheses_and_spaces_of_a_layout_are_understood():
    parallel = ParallelConfig(pipeline_model_parallel_size=4, pipeline_model_parallel_layout="Et, t|(tt|)*2 t*2 L")
    assert configured_sizes(ModelConfig(), parallel) == [2, 2, 2, 2]


def test_chunks_follow_each_other_and_only_the_ends_are_special():
    chunks = chunks_of([2, 3, 1])
    assert [(c.start, c.end, c.first, c.last) for c in chunks] == [
        (0, 2, True, False),
        (2, 5, False, False),
        (5, 6, False, True),
    ]


def test_even_sizes_differ_by_one_at_most():
    assert even_sizes(28, 8) == [4, 3, 4, 3, 4, 3, 4, 3]
    assert even_sizes(32, 4) == [8, 8, 8, 8]
