"""The benchmark of inference from end to end."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from data_pipeline.benchmark.measure import interleaved
from megatron_focus.benchmark.environment import environment
from megatron_focus.benchmark.inference.models import Models, build_models, logit_difference
from megatron_focus.benchmark.inference.prompts import prompt_inputs
from megatron_focus.benchmark.inference.side import Footprint, Side
from megatron_focus.benchmark.inference.table import InferenceTable, make_table
from megatron_focus.benchmark.inference.work import PrefillWork, focus_work, stock_work
from megatron_focus.benchmark.presets import SETTINGS, Preset
from megatron_focus.benchmark.table import TRANSFORMERS

HEADER_TOKENS = 5
"""Tokens of a prompt behind the user's turn."""
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class InferenceReport:
    """Everything the benchmark found."""

    preset: str
    environment: dict[str, Any]
    new_tokens: int
    tables: list[InferenceTable]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run(
    preset: Preset, device: torch.device, batch_sizes: Sequence[int], new_tokens: int, rounds: int
) -> InferenceReport:
    """Build both models, check that they compute the same, and time them on each batch.

    Args:
        preset: the model and a sample.
        device: where.
        batch_sizes: prompts of a batch, each with an image.
        new_tokens: tokens to decode in a run.
        rounds: rounds that count, of one prompt; see :func:`rounds_of`.

    Raises:
        ValueError: the logits differ.
    """
    preset = replace(preset, answer_tokens=HEADER_TOKENS)
    models = build_models(replace(preset, samples=max(batch_sizes)), device)
    tables = []
    runs = (1 + len(SETTINGS)) * sum(2 + rounds_of(batch_size, rounds) for batch_size in batch_sizes)
    with tqdm(total=runs, unit="run", file=sys.stderr) as bar:
        for batch_size in batch_sizes:
            bar.set_description(f"batch {batch_size}")
            batch = replace(preset, samples=batch_size)
            tables.append(_measure(models, batch, device, new_tokens, rounds_of(batch_size, rounds), bar))
    return InferenceReport(preset=preset.name, environment=environment(device), new_tokens=new_tokens, tables=tables)


def rounds_of(batch_size: int, rounds: int) -> int:
    """Rounds of a batch: fewer than of a single prompt, because each takes longer, but three unless less is asked."""
    return max(rounds // batch_size, min(rounds, _FEWEST_ROUNDS))


def _measure(
    models: Models, preset: Preset, device: torch.device, new_tokens: int, rounds: int, bar: tqdm
) -> InferenceTable:
    inputs, drop_layer = prompt_inputs(preset, device, models.stock.dtype), preset.model.text_sampler.layer
    difference = logit_difference(models, inputs)
    sides = {TRANSFORMERS: Side(models.stock, None, drop_layer, inputs, new_tokens)}
    sides |= {s.name: Side(models.focus, s, drop_layer, inputs, new_tokens) for s in SETTINGS}
    footprints: dict[str, Footprint] = {}
    for name, side in sides.items():
        footprints[name] = side.footprint()
        bar.update()
    work: dict[str, PrefillWork] = {TRANSFORMERS: stock_work(preset, footprints[TRANSFORMERS].lengths)}
    work |= {s.name: focus_work(preset, s, footprints[s.name].lengths) for s in SETTINGS}
    interleaved({name: side.run for name, side in sides.items()}, rounds, device, bar.update)
    # The first run of each is not one of the rounds.
    timings = {name: side.timings[1:] for name, side in sides.items()}
    return make_table(preset.samples, difference, timings, footprints, work)
