"""What is drawn depends on (seed, step, sample) alone; the turn that asks has seen no answer that is learnt."""

import itertools

import pytest
import torch

from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.config.schema import TextSamplerConfig
from megatron_focus.samplers.draws import NOBODY, asks, draw, layer_and_gamma, without_loss_on_history
from tests.tiny import chat_row

RANDOM = TextSamplerConfig(mode="random")


def row(keys: list[int]) -> PackedRow:
    built = chat_row(0, [([(56, 56)], 3)] * len(keys))
    built.sample_keys = torch.tensor(keys)
    return built


@pytest.mark.parametrize("queries", ["first", "random_turn"])
def test_a_draw_does_not_depend_on_the_rest_of_the_row(queries):
    config = TextSamplerConfig(mode="random", queries=queries)
    together = draw(config, row([5, 9, 2**62]), seed=1, step=3, training=True)
    alone = draw(config, row([9]), seed=1, step=3, training=True)
    assert together.drop_layer[1] == alone.drop_layer[0]
    assert together.gamma[1] == alone.gamma[0]
    assert together.asking_turn[1] == alone.asking_turn[0]
    layer, gamma = layer_and_gamma(config, 9, seed=1, step=3)
    assert (alone.drop_layer.item(), alone.gamma.item()) == (layer, gamma)  # to the last bit of a double


def test_draws_differ_by_seed_step_and_sample_and_stay_in_range():
    every = itertools.product(range(20), (1, 2), range(20))
    drawn = [layer_and_gamma(RANDOM, key, seed=seed, step=step) for key, seed, step in every]
    layers, gammas = {layer for layer, _ in drawn}, {gamma for _, gamma in drawn}
    assert layers == set(range(8, 25))  # both ends of the paper's 8 to 24 occur
    assert len(gammas) == len(drawn)
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
        drawn = draw(TextSamplerConfig(mode=mode), row([1, 2]), seed=0, step=0, training=training)
        assert drawn.drop_layer.tolist() == [layer] * 2, (mode, training)


def test_the_first_turn_asks_in_training_and_the_latest_at_inference():
    sample = chat_row(0, [([(56, 56)], 3), ([], 2), ([(56, 56)], 1)])
    learning = draw(RANDOM, sample, seed=0, step=0, training=True)
    assert torch.equal(asks(sample, learning), sample.user_turn == 0)
    assert without_loss_on_history(RANDOM, sample, learning) is sample
    answering = draw(RANDOM, sample, seed=0, step=0, training=False)
    second = torch.arange(len(sample.tokens)) >= sum(sample.lengths[:2])
    latest = (sample.user_turn == 2) | ((sample.user_turn == 0) & second)
    assert torch.equal(asks(sample, answering), latest)


def test_an_answer_before_every_turn_that_could_ask_is_learnt_too():
    """As where an image stands in the second turn, or the first is an image alone."""
    sample = chat_row(0, [([(56, 56)], 2)])
    sample.user_turn[sample.user_turn == 0] = -1
    assert not asks(sample, draw(RANDOM, sample, seed=0, step=0, training=True)).any()
    config = TextSamplerConfig(queries="random_turn")
    seen = set()
    for step in range(20):
        drawn = draw(config, sample, seed=0, step=step, training=True)
        learnt = without_loss_on_history(config, sample, drawn).labels != IGNORE_INDEX
        seen.add((drawn.asking_turn.item(), int(asks(sample, drawn).sum()) > 0, int(learnt.sum())))
    assert seen == {(NOBODY, False, 10), (1, True, 5)}


def test_a_random_turn_asks_and_what_was_answered_before_it_is_not_learnt():
    config = TextSamplerConfig(mode="random", queries="random_turn")
    seen = set()
    for step in range(20):
        sample = chat_row(0, [([(56, 56)], 3), ([], 2)])
        drawn = draw(config, sample, seed=0, step=step, training=True)
        turn = int(drawn.asking_turn[0])
        seen.add(turn)
        assert torch.equal(asks(sample, drawn), sample.user_turn == turn)
        learnt = without_loss_on_history(config, sample, drawn).labels != IGNORE_INDEX
        before = sample.labels != IGNORE_INDEX
        begin = int((sample.user_turn == turn).nonzero()[0])
        assert not learnt[:begin].any()
        assert torch.equal(learnt[begin:], before[begin:])  # the sample of text alone, too
        assert learnt[begin:].sum() > 0
    assert seen == {0, 1, 2}
