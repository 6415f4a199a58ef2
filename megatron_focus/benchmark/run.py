"""The benchmark from end to end."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from data_pipeline.benchmark.measure import interleaved
from megatron_focus.benchmark.environment import environment
from megatron_focus.benchmark.megatron_side import MegatronSide
from megatron_focus.benchmark.presets import OFF, SETTINGS, Preset
from megatron_focus.benchmark.table import TRANSFORMERS, Phase, make_phase
from megatron_focus.benchmark.transformers_side import TransformersSide
from megatron_focus.benchmark.work import transformers_work
from megatron_focus.benchmark.workload import sample_tokens

LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between both sides' logits, as a share of the largest logit; float32 differs by about 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the benchmark found."""

    preset: str
    transformer_impl: str
    environment: dict[str, Any]
    logit_difference: float
    """Largest difference between both sides' logits with the samplers off, as a share of the largest logit."""
    phases: list[Phase]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run(preset: Preset, device: torch.device, transformer_impl: str, rounds: int) -> Report:
    """Build both sides, check that they compute the same, and time them.

    Args:
        preset: the models and the batch.
        device: where; Megatron's parallel state has been initialised.
        transformer_impl: ``local`` or ``transformer_engine``, for this project's side.
        rounds: rounds that count, for prefill and training each.

    Raises:
        ValueError: the implementation is not installed, or the logits differ.
    """
    ours = MegatronSide(preset, device, transformer_impl)
    theirs = TransformersSide(preset, ours.parts, ours.row, device)
    difference = logit_difference(ours, theirs)
    prefill = {TRANSFORMERS: theirs.prefill} | {s.name: partial(ours.prefill, s) for s in SETTINGS}
    training = {TRANSFORMERS: theirs.train} | {s.name: partial(ours.train, s) for s in SETTINGS}
    prefill_work = {TRANSFORMERS: transformers_work(preset, training=False)}
    training_work = {TRANSFORMERS: transformers_work(preset, training=True)}
    for setting in SETTINGS:
        prefill_work[setting.name] = ours.prefill_work(setting)
        training_work[setting.name] = ours.train(setting)
    phases = []
    jobs: Mapping[str, Callable[[], object]]
    with tqdm(total=2 * len(prefill) * (1 + rounds), unit="run", file=sys.stderr) as bar:
        for name, jobs, work in (("prefill", prefill, prefill_work), ("training", training, training_work)):
            bar.set_description(name)
            times = interleaved(jobs, rounds, device, bar.update)
            phases.append(make_phase(name, times, work, preset.samples * sample_tokens(preset)))
    return Report(
        preset=preset.name,
        transformer_impl=transformer_impl,
        environment=environment(device),
        logit_difference=difference,
        phases=phases,
    )


def logit_difference(ours: MegatronSide, theirs: TransformersSide) -> float:
    """Largest difference between the logits with the samplers off, as a share of the largest logit.

    Raises:
        ValueError: it is beyond rounding, so the two sides would not be comparable.
    """
    expected, found = theirs.logits(), ours.logits(OFF)
    difference = float((found - expected).abs().max() / expected.abs().max())
    dtype = ours.model.config.params_dtype
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise ValueError(f"both sides should compute the same, but their logits differ by {difference:.1e} in {dtype}")
    return difference
