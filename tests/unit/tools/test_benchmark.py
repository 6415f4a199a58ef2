"""The benchmark's arithmetic, and that what it compares is the same model; times are never tested."""

import json
from dataclasses import replace

import pytest
import torch

from data_pipeline.benchmark.measure import interleaved, ratios
from megatron_focus.benchmark.presets import OFF, SETTINGS
from megatron_focus.benchmark.run import run
from megatron_focus.benchmark.table import TRANSFORMERS, format_phase, make_phase, verdict
from megatron_focus.benchmark.work import Work, text_sampler_flops, transformers_work, vision_sampler_flops
from megatron_focus.benchmark.workload import prefill_row, sample_tokens, training_row, transformers_inputs
from megatron_focus.config.schema import ParallelConfig
from megatron_focus.parallel.initialize import initialize
from tests.benchmark_preset import SMALL, VISUAL
from tests.distributed.harness import run_ranks
from tools import benchmark as tool


def work(flops: float) -> Work:
    return Work(flops=flops, visual=100, kept=50)


def test_every_round_runs_every_job_and_the_first_is_not_counted():
    seen: list[str] = []
    ticks: list[None] = []
    jobs = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = interleaved(jobs, 2, torch.device("cpu"), lambda: ticks.append(None))
    assert "".join(seen) == "cba" + "abc" + "cba"
    assert [len(times[name]) for name in "abc"] == [2, 2, 2]
    assert len(ticks) == 9


def test_ratios_are_taken_within_a_round():
    """The machine is 10 times slower in the second round; each pair says 2."""
    assert ratios([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 3.0)


def test_table_arithmetic():
    times = {TRANSFORMERS: [6.0, 6.0], OFF.name: [4.0, 4.0], "vision-guided": [2.0, 2.0], "text-guided": [3.0, 3.0]}
    flops = {TRANSFORMERS: 12.0, OFF.name: 8.0, "vision-guided": 4.0, "text-guided": 4.0}
    phase = make_phase("training", times, {side: work(value) for side, value in flops.items()}, tokens=120)
    rows = {row.name: row for row in phase.rows}
    assert phase.off_over_transformers == 1.5
    assert rows[OFF.name].over_transformers_allowed == 1.5
    assert rows[OFF.name].tokens_per_second == 30
    assert rows["vision-guided"].achieved == 1.0
    assert rows["text-guided"].achieved == phase.least_achieved == pytest.approx(2 / 3)
    assert verdict([phase]).count("NOT met") == 1
    assert "100 -> 50" in format_phase(phase) and "67%" in format_phase(phase)


def test_work_of_transformers_counts_the_head_on_every_token_in_training():
    assert sample_tokens(SMALL) == VISUAL + 60
    forward, step = transformers_work(SMALL, training=False), transformers_work(SMALL, training=True)
    more_head = 2 * 64 * 320 * 2 * (sample_tokens(SMALL) - 1)  # 320 rows with padding, 2 samples
    assert step.flops == pytest.approx(3 * (forward.flops + more_head))
    assert forward.visual == step.kept == 2 * VISUAL


def test_work_of_the_samplers():
    # 10 tiles of 4 windows, each against 64 cells of 64 channels, then 64 scores to 3 scales
    assert vision_sampler_flops(SMALL) == 2 * 40 * 64 * (64 + 3)
    # 4 query heads and 2 key groups of 16: 128 rows of QKV; 25 instruction tokens
    assert text_sampler_flops(SMALL, row_tokens=500, visual=400) == 2 * 500 * 64 * 128 + 2 * 64 * 25 * 400


def test_both_sides_get_the_same_samples():
    row, stock = training_row(SMALL), transformers_inputs(training_row(SMALL), SMALL, torch.float32)
    assert stock["input_ids"].shape == (2, VISUAL + 60)
    assert stock["pixel_values"].shape == (2, 5, 3, 112, 112)
    image = SMALL.model.language.vocab_size - 1
    text = row.tokens.view(2, -1)
    assert torch.equal(stock["input_ids"][stock["input_ids"] != image].view(2, -1), text[:, torch.arange(61) != 5])
    # transformers shifts its labels, the row's are shifted: the same ids are predicted from the same tokens
    assert torch.equal(stock["labels"][stock["labels"] >= 0], row.labels[row.labels >= 0])
    assert torch.equal(stock["labels"][:, -30:], row.labels.view(2, -1)[:, -31:-1])
    assert (row.user_turn == 0).sum() == 2 * 25
    assert prefill_row(row).loss_tokens == 2


def whole_benchmark() -> dict:
    """A rank's whole run, as plain values."""
    device = initialize(ParallelConfig(), seed=1)
    return run(SMALL, device, "local", rounds=1).to_json()


def test_both_sides_compute_the_same_and_the_samplers_drop():
    """``run`` refuses to time models whose logits differ; the rest of the report is checked here."""
    [report] = run_ranks(whole_benchmark, 1)
    json.dumps(report)
    assert report["logit_difference"] < 1e-5  # measured 7e-7
    for phase in report["phases"]:
        rows = {row["name"]: row for row in phase["rows"]}
        assert list(rows) == [TRANSFORMERS, *(setting.name for setting in SETTINGS)]
        off, vision, text = (rows[name] for name in ("samplers off", "vision-guided", "text-guided"))
        assert off["visual"] == off["kept"] == 2 * VISUAL
        assert 0.3 < vision["visual"] / off["visual"] < 0.7 and vision["kept"] == vision["visual"]
        assert text["visual"] == 2 * VISUAL > text["kept"] > VISUAL
        assert rows["both samplers"]["tflop"] < vision["tflop"] < off["tflop"]
    prefill, training = report["phases"]
    assert prefill["rows"][0]["tflop"] == pytest.approx(prefill["rows"][1]["tflop"])
    assert training["rows"][0]["tflop"] > training["rows"][1]["tflop"]


def test_an_unequal_model_is_refused():
    [message] = run_ranks(message_of_unequal_model, 1)
    assert "their logits differ by" in message


def message_of_unequal_model() -> str:
    from megatron_focus.benchmark import run as module
    from megatron_focus.benchmark.megatron_side import MegatronSide
    from megatron_focus.benchmark.transformers_side import TransformersSide

    device = initialize(ParallelConfig(), seed=1)
    preset = replace(SMALL, samples=1)
    ours = MegatronSide(preset, device, "local")
    theirs = TransformersSide(preset, ours.parts, ours.row, device)
    with torch.no_grad():
        theirs.model.lm_head.weight.mul_(1.1)
    with pytest.raises(ValueError) as error:
        module.logit_difference(ours, theirs)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "4"], "--batch-sizes: only used with --inference"),
        (["--inference", "--threads", "2"], "--threads: not used with --inference"),
        (["--inference", "--transformer-impl", "local"], "--transformer-impl: not used with --inference"),
        (["--conversion", "--device", "cpu"], "--device: not used with --conversion"),
        (["--conversion", "--rounds", "3"], "--rounds: not used with --conversion"),
        (["--conversion-sizes", "3"], "--conversion-sizes: only used with --conversion"),
        (["--conversion", "--conversion-sizes", "0"], "'0' is not a size in GB, such as 0.3"),
        (["--inference", "--conversion"], "not allowed with argument --inference"),
    ],
)
def test_options_of_another_mode_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.parse_arguments(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_each_mode_has_its_defaults():
    mode, options = tool.parse_arguments(["--inference"])
    assert mode.flag == "--inference" and options.batch_sizes == (1, 8) and options.rounds == 7
    mode, options = tool.parse_arguments(["--preset", "gpu"])
    assert mode.flag is None and options.preset == "gpu" and options.rounds is None
    mode, options = tool.parse_arguments(["--conversion", "--conversion-sizes", "0.3", "3"])
    assert options.conversion_sizes == [0.3, 3.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("mode", [[], ["--inference"]])
def test_a_device_that_is_not_there_is_refused(mode, capsys):
    assert tool.main([*mode, "--device", "cuda"]) == 2
    assert "argument --device: torch finds no CUDA device here" in capsys.readouterr().err
