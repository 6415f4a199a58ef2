import numpy as np

from data_pipeline.ordering import order, step_indices


def test_order_is_a_permutation_of_seed_and_epoch():
    assert sorted(order(1, 0, 1000).tolist()) == list(range(1000))
    assert np.array_equal(order(1, 0, 1000), order(1, 0, 1000))
    assert not np.array_equal(order(1, 0, 1000), order(1, 1, 1000))
    assert not np.array_equal(order(1, 0, 1000), order(2, 0, 1000))
    assert not np.array_equal(order(1, 0, 1000), order(0, 1, 1000))


def test_order_is_pinned():
    """A change here would silently change what a resumed run sees."""
    assert order(1234, 0, 10).tolist() == [8, 9, 7, 3, 0, 1, 4, 2, 5, 6]


def test_order_is_uniform():
    counts = np.zeros((6, 6), dtype=int)
    for seed in range(3000):
        counts[np.arange(6), order(seed, 0, 6)] += 1
    # 500 expected in each cell, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4; five of them.
    assert np.abs(counts - 500).max() < 102


def test_batches_continue_over_the_epoch_border():
    n, batch = 10, 4
    sequence = np.concatenate([step_indices(7, n, step * batch, batch) for step in range(15)])
    assert np.array_equal(sequence, np.concatenate([order(7, epoch, n) for epoch in range(6)]))
    assert np.array_equal(step_indices(7, n, 0, 35), sequence[:35])  # a batch may span several epochs
