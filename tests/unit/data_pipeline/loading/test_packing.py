import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loading.packing import assign_rows, pack


@settings(max_examples=50)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), max_size=60),
    budget=st.integers(50, 120),
    factor=st.integers(1, 3),
)
def test_pack_keeps_every_item_within_both_budgets(lengths, budget, factor):
    expected = [length for length, _ in lengths]
    worst = [min(length + more, factor * budget) for length, more in lengths]
    rows = pack(expected, budget, worst, factor * budget)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(expected[index] for index in row) <= budget for row in rows)
    assert all(sum(worst[index] for index in row) <= factor * budget for row in rows)
    assert rows == pack(expected, budget, worst, factor * budget)


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 120))
def test_at_most_one_row_is_less_than_half_full(lengths, budget):
    rows = pack(lengths, budget, lengths, budget)
    # Any two such rows would have been one.
    assert sum(2 * sum(lengths[index] for index in row) <= budget for row in rows) <= 1


def test_pack_by_hand():
    def packed(lengths):
        return pack(lengths, 10, lengths, 10)

    assert packed([3, 7, 5, 5, 2]) == [[1, 0], [2, 3], [4]]
    assert packed([6, 7, 3]) == [[1, 2], [0]]  # into the fullest row with room
    assert packed([5, 5, 5]) == [[0, 1], [2]]  # equal lengths keep their order
    assert packed([]) == []
    assert pack([2, 2, 2], 10, [9, 8, 2], 12) == [[0, 2], [1]]  # the worst case has a budget of its own


def test_pack_refuses_what_fits_nowhere():
    with pytest.raises(ValueError, match="item 1 has 11 tokens, 11 at worst, more than the 10 and 20 of a row"):
        pack([3, 11], 10, [3, 11], 20)
    with pytest.raises(ValueError, match="item 0 has 3 tokens, 21 at worst"):
        pack([3], 10, [21], 20)


@settings(max_examples=50)
@given(costs=st.lists(st.integers(0, 100), max_size=40), num_ranks=st.integers(1, 9))
def test_every_row_goes_to_one_rank_and_loads_are_close(costs, num_ranks):
    ranks = assign_rows(costs, num_ranks)
    assert len(ranks) == num_ranks
    assert sorted(row for rows in ranks for row in rows) == list(range(len(costs)))
    loads = [sum(costs[row] for row in rows) for rows in ranks]
    # Graham's bound for the longest-processing-time rule, with its lower bound on the best makespan.
    if costs:
        best = max(max(costs), sum(costs) / num_ranks)
        if len(costs) > num_ranks:
            best = max(best, sum(sorted(costs, reverse=True)[num_ranks - 1 : num_ranks + 1]))
        assert max(loads) <= (4 / 3) * best + max(costs) / 3
    assert ranks == assign_rows(costs, num_ranks)


def test_rows_do_not_depend_on_the_number_of_ranks():
    lengths = np.random.default_rng(0).integers(100, 3000, 128).tolist()
    rows = pack(lengths, 6144, lengths, 6144)
    costs = [sum(lengths[index] for index in row) for row in rows]
    for num_ranks in (1, 2, 8, 64):
        dealt = [rows[row] for rank in assign_rows(costs, num_ranks) for row in rank]
        assert sorted(dealt) == sorted(rows)


def test_more_ranks_than_rows():
    assert assign_rows([4, 9], 4) == [[1], [0], [], []]
    assert assign_rows([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
