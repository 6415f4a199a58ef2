"""What a prefill computes, from the lengths it really had.

The samplers' own products count too, so that the speed-up the count allows is not flattered by leaving them out. The
tower's last layer does not count: both models run it, but nothing reads what it gives.
"""

from dataclasses import dataclass

from data_pipeline.anyres import plan_tiles
from megatron_focus.benchmark.presets import OFF, Preset, Setting
from megatron_focus.benchmark.work import vision_sampler_flops
from megatron_focus.models.flops import decoder_layer_flops, head_flops, vision_flops


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of each row of a batch, padding not counted."""

    before: list[int]
    """In the layers before the drop; in all layers where nothing is dropped."""
    behind: list[int]
    """In the layers from the drop on."""


@dataclass(frozen=True, kw_only=True)
class PrefillWork:
    """One prefill."""

    flops: float
    visual: int
    """Visual tokens that enter the language model (m), newlines included, of all rows."""
    kept: int
    """Those that are left after the text-guided sampler."""


def focus_work(preset: Preset, setting: Setting, lengths: Lengths) -> PrefillWork:
    """Of a release under a setting of its samplers."""
    model, language = preset.model, preset.model.language
    drop = model.text_sampler.layer if setting.text else language.num_layers
    flops = vision_flops(model, _tiles(preset)) + head_flops(model, preset.samples)
    flops += drop * decoder_layer_flops(model, lengths.before)
    flops += (language.num_layers - drop) * decoder_layer_flops(model, lengths.behind)
    visual, kept = (sum(rows) - preset.samples * _text(preset) for rows in (lengths.before, lengths.behind))
    if setting.vision:
        flops += vision_sampler_flops(preset)
    if setting.text:
        flops += _text_sampler_flops(preset, visual)
    return PrefillWork(flops=flops, visual=visual, kept=kept)


def stock_work(preset: Preset, lengths: Lengths) -> PrefillWork:
    """Of transformers' LLaVA-NeXT: that of a release with the samplers off."""
    return focus_work(preset, OFF, lengths)


def _text_sampler_flops(preset: Preset, visual: int) -> float:
    """Queries of the instruction, keys of the visual tokens, and each query against the keys of its row."""
    language = preset.model.language
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    query, key = head * language.num_attention_heads, head * language.num_query_groups
    projections = 2 * language.hidden_size * (preset.samples * preset.instruction_tokens * query + visual * key)
    return float(projections + 2 * query * preset.instruction_tokens * visual)


def _text(preset: Preset) -> int:
    return preset.lead_tokens + preset.instruction_tokens + preset.answer_tokens


def _tiles(preset: Preset) -> int:
    plan = plan_tiles(*preset.image_size, preset.model.image)
    return preset.samples * (1 + plan.rows * plan.cols)
