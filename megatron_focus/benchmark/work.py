"""How much each side computes, from the lengths it really had.

The samplers' own products count too, so that the speed-up the count allows is not flattered by leaving them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.anyres import plan_tiles
from megatron_focus.benchmark.presets import Preset, Setting
from megatron_focus.benchmark.workload import sample_tokens
from megatron_focus.models.flops import decoder_layer_flops, head_flops, vision_flops


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step or one prefill."""

    flops: float
    visual: int
    """Visual tokens that enter the LLM (m)."""
    kept: int
    """Visual tokens left after the text-guided sampler (k)."""


def work_of(totals: Mapping[str, float], preset: Preset, setting: Setting, *, training: bool) -> Work:
    """The work of this project's model.

    Args:
        totals: what ``StepRecorder`` counted; its FLOPs are those of forward and backward, without the samplers' own.
        preset: the model and the batch.
        setting: the samplers.
        training: a step, or a prefill without backward pass.
    """
    passes = 3 if training else 1
    visual, kept = round(totals["visual"]), round(totals["visual"] - totals["dropped"])
    flops = totals["flops"] / 3 * passes
    if setting.vision:
        flops += passes * vision_sampler_flops(preset)
    if setting.text:  # it has no backward pass
        flops += text_sampler_flops(preset, round(totals["row_tokens"]), visual)
    return Work(flops=flops, visual=visual, kept=kept)


def transformers_work(preset: Preset, *, training: bool) -> Work:
    """The work of transformers' LLaVA-NeXT: the same layers, and in training the head on every token."""
    model, length = preset.model, sample_tokens(preset)
    layers = model.language.num_layers * decoder_layer_flops(model, [length] * preset.samples)
    head = head_flops(model, preset.samples * (length if training else 1))
    visual = preset.samples * (length - preset.lead_tokens - preset.instruction_tokens - preset.answer_tokens)
    flops = (3 if training else 1) * (vision_flops(model, _tiles(preset)) + layers + head)
    return Work(flops=flops, visual=visual, kept=visual)


def vision_sampler_flops(preset: Preset) -> float:
    """Forward FLOPs of the scores of all windows against the global view, and of the selector."""
    model, sampler = preset.model, preset.model.vision_sampler
    cells = model.image.cells_per_side**2
    windows = _tiles(preset) * cells // sampler.window**2
    return float(2 * windows * cells * (model.language.hidden_size + len(sampler.scales)))


def text_sampler_flops(preset: Preset, row_tokens: int, visual: int) -> float:
    """FLOPs of the selection: the layer's QKV projection of the row, and instruction against visual tokens."""
    language = preset.model.language
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    query, groups = head * language.num_attention_heads, head * language.num_query_groups
    projection = 2 * row_tokens * language.hidden_size * (query + 2 * groups)
    return float(projection + 2 * query * preset.instruction_tokens * visual)


def _tiles(preset: Preset) -> int:
    plan = plan_tiles(*preset.image_size, preset.model.image)
    return preset.samples * (1 + plan.rows * plan.cols)
