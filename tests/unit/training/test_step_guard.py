import math

import pytest

from megatron_focus.training.step_guard import StepGuard


def test_finite_steps_pass_and_are_remembered():
    guard = StepGuard(spike_factor=2.0, most_in_a_row=1)
    assert guard.objection(4.0, 1.0) is None
    assert guard.objection(2.0, 1.0) is None
    assert guard.usual_loss == pytest.approx(0.98 * 4.0 + 0.02 * 2.0)


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (4.0, math.nan, "the gradient norm is nan"),
        (8.1, 1.0, "the loss is 8.1000, 2.0 times the usual 4.0000"),
    ],
)
def test_what_must_not_reach_the_weights_is_named_and_not_remembered(loss, norm, reason):
    guard = StepGuard(spike_factor=2.0, most_in_a_row=1, usual_loss=4.0)
    assert guard.objection(loss, norm) == reason
    assert guard.usual_loss == 4.0


def test_without_a_factor_every_finite_loss_passes():
    assert StepGuard(usual_loss=1.0).objection(1e30, 1e30) is None


def test_only_steps_in_a_row_end_a_run():
    guard = StepGuard(most_in_a_row=2)
    verdicts = []
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan):
        guard.objection(loss, 1.0)
        verdicts.append(guard.has_enough)
    assert verdicts == [False, False, False, False, False, True]
