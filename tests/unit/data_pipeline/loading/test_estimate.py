import json

import pytest

from data_pipeline.loading.estimate import KeptEstimate


def test_a_step_is_packed_with_what_was_known_a_fixed_number_of_steps_before():
    estimate, used = KeptEstimate(3), []
    for step in range(8):
        used.append(estimate.ratios[0])
        assert len(estimate.ratios) == 4
        estimate.measured(kept=step, baseline=10)
    # Steps 0 to 3 were planned before anything was measured.
    mean, expected = 1.0, [1.0] * 4
    for step in range(4):
        mean = 0.9 * mean + 0.1 * step / 10
        expected.append(mean)
    assert used == pytest.approx(expected, abs=1e-15)


def test_state_continues_exactly():
    whole, first = KeptEstimate(2), KeptEstimate(2)
    for kept in (3, 5, 7):
        whole.measured(kept, 11)
        first.measured(kept, 11)
    resumed = KeptEstimate(2, json.loads(json.dumps(first.ratios)))
    for kept in (1, 2, 9):
        whole.measured(kept, 11)
        resumed.measured(kept, 11)
        assert resumed.ratios == whole.ratios


def test_another_lookahead_repeats_or_drops_the_last():
    assert KeptEstimate(4, [0.5, 0.4]).ratios == [0.5, 0.4, 0.4, 0.4, 0.4]
    assert KeptEstimate(0, [0.5, 0.4]).ratios == [0.5]


def test_steps_without_images_and_a_fixed_estimate_change_nothing():
    estimate = KeptEstimate(1, [0.5, 0.4])
    estimate.measured(0, 0)
    assert estimate.ratios == [0.4, 0.4]
    fixed = KeptEstimate(1, running=False)
    fixed.measured(1, 10)
    assert fixed.ratios == [1.0, 1.0]


def test_it_converges():
    estimate = KeptEstimate(4)
    for _ in range(100):
        estimate.measured(43, 100)
    assert estimate.ratios[0] == pytest.approx(0.43, abs=1e-4)  # 0.57 * 0.9 ** 95 = 2.6e-5
