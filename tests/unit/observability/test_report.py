import contextlib
import io
import math
import resource
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.observability.metrics import FIELDS, StepMetrics
from megatron_focus.observability.report import TensorBoard, progress_line
from tests.distributed.harness import run_ranks


@pytest.fixture
def metrics():
    return some_metrics()


def some_metrics():
    totals = dict.fromkeys(FIELDS, 0.0) | {
        "loss": 30.0,
        "loss_tokens": 20.0,
        "samples": 9.0,
        "microbatches": 4.0,
        "baseline_visual": 1000.0,
        "visual": 450.0,
        "dropped": 90.0,
        "dropped_passes": 30.0,
        "row_tokens": 600.0,
        "skipped": 2.0,
        "over_budget": 1.0,
        "data_wait": 0.3,
        "readers": 2.0,
        "balance": 6.0,
        "windows": 4.0,
        "entropy_within_pictures": 2 * math.log(2),  # two windows of one picture differ, the others do not
    }
    return StepMetrics(
        totals=totals,
        scale_counts={"1x1": 1, "4x4": 3},
        scale_probs={"1x1": 1.6, "4x4": 2.4},
        samples_by_source={"docvqa": 6, "dvqa": 3},
        row_budget=200,
        grad_norm=0.5,
        lr=1e-3,
        seconds=3.0,
        vision_sampler=VisionSamplerConfig(balance_loss_coeff=0.01, scales=["1x1", "4x4"], balance_weights=[1.5, 0.5]),
    )


def test_ratios(metrics):
    assert metrics.loss == 1.5
    assert metrics.balance_loss == pytest.approx(0.01 * (1.5 * 0.25 * 0.4 + 0.5 * 0.75 * 0.6))
    metrics.vision_sampler.balance_scope = "row"
    assert metrics.balance_loss == pytest.approx(0.015)
    assert metrics.kept_by_vision == 0.45 and metrics.kept_by_text == 0.8
    assert metrics.effective_tokens == pytest.approx((450 - 90 + 30) / 1000)
    assert metrics.scale_shares == {"1x1": 0.25, "4x4": 0.75}
    assert metrics.packing_fill == 0.75  # 600 tokens in 4 rows of 200
    assert metrics.data_wait_share == pytest.approx(0.05)  # two ranks waited 0.3 s together, of 3 s each
    assert metrics.tokens_per_second == 200


def test_how_much_of_the_choice_lies_within_pictures(metrics):
    whole = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert metrics.choice_by_region == pytest.approx(0.5)
    assert metrics.choice_by_picture == pytest.approx(whole - 0.5)
    assert metrics.choice_within_pictures == pytest.approx(0.5 / whole)
    metrics.scale_counts = {"1x1": 4, "4x4": 0}
    metrics.totals["entropy_within_pictures"] = 0.0
    assert metrics.choice_within_pictures == 0.0


def test_tensorboard_shows_what_was_left_out_and_where_samples_come_from(metrics, tmp_path):
    board = TensorBoard(str(tmp_path), 1)
    board.write(1, metrics, 0.4, {"too long": 2, "truncated image": 1})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    written = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    expected = {
        "loss/lm": 1.5,
        "data/left out": 2,
        "data/left out so far: too long": 2,
        "data/left out so far: truncated image": 1,
        "data/samples of docvqa": 6,
        "data/samples of dvqa": 3,
        "data/packing fill": 0.75,
        "scales/4x4": 0.75,
        "scales/mean probability of 4x4": 0.6,
        "choice/bits by region within a picture": 0.5,
        "data/rows over budget": 1,
        "data/wait share": 0.05,
        "speed/MFU": 0.4,
    }
    assert {tag: written[tag] for tag in expected} == pytest.approx(expected)


def without_room(folder):
    """What a run says whose disk is full from step 2 to 49."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        board, metrics = TensorBoard(folder, 1), some_metrics()
        board.write(1, metrics, None, {})
        board._writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for step in range(2, 50):
            board.write(step, metrics, None, {})
            time.sleep(0.01)
            if board._writer is not None:
                board._writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for step in range(50, 200):
            board.write(step, metrics, None, {})
        board.close()
    return said.getvalue()


def test_a_full_disk_costs_events_and_not_the_run(tmp_path):
    """The operating system refuses to write more than 100 bytes to a file; tried again after a hundred steps."""
    [said] = run_ranks(without_room, 1, str(tmp_path))
    assert said.count("no events until step 1") == 1
    steps = [e.step for e in EventAccumulator(str(tmp_path), {"scalars": 0}).Reload().Scalars("loss/lm")]
    assert steps[0] == 1 and steps[-1] == 199 and 50 not in steps and len(steps) >= 50


def test_progress_line(metrics):
    line = progress_line(7, 10, metrics, 0.4, 3)
    assert line.startswith("step 7/10 | loss 1.5000 | ") and "visual tokens 45% then 80% = 39%" in line
    assert line.endswith("MFU 40.0% | 3.00 s | 3 samples left out")
