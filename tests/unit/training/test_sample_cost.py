"""The expected cost beside the step's own FLOP count, and the draws beside those that training makes."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.loading.cost import UNITS
from megatron_focus.config.schema import ModelConfig, TextSamplerConfig
from megatron_focus.models.flops import decoder_layer_flops, head_flops, vision_flops
from megatron_focus.samplers.draws import layer_and_gamma
from megatron_focus.training.sample_cost import DrawnDrop, kept_share, sample_cost


def lengths(**changes):
    return {
        name: np.array([value]) for name, value in ({"tiles": 5, "entering": 1500, "labels": 300} | changes).items()
    }


@pytest.mark.parametrize(
    ("freeze", "tower", "decoder"),
    [([], 3, 3), (["vision_tower"], 1, 3), (["vision_tower", "language_model"], 1, 2)],
)
def test_equals_the_count_of_flops(freeze, tower, decoder):
    model = ModelConfig()
    cost = sample_cost(model, freeze=freeze, seed=1)
    before, left = 8, 900

    def flops(tiles, entering, labels=300):
        early, late = (decoder_layer_flops(model, [n]) for n in (entering, left))
        language = before * early + (32 - before) * late + head_flops(model, labels)
        return tower * vision_flops(model, tiles) + decoder * language

    def found(**changes):
        return cost.of_lengths(**lengths(left=float(left), before=before / 32, **changes)).item()

    ratio = found() / flops(5, 1500)
    for tiles, entering, labels in ((0, 1500, 300), (5, 6000, 0), (3, 901, 800)):
        # Rounded to thousandths of a token's pass, of some hundred.
        cost_of = found(tiles=tiles, entering=entering, labels=labels)
        assert cost_of / flops(tiles, entering, labels) == pytest.approx(ratio, rel=1e-5)
    # A token without attention is the unit.
    assert ratio == pytest.approx(UNITS / (decoder * 32 * _linear(model)), rel=1e-5)


def _linear(model):
    language = model.language
    head = language.hidden_size // language.num_attention_heads
    attention = 2 * language.hidden_size + 2 * head * language.num_query_groups
    return 2 * language.hidden_size * (attention + 3 * language.ffn_hidden_size)


@pytest.mark.parametrize(("seed", "step"), [(1234, 0), (0, 7), (2**40, 10**6)])
@pytest.mark.parametrize("layer_range", [[8, 24], [2, 5], [3, 3]])
def test_draws_are_those_of_training(seed, step, layer_range):
    sampler = TextSamplerConfig(layer_range=layer_range, gamma_range=[0.6, 0.9])
    keys = np.concatenate([np.random.default_rng(seed).integers(0, 2**63 - 1, 1000), [0, 1, 2**63 - 1]])
    layer, gamma = DrawnDrop(sampler, 32, seed).draws(keys, step)
    wanted = [layer_and_gamma(sampler, key, seed=seed, step=step) for key in keys.tolist()]
    assert list(zip(layer.tolist(), gamma.tolist(), strict=True)) == wanted


def test_modes():
    def cost(**changes):
        model = ModelConfig(text_sampler=TextSamplerConfig(**changes))
        keys = np.arange(500)
        arrays = {
            name: np.full(500, value) for name, value in (("tiles", 5), ("text", 200), ("visual", 1000), ("labels", 90))
        }
        return sample_cost(model, seed=1)(**arrays, keys=keys, step=2)

    off = cost(mode="off")
    assert len(set(off.tolist())) == 1 and np.array_equal(off, cost(mode="direct"))
    assert np.array_equal(off, cost(mode="train", gamma=1.0))
    fixed, drawn = cost(mode="train"), cost(mode="random")
    assert len(set(fixed.tolist())) == 1 and len(set(drawn.tolist())) > 400
    assert fixed[0] < off[0] and drawn.max() <= off[0] and drawn.min() < fixed[0]


def test_kept_share():
    assert kept_share(np.array([0.85, 1.0, 1.2, 0.1])) == pytest.approx([0.75, 1.0, 1.0, 0.0])


def test_a_step_of_another_number_has_other_draws():
    drop = sample_cost(ModelConfig(), seed=3).expected_drop
    keys = np.arange(100)
    (one, share), (other, _), (same, _) = (drop(keys, step) for step in (0, 1, 0))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert one.min() >= 8 / 32 and one.max() <= 24 / 32 and 0.5 <= share.min() <= share.max() <= 1
    assert not np.array_equal(one, dataclasses.replace(drop, seed=4)(keys, 0)[0])
