"""The heuristic sampler under parallel layouts, and packed rows against single samples."""

import pytest

from megatron_focus.config.schema import ModelConfig, VisionSamplerConfig
from tests.distributed.harness import run_ranks
from tests.distributed.test_layouts import LAYOUTS, assert_same, run
from tests.distributed.workers import ROWS, configure, run_steps, save_initial_weights, start
from tests.tiny import tiny_model


def heuristic_model() -> ModelConfig:
    model = tiny_model()
    model.vision_sampler = VisionSamplerConfig(method="heuristic", heuristic_keep=0.5, window=4, scales=["1x1"])
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heuristic-weights")
    run_ranks(save_initial_weights, 1, configure(heuristic_model()), str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def alone(weights):
    return run(1, weights, {}, model=heuristic_model())


@pytest.mark.parametrize("layout", ["tp2 sp", "pp2", "dp2"])
def test_layout_equals_one_rank(layout, weights, alone):
    world_size, parallel = LAYOUTS[layout]
    totals = alone[0].totals[0]
    assert totals["visual"] < 0.7 * totals["baseline_visual"]  # with its newlines, which always stay
    assert totals["dropped"] > 10  # the text-guided sampler works behind it
    assert alone[0].balances == [0.0, 0.0]
    assert_same(run(world_size, weights, parallel, model=heuristic_model()), alone)


def test_packed_equals_one_by_one(weights):
    model = heuristic_model()
    config = configure(model, {"use_distributed_optimizer": False})
    one_by_one = run_ranks(run_steps, 1, config, weights, ROWS, 1, True)
    assert_same(run(1, weights, {}, model=model, steps=1), one_by_one)


def parameter_names(config):
    _, parts = start(config)
    return {name for chunk in parts.chunks for name, _ in chunk.named_parameters()}


def test_it_has_no_parameters():
    (names,) = run_ranks(parameter_names, 1, configure(heuristic_model()))
    (learned,) = run_ranks(parameter_names, 1, configure())
    assert not [name for name in names if "vision_sampler" in name]
    assert learned - names == {f"module.vision_sampler.selector.{kind}" for kind in ("weight", "bias")}
