import numpy as np

from data_pipeline.loading.cost import UNITS, SampleCost


def cost_of(cost, **changes):
    values = {"tiles": 5, "text": 100, "visual": 200, "labels": 40, "keys": 7} | changes
    arrays = {name: np.atleast_1d(np.array(value)) for name, value in values.items()}
    return cost(**arrays, step=3).tolist()


def test_parts_by_hand():
    assert cost_of(SampleCost()) == [300 * UNITS]  # tokens, for who knows no model
    assert cost_of(SampleCost(per_tile=20)) == [(300 + 5 * 20) * UNITS]
    assert cost_of(SampleCost(attention=0.001)) == [(300 + 90) * UNITS]
    assert cost_of(SampleCost(head=0.5)) == [(300 + 20) * UNITS]  # of the labelled tokens alone
    assert cost_of(SampleCost(), tiles=0, text=0, visual=0) == [1]  # never nothing


def test_a_drop_in_the_middle():
    """Half of the visual tokens go before a quarter of the layers is through."""

    def drop(keys, step):
        assert keys.tolist() == [7] and step == 3
        return np.array([0.25]), np.array([0.5])

    assert cost_of(SampleCost(expected_drop=drop)) == [(300 / 4 + 200 * 3 / 4) * UNITS]
    assert cost_of(SampleCost(expected_drop=drop, attention=0.01)) == [((300 + 900) / 4 + (200 + 400) * 3 / 4) * UNITS]
    assert cost_of(SampleCost(expected_drop=drop, head=1.0)) == [(300 / 4 + 200 * 3 / 4 + 40) * UNITS]


def test_whole_numbers():
    found = SampleCost(per_tile=1 / 3, attention=1e-5)(
        **{name: np.arange(9) for name in ("tiles", "text", "visual", "labels", "keys")}, step=0
    )
    assert found.dtype == np.int64 and (np.diff(found) > 0).all()
