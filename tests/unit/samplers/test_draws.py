"""The random layer and gamma depend on (seed, step, sample) alone."""

from megatron_focus.config.schema import TextSamplerConfig
from megatron_focus.samplers.draws import draw

RANDOM = TextSamplerConfig(mode="random")


def test_a_draw_does_not_depend_on_the_rest_of_the_row():
    together = draw(RANDOM, [5, 9, 2**62], seed=1, step=3, training=True)
    alone = draw(RANDOM, [9], seed=1, step=3, training=True)
    assert together.drop_layer[1] == alone.drop_layer[0]
    assert together.gamma[1] == alone.gamma[0]


def test_draws_differ_by_seed_step_and_sample_and_stay_in_range():
    draws = [
        draw(RANDOM, [key], seed=seed, step=step, training=True)
        for key in range(20)
        for seed in (1, 2)
        for step in range(20)
    ]
    layers = {int(d.drop_layer) for d in draws}
    gammas = {float(d.gamma) for d in draws}
    assert layers == set(range(8, 25))  # both ends of the paper's 8 to 24 occur
    assert len(gammas) == len(draws)
    assert 0.7 <= min(gammas) < 0.71
    assert 0.99 < max(gammas) <= 1.0


def test_modes():
    for mode, training, layer in (
        ("off", True, -1),
        ("off", False, -1),
        ("direct", True, -1),
        ("direct", False, 8),
        ("train", True, 8),
        ("train", False, 8),
        ("random", False, 8),
    ):
        drawn = draw(TextSamplerConfig(mode=mode), [1, 2], seed=0, step=0, training=training)
        assert drawn.drop_layer.tolist() == [layer] * 2, (mode, training)
