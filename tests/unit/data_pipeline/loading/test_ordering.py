import dataclasses
from collections import Counter

import numpy as np
import pytest

from data_pipeline.loading.ordering import OrderSettings, SampleOrder

SIZES = {"a": 700, "b": 200, "c": 100}
SOURCE = np.repeat(np.arange(3), list(SIZES.values())).astype(np.int32)


def make(source=SOURCE, seed=7, weights=None, shuffle="samples", window=0, shard_size=50):
    """Shards of up to ``shard_size`` samples of one source."""
    names = list(SIZES)[: source.max() + 1]
    settings = OrderSettings(seed=seed, weights=weights or {}, shuffle=shuffle, window=window)
    place = np.concatenate([np.arange(count) for count in np.bincount(source)])
    return SampleOrder(source, names, (source * 1000 + place // shard_size).astype(np.int32), settings)


@pytest.mark.parametrize("shuffle", ["samples", "shards"])
@pytest.mark.parametrize("window", [0, 100, 300])
def test_an_epoch_holds_every_sample_once(shuffle, window):
    order = make(shuffle=shuffle, window=window)
    assert order.samples_per_epoch == 1000
    for epoch in range(3):
        assert sorted(order.epoch(epoch).tolist()) == list(range(1000))
    assert np.array_equal(order.epoch(2), make(shuffle=shuffle, window=window).epoch(2))
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), make(seed=8, shuffle=shuffle, window=window).epoch(0))


def test_order_is_pinned():
    """A change here would silently change what a resumed run sees."""
    source = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=np.int32)
    assert make(source, seed=1234).epoch(0).tolist() == [3, 8, 0, 9, 1, 4, 6, 2, 7, 5]
    halved = make(source, seed=1234, weights={"a": 0.5}, shuffle="shards", window=3, shard_size=2)
    assert halved.epoch(1).tolist() == [
        9,
        3,
        8,
        4,
        6,
        5,
        7,
    ]


def test_order_of_one_source_is_uniform():
    counts = np.zeros((6, 6), dtype=int)
    for seed in range(3000):
        counts[np.arange(6), make(np.zeros(6, dtype=np.int32), seed=seed).epoch(0)] += 1
    # 500 expected in each cell, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4; five of them.
    assert np.abs(counts - 500).max() < 102


def test_places_continue_over_the_epoch_border():
    order = make(window=10)
    sequence = np.concatenate([order.take(begin, 70) for begin in range(0, 4200, 70)])
    assert np.array_equal(sequence, np.concatenate([order.epoch(e) for e in range(5)])[:4200])
    assert np.array_equal(make(window=10).take(950, 2500), sequence[950:3450])  # over several epochs at once


def test_every_stretch_has_the_mix_of_the_whole():
    order = make(window=0)
    for begin in range(0, 1000, 100):
        shares = np.bincount(SOURCE[order.take(begin, 100)], minlength=3)
        assert np.abs(shares - [70, 20, 10]).max() <= 3  # each source is placed to within one place in its own spacing


@pytest.mark.parametrize("weight", [0.5, 0.3, 2.5, 1.0])
def test_a_weight_is_the_number_of_times_a_sample_is_shown(weight):
    order = make(weights={"b": weight})
    epochs = 20
    assert order.samples_per_epoch == 800 + round(200 * weight)
    seen = Counter(np.concatenate([order.epoch(e) for e in range(epochs)]).tolist())
    times = [seen[index] for index in range(700, 900)]
    assert max(times) - min(times) <= 1 and abs(np.mean(times) - epochs * weight) < 0.01
    assert all(seen[index] == epochs for index in (*range(700), *range(900, 1000)))


def test_weight_zero_leaves_a_source_out():
    order = make(weights={"a": 0, "c": 0})
    assert np.flatnonzero(order.shown()).tolist() == list(range(700, 900)) and make().shown().all()
    assert sorted(order.epoch(0).tolist()) == list(range(700, 900))
    with pytest.raises(ValueError, match="no source is left, all weights are 0"):
        make(weights=dict.fromkeys(SIZES, 0))
    with pytest.raises(ValueError, match=r"data\.source_weights: no source 'd' in the data set, only a, b, c"):
        make(weights={"d": 1})
    with pytest.raises(ValueError, match=r"data\.source_weights\.a: -1 is not 0 or more"):
        make(weights={"a": -1})


def test_shards_stay_close():
    """With shards of 100 and a window of 50 places, few shards are in use at a time."""
    order = make(np.zeros(1000, dtype=np.int32), shuffle="shards", window=50, shard_size=100).epoch(0)
    in_use = [len({index // 100 for index in order[begin : begin + 100].tolist()}) for begin in range(0, 1000, 100)]
    assert max(in_use) <= 3
    assert len({index // 100 for index in make().take(0, 100).tolist()}) == 10


def test_changed_settings_are_named():
    settings = OrderSettings(seed=1, weights={"a": 2.0}, shuffle="samples", window=0)
    other = dataclasses.asdict(settings) | {"seed": 2, "weights": {}}
    assert settings.changes(dataclasses.asdict(settings)) == []
    assert settings.changes(other) == ["seed is 1, was 2", "weights is {'a': 2.0}, was {}"]
